"""Backgrounds that are places: grass, beach, sky, room, snow, forest, sea."""

import random

import numpy as np
from canvas import Color
from palette import vary
from PIL import Image, ImageDraw

SCENES = ("grass field", "beach", "night sky", "room", "snow", "sunset", "forest", "sea")
SKIES: dict[str, tuple[Color, Color]] = {
    "night sky": ((16, 20, 60), (50, 50, 110)),
    "sunset": ((250, 150, 80), (250, 210, 150)),
    "snow": ((190, 210, 230), (225, 235, 245)),
    "forest": ((170, 215, 235), (210, 235, 225)),
}
"""Colors of the sky at the top and below; others are light blue."""
GROUNDS: dict[str, Color] = {
    "grass field": (110, 180, 85),
    "beach": (238, 216, 160),
    "snow": (248, 250, 253),
    "sunset": (90, 70, 95),
    "forest": (95, 150, 80),
    "sea": (50, 120, 190),
}
_SCALE = 3


def draw_scene(side: int, name: str, rng: random.Random) -> Image.Image:
    """Return a place as an RGB picture of ``side`` x ``side`` pixels."""
    size = side * _SCALE
    horizon = round(size * rng.uniform(0.45, 0.7))
    if name == "room":
        image = _draw_room(size, horizon, rng)
    else:
        image = _draw_outside(size, horizon, name, rng)
    return image.resize((side, side), Image.Resampling.BOX)


def draw_gradient(side: int, top: Color, bottom: Color, sideways: bool = False) -> Image.Image:
    """Return a gradient from top to bottom, or from left to right."""
    ramp = np.linspace(0.0, 1.0, side)[:, None, None]
    pixels = np.asarray(top) * (1 - ramp) + np.asarray(bottom) * ramp
    pixels = np.broadcast_to(pixels, (side, side, 3))
    if sideways:
        pixels = pixels.transpose(1, 0, 2)
    return Image.fromarray(pixels.round().astype(np.uint8))


def _draw_room(size: int, horizon: int, rng: random.Random) -> Image.Image:
    wall, floor = vary((225, 210, 190), rng, 25), vary((165, 120, 80), rng, 20)
    image = Image.new("RGB", (size, size), wall)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, horizon, size, size), floor)
    x, y = size * rng.uniform(0.05, 0.6), size * rng.uniform(0.06, 0.15)
    width = size * rng.uniform(0.2, 0.32)
    white, pane = (250, 250, 250), width * 0.07
    draw.rectangle((x, y, x + width, y + width), white)
    glass = (x + pane, y + pane, x + width - pane, y + width - pane)
    draw.rectangle(glass, vary((160, 210, 240), rng))
    draw.line([(x + width / 2, y), (x + width / 2, y + width)], white, round(pane))
    return image


def _draw_outside(size: int, horizon: int, name: str, rng: random.Random) -> Image.Image:
    top, bottom = SKIES.get(name, ((130, 190, 240), (200, 228, 250)))
    image = draw_gradient(size, vary(top, rng, 10), vary(bottom, rng, 10))
    draw = ImageDraw.Draw(image)
    if name == "night sky":
        _draw_stars(draw, size, rng)
        return image
    if name in ("sunset", "beach", "sea", "grass field") and rng.random() < 0.7:
        x = rng.uniform(0.1, 0.9) * size
        y = horizon if name == "sunset" else rng.uniform(0.1, 0.25) * size
        _draw_disk(draw, x, y, 0.09 * size, (255, 225, 110))
    if name == "beach":
        draw.rectangle((0, horizon - 0.12 * size, size, horizon), (70, 150, 205))
    if name == "forest":
        _draw_trees(draw, size, horizon, rng)
    draw.rectangle((0, horizon, size, size), vary(GROUNDS[name], rng, 12))
    return image


def _draw_stars(draw: ImageDraw.ImageDraw, size: int, rng: random.Random) -> None:
    for _ in range(rng.randint(10, 30)):
        x, y, radius = rng.random() * size, rng.random() * size, _SCALE * rng.uniform(0.4, 1.1)
        _draw_disk(draw, x, y, radius, (250, 245, 210))
    x, y = rng.uniform(0.1, 0.9) * size, rng.uniform(0.1, 0.3) * size
    _draw_disk(draw, x, y, 0.08 * size, (250, 240, 190))


def _draw_trees(draw: ImageDraw.ImageDraw, size: int, horizon: int, rng: random.Random) -> None:
    for _ in range(rng.randint(5, 9)):
        x, height = rng.random() * size, rng.uniform(0.25, 0.5) * size
        half = 0.015 * size
        draw.rectangle((x - half, horizon - height * 0.3, x + half, horizon + 4), (100, 70, 50))
        foot = horizon - height * 0.2
        corners = [(x - height * 0.3, foot), (x + height * 0.3, foot), (x, horizon - height)]
        draw.polygon(corners, vary((50, 115, 65), rng))


def _draw_disk(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, color: Color) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), color)
