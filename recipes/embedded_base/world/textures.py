"""Pictures without things, for the autoencoder: dead leaves and noise with natural spectra."""

import random

import numpy as np
from PIL import Image, ImageDraw


def draw_dead_leaves(side: int, rng: random.Random) -> Image.Image:
    """Return overlapping random shapes; sizes follow the cubic law of natural images.

    See Lee, Mumford and Huang, "Occlusion models for natural images" (2001).
    """
    scale = 2
    size = side * scale
    image = Image.new("RGB", (size, size), _color(rng))
    draw = ImageDraw.Draw(image)
    smallest, largest = 0.02 * size, 0.5 * size
    for _ in range(rng.randint(40, 260)):
        # Density proportional to r^-3: inverse of its distribution function.
        share = rng.random()
        radius = (smallest**-2 - share * (smallest**-2 - largest**-2)) ** -0.5
        x, y = rng.uniform(-radius, size + radius), rng.uniform(-radius, size + radius)
        if rng.random() < 0.5:
            draw.ellipse(
                (x - radius, y - radius * rng.uniform(0.4, 1), x + radius, y + radius), _color(rng)
            )
        else:
            corners = sorted(rng.uniform(0, 2 * np.pi) for _ in range(rng.randint(3, 6)))
            draw.polygon(
                [(x + radius * np.cos(turn), y + radius * np.sin(turn)) for turn in corners],
                _color(rng),
            )
    return image.resize((side, side), Image.Resampling.BOX)


def draw_noise(side: int, rng: random.Random) -> Image.Image:
    """Return colored noise with an amplitude spectrum of 1 / f^a, a between 0.8 and 2."""
    generator = np.random.default_rng(rng.randrange(2**32))
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None])
    frequency[0, 0] = 1.0
    spectrum = frequency ** -rng.uniform(0.8, 2.0)
    spectrum[0, 0] = 0.0
    waves = np.fft.ifft2(np.fft.fft2(generator.normal(size=(3, side, side))) * spectrum).real
    waves /= waves.std(axis=(1, 2), keepdims=True)
    # Natural colors are correlated: mostly brightness, some hue.
    brightness, first, second = waves
    mix = np.stack([brightness + 0.4 * first, brightness + 0.3 * second, brightness - 0.4 * first])
    pixels = np.asarray(_color(rng))[:, None, None] + mix * rng.uniform(15, 60)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def _color(rng: random.Random) -> tuple[int, int, int]:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)
