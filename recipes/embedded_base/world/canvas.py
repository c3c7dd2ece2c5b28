"""Drawing with Pillow at four times the size, in coordinates of a unit square."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

Point = tuple[float, float]
Color = tuple[int, int, int]

OVERSAMPLING = 4
WHITE: Color = (255, 255, 255)
DARK = 420
"""Sum of the channels below which line art keeps eyes and mouths gray; all else is white."""


def shade(color: Color, factor: float) -> Color:
    """Return a darker (``factor`` < 1) or lighter (> 1) color."""
    if factor <= 1.0:
        red, green, blue = (round(channel * factor) for channel in color)
    else:
        amount = factor - 1.0
        red, green, blue = (round(channel + (255 - channel) * amount) for channel in color)
    return red, green, blue


def mix(first: Color, second: Color, share: float) -> Color:
    """Return a mixture of two colors; ``share`` is the second one's."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def _gray(color: Color) -> Color:
    level = round(0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2])
    return level, level, level


def bezier(points: Sequence[Point], samples: int = 24) -> list[Point]:
    """Return a closed smooth curve through ``points`` (Catmull-Rom splines)."""
    count = len(points)
    steps = np.linspace(0.0, 1.0, samples, endpoint=False)[:, None]
    curve = []
    for index in range(count):
        p0, p1, p2, p3 = (np.asarray(points[(index + k - 1) % count]) for k in range(4))
        curve.append(
            0.5
            * (
                2 * p1
                + (p2 - p0) * steps
                + (2 * p0 - 5 * p1 + 4 * p2 - p3) * steps**2
                + (3 * p1 - p0 - 3 * p2 + p3) * steps**3
            )
        )
    return [(float(x), float(y)) for x, y in np.concatenate(curve)]


def arc_points(
    center: Point, radii: Point, start: float, end: float, count: int = 24
) -> list[Point]:
    """Return points of an ellipse's arc; degrees, 0 to the right, 90 down."""
    angles = np.radians(np.linspace(start, end, count))
    return [
        (center[0] + radii[0] * math.cos(angle), center[1] + radii[1] * math.sin(angle))
        for angle in angles
    ]


