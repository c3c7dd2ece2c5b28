"""Backgrounds that have a name: plain, gradient, patterned, places, photographs."""

import random
from collections.abc import Sequence

from canvas import Color, shade
from palette import NAMED, vary
from photographs import Photograph, cut_square
from PIL import Image, ImageDraw
from scenes import SCENES, draw_gradient, draw_scene

COLORS = (
    "light blue",
    "light green",
    "pink",
    "yellow",
    "gray",
    "black",
    "beige",
    "blue",
    "red",
    "green",
    "orange",
    "purple",
    "teal",
    "brown",
)
PATTERNS = ("striped", "dotted", "checkered")
PHOTOGRAPHIC = "photo background"
_SCALE = 3


def draw_background(
    side: int, rng: random.Random, photographs: Sequence[Photograph] = (), white_share: float = 0.3
) -> tuple[Image.Image, str]:
    """Return an RGB background and its words, such as 'blue background'.

    Args:
        side: side in pixels.
        rng: chooses everything.
        photographs: backgrounds are cut from these; none are photographic if there are none.
        white_share: share of plain white.
    """
    if rng.random() < white_share:
        return Image.new("RGB", (side, side), (255, 255, 255)), "white background"
    kinds = ["plain"] * 5 + ["gradient"] * 2 + ["pattern"] * 3 + ["scene"] * 4
    kinds += ["photograph"] * 3 if photographs else []
    kind = rng.choice(kinds)
    if kind == "scene":
        name = rng.choice(SCENES)
        return draw_scene(side, name, rng), f"{name} background"
    if kind == "photograph":
        image, _ = cut_square(rng.choice(photographs).image, side, rng)
        return image, PHOTOGRAPHIC
    name = rng.choice(COLORS)
    color = vary(NAMED[name], rng, 12)
    if kind == "plain":
        return Image.new("RGB", (side, side), color), f"{name} background"
    if kind == "gradient":
        image = draw_gradient(side, shade(color, 1.45), shade(color, 0.85), rng.random() < 0.25)
        return image, f"{name} gradient background"
    return _draw_pattern(side, name, color, rng)


def _draw_pattern(side: int, name: str, base: Color, rng: random.Random) -> tuple[Image.Image, str]:
    marks_are_white = rng.random() < 0.5
    mark = (255, 255, 255) if marks_are_white else shade(base, rng.choice((0.75, 1.4)))
    size = side * _SCALE
    image = Image.new("RGB", (size, size), base)
    draw = ImageDraw.Draw(image)
    kind = rng.choice(PATTERNS)
    step = round(size * rng.uniform(0.08, 0.2))
    if kind == "striped":
        slant = rng.choice((0, size))
        for x in range(-size, 2 * size, step):
            draw.line([(x, 0), (x + slant, size)], mark, step // 2)
    elif kind == "dotted":
        radius = step * rng.uniform(0.18, 0.3)
        for row, y in enumerate(range(0, size + step, step)):
            for x in range(-(row % 2) * step // 2, size + step, step):
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), mark)
    else:
        for row in range(size // step + 1):
            for column in range(row % 2, size // step + 1, 2):
                x, y = column * step, row * step
                draw.rectangle((x, y, x + step - 1, y + step - 1), mark)
    colors = f"{name} and white" if marks_are_white else name
    return image.resize((side, side), Image.Resampling.BOX), f"{kind} {colors} background"
