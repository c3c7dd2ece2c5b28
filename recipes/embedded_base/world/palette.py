"""Named colors and how much they vary, so that a word covers a range and not one value."""

import random

from canvas import Color

NAMED: dict[str, Color] = {
    "red": (214, 40, 46),
    "orange": (245, 140, 40),
    "yellow": (250, 212, 50),
    "green": (70, 160, 75),
    "teal": (40, 160, 170),
    "blue": (50, 110, 210),
    "light blue": (175, 215, 248),
    "light green": (205, 238, 185),
    "purple": (130, 75, 180),
    "pink": (245, 150, 185),
    "brown": (125, 80, 50),
    "beige": (235, 218, 188),
    "gray": (150, 155, 162),
    "black": (38, 38, 42),
    "white": (250, 250, 250),
}

HAIR: dict[str, Color] = {
    "black": (40, 36, 40),
    "brown": (110, 70, 45),
    "blonde": (240, 205, 115),
    "gray": (165, 168, 175),
    "white": (238, 238, 242),
    "pink": (240, 145, 180),
    "purple": (135, 90, 185),
    "blue": (65, 105, 200),
    "green": (85, 155, 90),
    "teal": (45, 160, 170),
}
"""No red hair: it is a hold-out of the emoji rows."""

EYES: dict[str, Color] = {
    "brown": (105, 65, 40),
    "black": (35, 32, 36),
    "blue": (60, 125, 215),
    "green": (65, 150, 85),
    "purple": (125, 60, 190),
    "amber": (215, 150, 45),
}

SKIN: dict[str, Color] = {
    "pale skin": (255, 226, 205),
    "light skin": (250, 210, 178),
    "tan skin": (226, 175, 130),
    "brown skin": (170, 115, 78),
    "dark skin": (110, 72, 52),
}


NEUTRAL_SPREAD = 24
"""Colors whose channels differ by less are gray, and stay so."""


def vary(color: Color, rng: random.Random, amount: int = 14) -> Color:
    """Return a color near ``color``; white, gray and black vary in brightness, hardly in hue."""
    shifts = [rng.randint(-amount, amount) for _ in color]
    if max(color) - min(color) < NEUTRAL_SPREAD:
        shifts = [shifts[0] + shift // 5 for shift in shifts]
    red, green, blue = (
        min(255, max(0, channel + shift)) for channel, shift in zip(color, shifts, strict=True)
    )
    return red, green, blue
