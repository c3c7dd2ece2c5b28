"""Name the main colours of an image, in words for captions."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 40, 45),
    "orange": (245, 140, 30),
    "yellow": (253, 210, 60),
    "green": (70, 160, 60),
    "blue": (50, 120, 220),
    "light blue": (130, 200, 245),
    "purple": (130, 70, 190),
    "pink": (245, 130, 175),
    "brown": (130, 80, 45),
    "black": (28, 28, 32),
    "gray": (140, 145, 150),
    "white": (250, 250, 250),
    "tan": (235, 195, 150),
    "teal": (30, 150, 150),
    "navy": (35, 50, 100),
}

_BACKGROUND = 244
"""A pixel is ground when all its channels are at least this bright."""
_FEWEST_PIXELS = 20
_LEAST_SHARE = 0.12
_MOST_NAMES = 2

_RGB_TO_XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
)
_WHITE_POINT = np.array([0.95050, 1.0, 1.089])


def to_lab(rgb: npt.ArrayLike) -> Floats:
    """Convert sRGB values (0-255, last axis) to CIE L*a*b*, where distance is what eyes see."""
    scaled = np.asarray(rgb, dtype=np.float64) / 255
    linear = np.where(scaled > 0.04045, ((scaled + 0.055) / 1.055) ** 2.4, scaled / 12.92)
    xyz = linear @ _RGB_TO_XYZ.T / _WHITE_POINT
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


_NAMES = list(COLOURS)
_LAB = to_lab(list(COLOURS.values()))


def main_colours(picture: npt.NDArray[np.uint8]) -> list[str]:
    """Return up to two names of the colours that cover most of what is not background.

    White is never counted: on a white ground it cannot be told from the ground itself.
    """
    pixels = picture[::2, ::2].reshape(-1, 3)
    pixels = pixels[(pixels < _BACKGROUND).any(axis=1)]
    if len(pixels) < _FEWEST_PIXELS:
        return ["white"]
    distances = ((to_lab(pixels)[:, None] - _LAB[None]) ** 2).sum(axis=-1)
    counts = np.bincount(distances.argmin(axis=-1), minlength=len(_NAMES))
    counts[_NAMES.index("white")] = 0
    order = counts.argsort()[::-1]
    names = [_NAMES[i] for i in order if counts[i] > _LEAST_SHARE * len(pixels)]
    return names[:_MOST_NAMES]
