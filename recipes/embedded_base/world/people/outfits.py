"""Drawing outfits over a body, without arms and legs."""

from collections.abc import Callable

from canvas import Canvas, Color, shade

from people.attributes import Person
from people.plan import BodyPlan

SHIRT: Color = (248, 248, 250)
"""The white shirt of a girl's school uniform."""


def draw_outfit(canvas: Canvas, person: Person, plan: BodyPlan) -> None:
    """Draw the neck and what covers the torso and hangs from it."""
    canvas.limb([(0, plan.neck - 0.03), (0, plan.neck + 0.03)], plan.skin, 0.06)
    _OUTFITS[person.outfit](canvas, person, plan)


def draw_outfit_front(canvas: Canvas, person: Person, plan: BodyPlan) -> None:
    """Draw what is over the arms."""
    if person.outfit == "lab coat":
        canvas.line([(0, plan.neck + 0.05), (0, plan.hip + 0.1)], (170, 175, 182), 0.008)


def _draw_t_shirt(canvas: Canvas, person: Person, plan: BodyPlan) -> None:
    _torso(canvas, plan, plan.color, plan.hip + 0.02, plan.half_hip)
    if person.seed % 3 == 0:
        canvas.ellipse((0, plan.neck + 0.13), (0.045, 0.04), plan.second, outlined=False)


def _draw_long_coat(canvas: Canvas, person: Person, plan: BodyPlan) -> None:
    length = {"coat": 0.16, "raincoat": 0.13, "lab coat": 0.18}[person.outfit]
    _torso(canvas, plan, plan.color, plan.hip + length, plan.half_hip * 1.25)
    if person.outfit == "lab coat":
        return
    for step in range(3):
        button = (0, plan.neck + 0.09 + step * 0.085)
        canvas.ellipse(button, (0.013, 0.013), shade(plan.color, 0.55), outlined=False)
    if person.outfit == "raincoat":
        y = plan.neck + 0.03
        canvas.line([(-0.05, y), (0.05, y)], shade(plan.color, 0.7), 0.02)


def _draw_hoodie(canvas: Canvas, person: Person, plan: BodyPlan) -> None:
    _torso(canvas, plan, plan.color, plan.hip + 0.02, plan.half_hip)
    y = (plan.neck + plan.hip) / 2 + 0.06
    pocket = [(-0.06, y), (0.06, y), (0.08, y + 0.07), (-0.08, y + 0.07)]
    canvas.smooth(pocket, shade(plan.color, 0.82))
    for x in (-0.02, 0.02):
        canvas.line([(x, plan.neck + 0.03), (x, plan.neck + 0.1)], (245, 245, 245), 0.008)


def _draw_sweater(canvas: Canvas, person: Person, plan: BodyPlan) -> None:
    _torso(canvas, plan, plan.color, plan.hip + 0.02, plan.half_hip)
    half = plan.half_shoulder * 0.94
    for step in range(2):
        y = plan.neck + 0.1 + 0.07 * step
        canvas.line([(-half, y), (half, y)], plan.second, 0.02)


def _draw_pajamas(canvas: Canvas, person: Person, plan: BodyPlan) -> None:
    _torso(canvas, plan, plan.color, plan.hip + 0.02, plan.half_hip)
    for x, y in ((-0.05, 0.1), (0.05, 0.14), (-0.04, 0.2), (0.06, 0.24)):
        dot = (x, plan.neck + y)
        canvas.ellipse(dot, (0.014, 0.014), plan.second, outlined=canvas.line_art)


def _torso(canvas: Canvas, plan: BodyPlan, color: Color, bottom: float, half_bottom: float) -> None:
    top, half = plan.neck + 0.015, plan.half_shoulder
    canvas.polygon(
        [
            (-half * 0.55, top),
            (half * 0.55, top),
            (half, top + 0.045),
            (half_bottom, bottom),
            (-half_bottom, bottom),
            (-half, top + 0.045),
        ],
        color,
    )


def _draw_dress(canvas: Canvas, person: Person, plan: BodyPlan) -> None:
    hem = plan.hip + (1 - plan.hip) * (0.35 + 0.3 * (person.seed % 7) / 7)
    _torso(canvas, plan, plan.color, plan.hip - 0.04, plan.half_hip * 0.85)
    waist, wide = plan.half_hip * 0.85, plan.half_hip * plan.flare
    canvas.polygon(
        [(-waist, plan.hip - 0.05), (waist, plan.hip - 0.05), (wide, hem), (-wide, hem)],
        plan.color,
    )
    canvas.line([(-waist, plan.hip - 0.05), (waist, plan.hip - 0.05)], _trim(person, plan), 0.022)


def _draw_skirt(canvas: Canvas, person: Person, plan: BodyPlan) -> None:
    hem = plan.hip + (1 - plan.hip) * 0.38
    waist, wide = plan.half_hip * 0.95, plan.half_hip * min(1.9, plan.flare)
    _torso(canvas, plan, plan.color, plan.hip - 0.02, waist)
    canvas.polygon(
        [(-waist, plan.hip - 0.04), (waist, plan.hip - 0.04), (wide, hem), (-wide, hem)],
        plan.second,
    )


