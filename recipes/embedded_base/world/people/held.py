"""Drawing what a person holds."""

import math
from collections.abc import Callable

from canvas import Canvas, Color, Point, arc_points, shade

CENTERS: dict[str, Point] = {
    "balloon": (0.03, -0.31),
    "book": (0.0, 0.015),
    "flower": (0.0, -0.13),
    "umbrella": (0.0, -0.3),
    "ball": (0.0, 0.05),
    "lollipop": (0.0, -0.14),
    "star": (0.0, -0.09),
}
"""Where the middle of a held thing is, seen from the hand."""
HEIGHTS: dict[str, float] = {
    "balloon": 0.4,
    "book": 0.06,
    "flower": 0.19,
    "umbrella": 0.43,
    "ball": 0.02,
    "lollipop": 0.19,
    "star": 0.18,
}
"""How far a held thing reaches above the hand."""


def draw_held(canvas: Canvas, name: str, color: Color, hand: Point) -> None:
    """Draw a thing at a hand's place."""
    _DRAW[name](canvas, color, hand[0], hand[1])


def _draw_balloon(canvas: Canvas, color: Color, x: float, y: float) -> None:
    canvas.line([(x, y), (x + 0.03, y - 0.22)], (110, 110, 110), 0.006)
    canvas.ellipse((x + 0.03, y - 0.31), (0.075, 0.09), color)


def _draw_book(canvas: Canvas, color: Color, x: float, y: float) -> None:
    canvas.rectangle((x - 0.06, y - 0.06), (x + 0.06, y + 0.09), color)
    label = (248, 244, 230)
    canvas.rectangle((x - 0.03, y - 0.035), (x + 0.03, y), label, outlined=canvas.line_art)


def _draw_flower(canvas: Canvas, color: Color, x: float, y: float) -> None:
    canvas.line([(x, y + 0.03), (x, y - 0.1)], (80, 150, 75), 0.014)
    for turn in range(5):
        angle = math.tau * turn / 5
        petal = (x + 0.032 * math.cos(angle), y - 0.13 + 0.032 * math.sin(angle))
        canvas.ellipse(petal, (0.024, 0.024), color, outlined=canvas.line_art)
    canvas.ellipse((x, y - 0.13), (0.02, 0.02), (250, 215, 70), outlined=False)


def _draw_umbrella(canvas: Canvas, color: Color, x: float, y: float) -> None:
    canvas.line([(x, y + 0.05), (x, y - 0.3)], (95, 75, 60), 0.014)
    canvas.polygon(arc_points((x, y - 0.26), (0.2, 0.15), 180, 360), color)
    canvas.line([(x, y - 0.4), (x, y - 0.42)], shade(color, 0.6), 0.012)


def _draw_ball(canvas: Canvas, color: Color, x: float, y: float) -> None:
    canvas.ellipse((x, y + 0.05), (0.07, 0.07), color)
    canvas.line([(x - 0.062, y + 0.05), (x + 0.062, y + 0.05)], (250, 250, 250), 0.018)


def _draw_lollipop(canvas: Canvas, color: Color, x: float, y: float) -> None:
    canvas.line([(x, y + 0.03), (x, y - 0.1)], (240, 240, 240), 0.012)
    canvas.ellipse((x, y - 0.14), (0.05, 0.05), color)
    canvas.line(arc_points((x, y - 0.14), (0.026, 0.026), 0, 270, 16), (250, 250, 250), 0.012)


def _draw_star(canvas: Canvas, color: Color, x: float, y: float) -> None:
    points = []
    for turn, radius in enumerate((0.085, 0.036) * 5):
        angle = math.tau * turn / 10
        points.append((x + radius * math.sin(angle), y - 0.09 - radius * math.cos(angle)))
    canvas.polygon(points, color)


_DRAW: dict[str, Callable[[Canvas, Color, float, float], None]] = {
    "balloon": _draw_balloon,
    "book": _draw_book,
    "flower": _draw_flower,
    "umbrella": _draw_umbrella,
    "ball": _draw_ball,
    "lollipop": _draw_lollipop,
    "star": _draw_star,
}