class Canvas:
    """An RGBA drawing of a square, in units of a person or thing that is moved and scaled.

    Args:
        side: side of the finished image in pixels.
        scale: size of one unit, as a share of the side.
        origin: where the point (0, 0) is, as shares of the side.
        outline: color of the outlines, or None for none.
        outline_width: width of the outlines in units.
        shaded: darken every shape on its right side.
        line_art: draw white shapes with outlines, and no colors.
    """

    def __init__(
        self,
        side: int,
        scale: float = 1.0,
        origin: Point = (0.0, 0.0),
        outline: Color | None = None,
        outline_width: float = 0.012,
        shaded: bool = False,
        line_art: bool = False,
    ) -> None:
        self.side = side
        self._pixels = side * OVERSAMPLING
        self.image = Image.new("RGBA", (self._pixels, self._pixels), (0, 0, 0, 0))
        self._draw = ImageDraw.Draw(self.image)
        self._unit = scale * self._pixels
        self._origin = (origin[0] * self._pixels, origin[1] * self._pixels)
        self._outline = outline
        self._outline_width = max(1, round(outline_width * self._unit))
        self._shaded = shaded
        self.line_art = line_art

    def polygon(self, points: Sequence[Point], color: Color, outlined: bool = True) -> None:
        """Draw a filled polygon."""
        places = [self._place(point) for point in points]
        if self.line_art:
            color = WHITE if outlined or sum(color) > DARK else _gray(color)
        self._draw.polygon(places, fill=(*color, 255))
        if self._shaded and outlined:
            self._shade(places, color)
        if self._outline is not None and outlined:
            closed = [*places, places[0], places[1]]
            self._draw.line(closed, (*self._outline, 255), self._outline_width, joint="curve")

    def rectangle(
        self, corner: Point, opposite: Point, color: Color, outlined: bool = True
    ) -> None:
        """Draw a filled rectangle between its upper left and lower right corners."""
        (left, top), (right, bottom) = corner, opposite
        points = [(left, top), (right, top), (right, bottom), (left, bottom)]
        self.polygon(points, color, outlined)

    def smooth(self, points: Sequence[Point], color: Color, outlined: bool = True) -> None:
        """Draw a filled closed curve through points."""
        self.polygon(bezier(points), color, outlined)

    def ellipse(
        self, center: Point, radii: Point, color: Color, outlined: bool = True, angle: float = 0.0
    ) -> None:
        """Draw a filled ellipse, turned clockwise by ``angle`` degrees."""
        turn = math.radians(angle)
        points = [
            (
                center[0] + (x - center[0]) * math.cos(turn) - (y - center[1]) * math.sin(turn),
                center[1] + (x - center[0]) * math.sin(turn) + (y - center[1]) * math.cos(turn),
            )
            for x, y in arc_points(center, radii, 0.0, 360.0, 48)[:-1]
        ]
        self.polygon(points, color, outlined)

    def line(self, points: Sequence[Point], color: Color, width: float, inked: bool = True) -> None:
        """Draw a line with round ends, never outlined; line art draws it in ink if ``inked``."""
        ink = self._outline if self.line_art and inked else None
        self._stroke(points, ink or color, width)

    def _stroke(self, points: Sequence[Point], color: Color, width: float) -> None:
        places = [self._place(point) for point in points]
        thickness = max(1, round(width * self._unit))
        self._draw.line(places, (*color, 255), thickness, joint="curve")
        for x, y in (places[0], places[-1]):
            radius = thickness / 2
            self._draw.ellipse((x - radius, y - radius, x + radius, y + radius), (*color, 255))

    def limb(self, points: Sequence[Point], color: Color, width: float) -> None:
        """Draw a line with round ends that has an outline as shapes do."""
        if self._outline is not None:
            self._stroke(points, self._outline, width + 2 * self._outline_width / self._unit)
        self._stroke(points, WHITE if self.line_art else color, width)

    def finish(self) -> Image.Image:
        """Return the drawing at its final size, RGBA."""
        # Premultiplied, so that transparent black does not darken edges.
        return (
            self.image.convert("RGBa")
            .resize((self.side, self.side), Image.Resampling.BOX)
            .convert("RGBA")
        )

    def _place(self, point: Point) -> Point:
        return (
            self._origin[0] + point[0] * self._unit,
            self._origin[1] + point[1] * self._unit,
        )

    def _shade(self, places: Sequence[Point], color: Color) -> None:
        """Darken the right and lower edge of a shape, softly."""
        xs, ys = [x for x, _ in places], [y for _, y in places]
        box = [math.floor(min(xs)), math.floor(min(ys)), math.ceil(max(xs)), math.ceil(max(ys))]
        box = [max(0, box[0]), max(0, box[1]), min(self._pixels, box[2]), min(self._pixels, box[3])]
        width, height = box[2] - box[0], box[3] - box[1]
        if width < 6 or height < 6:
            return
        mask = Image.new("L", (width, height), 0)
        shape = [(x - box[0], y - box[1]) for x, y in places]
        ImageDraw.Draw(mask).polygon(shape, fill=255)
        shift = (round(0.16 * width), round(0.1 * height))
        shifted = Image.new("L", mask.size, 0)
        shifted.paste(mask, (-shift[0], -shift[1]))
        shadow = ImageChops.subtract(mask, shifted).filter(
            ImageFilter.BoxBlur(min(width, height) / 16)
        )
        shadow = ImageChops.multiply(shadow, mask)
        layer = Image.new("RGBA", (width, height), (*shade(color, 0.78), 255))
        self.image.paste(layer, (box[0], box[1]), shadow)
