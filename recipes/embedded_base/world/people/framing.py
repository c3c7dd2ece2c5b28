"""Where a person is in the picture, and what of it can be seen."""

import random
from dataclasses import dataclass

from canvas import Point

from people.attributes import COVERING_HATS, Person
from people.held import CENTERS, HEIGHTS
from people.plan import bend_arm, plan_body, plan_head

MARGIN = 0.02
"""Free share of the picture's side around what must not be cut off."""
FEET = 1.015
"""Where the outline of the shoes ends, in units of the person's height."""


@dataclass(frozen=True)
class Frame:
    """Scale and place of a person; shares of the picture's side."""

    scale: float
    """Height of the person."""
    x: float
    """Of the person's center."""
    y: float
    """Of the top of its head."""

    @property
    def bottom(self) -> float:
        """The lowest visible place, in units of the person's height."""
        return (1.0 - self.y) / self.scale

    def shows(self, point: Point) -> bool:
        """Whether a point in units of the person's height is inside the picture."""
        x, y = self.x + point[0] * self.scale, self.y + point[1] * self.scale
        return MARGIN <= x <= 1.0 - MARGIN and MARGIN <= y <= 1.0 - MARGIN


def frame_person(person: Person, rng: random.Random) -> Frame:
    """Choose place and size within a person's framing; hats and held things are not cut off."""
    head = person.head_height
    room = 0.16 * head if person.headwear in ("wizard hat", "crown", "hair bow") else 0.04
    if person.hair_style in ("hair bun", "spiky hair"):
        room += 0.12 * head
    x = 0.5 + rng.uniform(-0.06, 0.06)
    if person.framing == "full body":
        scale = rng.uniform(0.66, 0.9) - room * 0.5
        y = min(0.98 - scale, 0.06 + room * scale + rng.uniform(0.0, 0.06))
        return _fit_figure(person, Frame(scale, x, y))
    if person.framing == "upper body":
        visible = head + (1 - head) * rng.uniform(0.42, 0.6)
        scale = 0.95 / (visible + room)
        frame = Frame(scale, x, (room + 0.03) * scale)
    else:
        scale = rng.uniform(0.72, 0.86) / (head * 1.25 + room)
        frame = Frame(scale, x, (room + 0.03) * scale + rng.uniform(0.0, 0.05))
    return _fit_top(person, frame)


def frame_figure(person: Person) -> Frame:
    """Return a frame that shows all of a person, to be cut out."""
    return _fit_figure(person, Frame(0.86, 0.5, 0.12))


def measure_top(person: Person, with_held: bool) -> float:
    """Return how far hair, hat or a held thing reach above the head, in units of the height."""
    plan = plan_head(person)
    rx, ry = plan.rx, plan.ry
    hair = {
        "bald": 0.0,
        "spiky hair": 0.47 * ry,
        "hair bun": 0.2 * ry + 0.38 * rx * plan.lock_width,
        "double bun": 0.38 * rx * plan.lock_width,
    }.get(person.hair_style, 0.12 * ry)
    hat = {
        "cap": 0.24 * ry,
        "beanie": 0.28 * ry + 0.2 * rx,
        "sun hat": 0.17 * ry,
        "wizard hat": 0.92 * ry,
        "crown": 0.37 * ry,
        "headphones": 0.18 * ry + 0.07 * rx,
        "hair bow": 0.22 * ry,
    }.get(person.headwear, 0.0)
    held = 0.0
    if with_held and person.held:
        hand = bend_arm(person, plan_body(person), 1).hand
        held = HEIGHTS[person.held] - hand[1]
    return max(hair, hat, held)


def _fit_figure(person: Person, frame: Frame) -> Frame:
    """Make a whole person smaller, or lower it, where something would be cut off."""
    top = measure_top(person, with_held=True)
    scale = min(frame.scale, (1.0 - MARGIN) / (FEET + top))
    y = min(max(frame.y, MARGIN + top * scale), 1.0 - FEET * scale)
    return Frame(scale, frame.x, y)


def _fit_top(person: Person, frame: Frame) -> Frame:
    """Lower a cropped person whose hat would be cut off, and make room for a stretched arm."""
    top = measure_top(person, with_held=False)
    y = max(frame.y, MARGIN + top * frame.scale)
    x = frame.x
    if person.framing == "upper body":
        hands = [bend_arm(person, plan_body(person), side).hand[0] for side in (-1, 1)]
        reach = max(hands) * frame.scale + 2 * MARGIN
        x = max(min(x, 1.0 - reach), plan_head(person).rx * frame.scale)
    return Frame(frame.scale, x, y)


@dataclass(frozen=True)
class Visible:
    """What a framed person shows; captions say nothing else."""

    pose: bool
    waist: bool
    legs: bool
    """The beginning of trousers or a skirt."""
    shoes: bool
    held: bool
    fringe: bool
    eye_color: bool
    depth: float
    """How far below the neck the outfit can be seen."""


def find_visible(person: Person, frame: Frame) -> Visible:
    """Return what can be seen of a person in a frame."""
    plan = plan_body(person)
    arms = [bend_arm(person, plan, side) for side in (-1, 1)]
    shoes = frame.bottom >= 0.99
    held = False
    if person.held:
        dx, dy = CENTERS[person.held]
        held = frame.shows((arms[1].hand[0] + dx, arms[1].hand[1] + dy))
    if person.pose in ("standing", "walking"):
        pose = shoes
    elif person.pose in ("pointing", "waving"):
        pose = frame.shows(arms[1].hand)
    else:
        pose = all(frame.shows(point) for arm in arms for point in (arm.elbow, arm.hand))
    return Visible(
        pose=pose,
        waist=frame.bottom > plan.hip,
        legs=frame.bottom > plan.hip + 0.08,
        shoes=shoes,
        held=held,
        fringe=person.hair_style != "bald" and person.headwear not in COVERING_HATS,
        eye_color=person.shows_eye_color,
        depth=frame.bottom - plan.neck,
    )
