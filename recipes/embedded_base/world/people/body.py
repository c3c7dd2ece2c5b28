"""Drawing a person's body: legs, arms, and what is held."""

from canvas import Canvas, Color, Point, shade

from people.attributes import Person
from people.held import draw_held
from people.outfits import SHIRT, draw_outfit, draw_outfit_front
from people.plan import BodyPlan, bend_arm

SHORT_SLEEVES = frozenset(
    {"dress", "t-shirt and jeans", "t-shirt and shorts", "shirt and skirt", "overalls"}
)
TROUSERS: dict[str, Color | None] = {
    "t-shirt and jeans": (62, 88, 140),
    "suit": None,
    "pajamas": None,
    "overalls": None,
    "armor": (120, 126, 136),
    "hoodie": (70, 72, 84),
    "sweater": (92, 88, 100),
    "lab coat": (60, 64, 80),
    "coat": (58, 56, 64),
    "raincoat": (66, 74, 96),
}
"""Outfits with long trousers, and their color; None is the outfit's own."""


def draw_body(canvas: Canvas, person: Person, plan: BodyPlan) -> None:
    """Draw everything below the head."""
    behind = person.pose == "arms behind back"
    if behind:
        _draw_arms(canvas, person, plan)
    _draw_legs(canvas, person, plan)
    draw_outfit(canvas, person, plan)
    if not behind:
        _draw_arms(canvas, person, plan)
    draw_outfit_front(canvas, person, plan)


def _draw_legs(canvas: Canvas, person: Person, plan: BodyPlan) -> None:
    spread, width = plan.half_hip * 0.52, plan.leg_width
    feet = [(-spread, 0.98), (spread, 0.98)]
    if person.pose == "walking":
        feet = [(-spread - 0.06, 0.96), (spread + 0.07, 0.985)]
    for side, foot in zip((-1, 1), feet, strict=True):
        top = (side * spread, plan.hip - 0.02)
        ankle = (foot[0], foot[1] + 0.02 - width / 2)  # the round end stays behind the shoe
        canvas.limb([top, ankle], _leg_color(person, plan), width)
        if person.outfit == "t-shirt and shorts":
            canvas.limb([top, _between(top, foot, 0.45)], plan.second, width * 1.25)
        canvas.ellipse((foot[0] + side * 0.012, foot[1]), (width * 0.72, 0.026), plan.shoes)


def _leg_color(person: Person, plan: BodyPlan) -> Color:
    if person.outfit == "school uniform":
        return (50, 54, 72) if person.kind == "boy" else plan.skin
    if person.outfit not in TROUSERS:
        return plan.skin
    return TROUSERS[person.outfit] or plan.color


def _draw_arms(canvas: Canvas, person: Person, plan: BodyPlan) -> None:
    sleeve, width = _sleeve_color(person, plan), plan.arm_width
    for side in (-1, 1):
        arm = bend_arm(person, plan, side)
        joints = [arm.shoulder, arm.elbow, arm.hand]
        if person.outfit in SHORT_SLEEVES:
            canvas.limb(joints, plan.skin, width * 0.9)
            end = _between(arm.shoulder, arm.elbow, 0.6)
            canvas.limb([arm.shoulder, end], sleeve, width * 1.15)
        else:
            canvas.limb(joints, sleeve, width * 1.08)
        canvas.ellipse(arm.hand, (width * 0.56, width * 0.56), plan.skin)
        if person.held and side == 1:
            draw_held(canvas, person.held, plan.held_color, arm.hand)


def _sleeve_color(person: Person, plan: BodyPlan) -> Color:
    if person.outfit == "overalls":
        return plan.second
    if person.outfit == "school uniform":
        return SHIRT if person.kind == "girl" else shade(plan.color, 0.9)
    return shade(plan.color, 0.95)


def _between(start: Point, end: Point, share: float) -> Point:
    return start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share
