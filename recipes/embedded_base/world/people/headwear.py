"""Drawing what a person wears on the head, the eyes and around the neck."""

import random
from collections.abc import Callable

from canvas import Canvas, Color, arc_points, shade
from palette import NAMED, vary

from people.attributes import Person
from people.plan import HeadPlan


def draw_eyewear(canvas: Canvas, person: Person, plan: HeadPlan) -> None:
    """Draw glasses or sunglasses."""
    if not person.eyewear:
        return
    size = plan.rx * 0.29
    frame: Color = (45, 45, 52)
    for side in (-1, 1):
        center = (side * plan.eye_gap, plan.eye_y)
        if person.eyewear == "sunglasses":
            canvas.ellipse(center, (size, size * 0.85), (30, 30, 36), outlined=False)
        else:
            canvas.line(arc_points(center, (size, size), 0, 360, 32), frame, plan.rx * 0.05)
        canvas.line(
            [(side * (plan.eye_gap + size), plan.eye_y), (side * plan.rx, plan.eye_y - 0.01)],
            frame,
            plan.rx * 0.045,
        )
    inner = plan.eye_gap - size
    canvas.line([(-inner, plan.eye_y), (inner, plan.eye_y)], frame, plan.rx * 0.05)


def draw_headwear(canvas: Canvas, person: Person, plan: HeadPlan) -> None:
    """Draw a hat, a crown, headphones or a bow."""
    if person.headwear:
        _HEADWEAR[person.headwear](canvas, plan)


def _brim(plan: HeadPlan) -> float:
    """Return the height of a hat's lower edge."""
    return plan.cy - plan.ry * 0.42


def _draw_dome(canvas: Canvas, plan: HeadPlan) -> None:
    radii = (plan.rx * 1.12, plan.ry * 0.82)
    canvas.polygon(arc_points((0, _brim(plan)), radii, 180, 360), plan.hat)


def _draw_cap(canvas: Canvas, plan: HeadPlan) -> None:
    rx, ry = plan.rx, plan.ry
    _draw_dome(canvas, plan)
    peak = (rx * 0.35, _brim(plan) + ry * 0.02)
    canvas.ellipse(peak, (rx * 1.05, ry * 0.12), shade(plan.hat, 0.8))


def _draw_beanie(canvas: Canvas, plan: HeadPlan) -> None:
    rx, ry, line = plan.rx, plan.ry, _brim(plan)
    _draw_dome(canvas, plan)
    canvas.rectangle(
        (-rx * 1.15, line - ry * 0.2), (rx * 1.15, line + ry * 0.06), shade(plan.hat, 0.8)
    )
    canvas.ellipse((0, line - ry * 0.86), (rx * 0.2, rx * 0.2), shade(plan.hat, 1.5))


def _draw_sun_hat(canvas: Canvas, plan: HeadPlan) -> None:
    rx, ry, line = plan.rx, plan.ry, _brim(plan)
    canvas.ellipse((0, line), (rx * 1.75, ry * 0.2), plan.hat)
    canvas.polygon(arc_points((0, line), (rx * 0.95, ry * 0.75), 180, 360), plan.hat)
    y = line - ry * 0.1
    canvas.line([(-rx * 0.9, y), (rx * 0.9, y)], plan.extra, ry * 0.12)


def _draw_wizard_hat(canvas: Canvas, plan: HeadPlan) -> None:
    rx, ry, line = plan.rx, plan.ry, _brim(plan)
    canvas.polygon([(-rx * 0.9, line), (rx * 0.9, line), (rx * 0.2, line - ry * 1.5)], plan.hat)
    canvas.ellipse((0, line), (rx * 1.5, ry * 0.17), plan.hat)


def _draw_crown(canvas: Canvas, plan: HeadPlan) -> None:
    rx, ry, line = plan.rx, plan.ry, _brim(plan)
    base, top = line - ry * 0.3, line - ry * 0.85
    points = [
        (-rx * 0.6, base),
        (rx * 0.6, base),
        (rx * 0.7, top),
        (rx * 0.3, (base + top) / 2),
        (0, top - ry * 0.1),
        (-rx * 0.3, (base + top) / 2),
        (-rx * 0.7, top),
    ]
    canvas.polygon(points, (245, 200, 60))


def _draw_headphones(canvas: Canvas, plan: HeadPlan) -> None:
    rx, ry, cy = plan.rx, plan.ry, plan.cy
    canvas.limb(arc_points((0, cy), (rx * 1.2, ry * 1.18), 190, 350, 32), plan.hat, rx * 0.13)
    for side in (-1, 1):
        canvas.ellipse((side * rx * 1.16, cy + ry * 0.1), (rx * 0.2, ry * 0.28), plan.hat)


def _draw_bow(canvas: Canvas, plan: HeadPlan) -> None:
    rx, ry, y = plan.rx, plan.ry, plan.cy - plan.ry * 0.98
    for side in (-1, 1):
        ends = [(side * rx * 0.5, y - ry * 0.24), (side * rx * 0.5, y + ry * 0.2)]
        canvas.polygon([(0, y), *ends], plan.hat)
    canvas.ellipse((0, y), (rx * 0.12, rx * 0.12), shade(plan.hat, 0.8))


_HEADWEAR: dict[str, Callable[[Canvas, HeadPlan], None]] = {
    "cap": _draw_cap,
    "beanie": _draw_beanie,
    "sun hat": _draw_sun_hat,
    "wizard hat": _draw_wizard_hat,
    "crown": _draw_crown,
    "headphones": _draw_headphones,
    "hair bow": _draw_bow,
}


def draw_neckwear(canvas: Canvas, person: Person) -> None:
    """Draw a scarf, a bow tie or a necklace."""
    color: Color = vary(NAMED[person.held_color], random.Random(person.seed + 2))
    y = person.head_height * 0.99
    if person.neckwear == "scarf":
        canvas.limb([(-0.075, y + 0.025), (0.075, y + 0.025)], color, 0.06)
        canvas.limb([(0.04, y + 0.04), (0.055, y + 0.15)], shade(color, 0.9), 0.045)
    elif person.neckwear == "bow tie":
        for side in (-1, 1):
            ends = [(side * 0.05, y + 0.015), (side * 0.05, y + 0.065)]
            canvas.polygon([(0, y + 0.04), *ends], color)
    elif person.neckwear == "necklace":
        for step in range(5):
            x = (step - 2) * 0.025
            bead = (x, y + 0.05 - abs(x) * 0.5)
            canvas.ellipse(bead, (0.012, 0.012), (245, 210, 90), outlined=canvas.line_art)
