"""Cutting a thing out of its white background."""

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops

NEAR_WHITE = 12
"""Largest distance from white, of 255, of background pixels (AVIF moves them a little)."""


def cut_out(picture: npt.NDArray[np.uint8]) -> Image.Image:
    """Return the thing in a picture on white, RGBA, cropped to its bounds.

    White that touches the border is background. Pixels at its edge are mixtures of the thing's
    color and white; the opacity of such a pixel follows from the color of the nearest inner pixels.

    Args:
        picture: uint8 ``[H, W, 3]``.
    """
    whiteness = picture.min(axis=-1)
    outside = _flood_from_border(whiteness >= 255 - NEAR_WHITE)
    inside = ~outside
    near = _dilate(outside, 2) & inside
    core = inside & ~near
    colors = _spread(picture.astype(np.float32), core, 4)
    # p = a c + (1 - a) 255, least squares over the channels
    contrast = 255.0 - colors
    covered = ((255.0 - picture) * contrast).sum(-1) / np.maximum((contrast**2).sum(-1), 900.0)
    alpha = np.where(core, 1.0, np.where(near, np.clip(covered, 0.0, 1.0), 0.0))
    # A white thing's edge has no contrast: it is opaque.
    alpha = np.where(near & ((contrast**2).sum(-1) < 900.0), 1.0, alpha)
    rgb = np.where(near[..., None], colors, picture)
    rgba = np.concatenate([rgb, alpha[..., None] * 255.0], -1).round().clip(0, 255).astype(np.uint8)
    image = Image.fromarray(rgba, "RGBA")
    box = image.getchannel("A").point(lambda value: 255 if value > 8 else 0).getbbox()
    return image.crop(box) if box else image


def _flood_from_border(is_open: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return the open pixels that touch the border, or others of that kind, side by side."""
    is_open = np.pad(is_open, 1, constant_values=True)
    flooded = np.zeros_like(is_open)
    flooded[0] = flooded[-1] = flooded[:, 0] = flooded[:, -1] = True
    # Along rows and columns in turn, whole runs of open pixels at once.
    runs = [_number_runs(is_open), _number_runs(is_open.T).T]
    while True:
        before = flooded
        for numbers in runs:
            reached = np.zeros(numbers.max() + 1, dtype=np.bool_)
            reached[numbers[flooded]] = True
            flooded = reached[numbers] & is_open
        if np.array_equal(flooded, before):
            return flooded[1:-1, 1:-1]


def _number_runs(is_open: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """Return a number for each pixel that all pixels of its run of open pixels in a row share."""
    walls = np.cumsum(~is_open, axis=1)
    return walls + np.arange(len(is_open))[:, None] * (is_open.shape[1] + 1)


def _dilate(mask: npt.NDArray[np.bool_], radius: int) -> npt.NDArray[np.bool_]:
    padded = np.pad(mask, radius)
    result = np.zeros_like(mask)
    for y in range(2 * radius + 1):
        for x in range(2 * radius + 1):
            if abs(y - radius) + abs(x - radius) <= radius:
                result |= padded[y : y + mask.shape[0], x : x + mask.shape[1]]
    return result


def _spread(
    picture: npt.NDArray[np.float32], known: npt.NDArray[np.bool_], rounds: int
) -> npt.NDArray[np.float32]:
    """Fill unknown pixels with the mean of their known neighbors, ``rounds`` times."""
    values = picture * known[..., None]
    weight = known.astype(np.float32)
    for _ in range(rounds):
        total, count = np.zeros_like(values), np.zeros_like(weight)
        for y, x in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            total += np.roll(values, (y, x), (0, 1))
            count += np.roll(weight, (y, x), (0, 1))
        new = (weight == 0) & (count > 0)
        values[new] = total[new] / count[new][:, None]
        weight[new] = 1.0
    return np.where(weight[..., None] > 0, values, picture)


def recolor(image: Image.Image, shift: int) -> Image.Image:
    """Return an RGBA image with its hue turned by ``shift`` of 256."""
    alpha = image.getchannel("A")
    hue, saturation, value = image.convert("RGB").convert("HSV").split()
    hue = hue.point(lambda level: (level + shift) % 256)
    turned = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    turned.putalpha(alpha)
    return turned


def line_drawing(image: Image.Image) -> Image.Image:
    """Return dark lines where an RGBA image has edges, white inside; of twice the size."""
    # Padded, so that an edge along the border gets its line; enlarged, so that lines are smooth.
    padded = Image.new("RGBA", (image.width + 2, image.height + 2), (0, 0, 0, 0))
    padded.paste(image, (1, 1))
    size = (2 * padded.width, 2 * padded.height)
    large = padded.convert("RGBa").resize(size, Image.Resampling.BICUBIC).convert("RGBA")
    alpha = large.getchannel("A")
    flat = Image.new("RGB", size, (255, 255, 255))
    flat.paste(large, mask=alpha)
    steepness = np.maximum(_measure_slope(flat.convert("L")), _measure_slope(alpha))
    ink = np.clip((steepness - 6.0) / 24.0, 0.0, 1.0)
    lines = Image.fromarray((255.0 - 235.0 * ink).astype(np.uint8))
    drawing = Image.merge("RGB", (lines, lines, lines))
    drawing.putalpha(ImageChops.lighter(alpha, Image.fromarray((ink * 255).astype(np.uint8))))
    return drawing


def _measure_slope(channel: Image.Image) -> npt.NDArray[np.float32]:
    return np.hypot(*np.gradient(np.asarray(channel, dtype=np.float32)))