def _draw_overalls(canvas: Canvas, person: Person, plan: BodyPlan) -> None:
    _torso(canvas, plan, plan.second, plan.hip, plan.half_hip)
    half, top = plan.half_shoulder * 0.62, plan.neck + 0.1
    canvas.polygon(
        [
            (-half, top),
            (half, top),
            (plan.half_hip * 1.05, plan.hip + 0.03),
            (-plan.half_hip * 1.05, plan.hip + 0.03),
        ],
        plan.color,
    )
    for side in (-1, 1):
        canvas.line(
            [(side * half * 0.8, top), (side * half * 0.95, plan.neck + 0.02)],
            plan.color,
            0.028,
        )
        canvas.ellipse(
            (side * half * 0.75, top + 0.02), (0.011, 0.011), (245, 215, 90), outlined=False
        )


def _draw_kimono(canvas: Canvas, person: Person, plan: BodyPlan) -> None:
    hem = plan.hip + (1 - plan.hip) * 0.82
    _torso(canvas, plan, plan.color, plan.hip, plan.half_hip)
    canvas.polygon(
        [
            (-plan.half_hip, plan.hip - 0.03),
            (plan.half_hip, plan.hip - 0.03),
            (plan.half_hip * 1.25, hem),
            (-plan.half_hip * 1.25, hem),
        ],
        plan.color,
    )
    trim = _trim(person, plan)
    canvas.line([(-0.05, plan.neck + 0.02), (0.02, plan.neck + 0.14)], trim, 0.02)
    canvas.line([(0.05, plan.neck + 0.02), (-0.02, plan.neck + 0.14)], trim, 0.02)
    half = plan.half_hip * 1.02
    canvas.rectangle((-half, plan.hip - 0.09), (half, plan.hip - 0.02), plan.second)


def _draw_uniform(canvas: Canvas, person: Person, plan: BodyPlan) -> None:
    dark = shade(plan.color, 0.9)
    _torso(canvas, plan, SHIRT if person.kind == "girl" else dark, plan.hip, plan.half_hip)
    canvas.polygon(
        [(-0.07, plan.neck + 0.015), (0.07, plan.neck + 0.015), (0, plan.neck + 0.11)], dark
    )
    canvas.ellipse((0, plan.neck + 0.11), (0.022, 0.022), plan.second, outlined=False)
    if person.kind == "girl":
        _draw_pleats(canvas, plan, dark)


def _draw_pleats(canvas: Canvas, plan: BodyPlan, color: Color) -> None:
    waist, hem = plan.hip - 0.03, plan.hip + (1 - plan.hip) * 0.36
    half, wide = plan.half_hip, plan.half_hip * 1.7
    canvas.polygon([(-half, waist), (half, waist), (wide, hem), (-wide, hem)], color)
    for step in (-0.5, 0.0, 0.5):
        fold = [(step * half * 1.2, plan.hip), (step * wide * 1.3, hem)]
        canvas.line(fold, shade(color, 0.75), 0.007)


def _draw_suit(canvas: Canvas, person: Person, plan: BodyPlan) -> None:
    _torso(canvas, plan, plan.color, plan.hip + 0.04, plan.half_hip * 1.08)
    canvas.polygon(
        [(-0.045, plan.neck + 0.015), (0.045, plan.neck + 0.015), (0, plan.neck + 0.16)],
        (250, 250, 250),
    )
    if person.neckwear != "bow tie":
        tie = [(-0.014, plan.neck + 0.02), (0.014, plan.neck + 0.02), (0, plan.neck + 0.14)]
        canvas.polygon(tie, plan.second)
    canvas.ellipse((0, plan.neck + 0.2), (0.01, 0.01), shade(plan.color, 0.5), outlined=False)


def _draw_armor(canvas: Canvas, person: Person, plan: BodyPlan) -> None:
    metal = plan.color
    _torso(canvas, plan, metal, plan.hip, plan.half_hip)
    canvas.line([(0, plan.neck + 0.03), (0, plan.hip - 0.02)], shade(metal, 0.65), 0.01)
    half = plan.half_hip * 1.05
    canvas.rectangle((-half, plan.hip - 0.03), (half, plan.hip + 0.02), (115, 80, 55))
    for side in (-1, 1):
        canvas.ellipse(
            (side * plan.half_shoulder, plan.neck + 0.055), (0.06, 0.045), shade(metal, 1.3)
        )


def _trim(person: Person, plan: BodyPlan) -> Color:
    return shade(plan.color, 0.72) if person.seed % 2 else plan.second


_OUTFITS: dict[str, Callable[[Canvas, Person, BodyPlan], None]] = {
    "dress": _draw_dress,
    "t-shirt and jeans": _draw_t_shirt,
    "t-shirt and shorts": _draw_t_shirt,
    "shirt and skirt": _draw_skirt,
    "hoodie": _draw_hoodie,
    "coat": _draw_long_coat,
    "raincoat": _draw_long_coat,
    "suit": _draw_suit,
    "overalls": _draw_overalls,
    "sweater": _draw_sweater,
    "school uniform": _draw_uniform,
    "kimono": _draw_kimono,
    "armor": _draw_armor,
    "lab coat": _draw_long_coat,
    "pajamas": _draw_pajamas,
}
