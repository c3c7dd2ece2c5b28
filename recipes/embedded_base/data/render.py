"""Render icons at 128x128 on white, all icons of a style at one scale, each nearly centred."""

import io
from collections.abc import Sequence
from multiprocessing.pool import Pool
from typing import Any

import numpy as np
import numpy.typing as npt
from catalogue import Artwork, Bitmap, Vector
from PIL import Image

from lorasmith.data.images.open_image import open_image

Picture = npt.NDArray[np.uint8]
"""Height, width, RGB."""

SIZE = 128
SUPERSAMPLE = 2
"""Pictures are composed at this multiple of the size, then reduced: smoother edges."""
MARGIN = 4
"""White pixels left on every side."""
CONTENT_TARGET = 118
"""Extent in pixels that 95% of the icons of a style stay below."""
MAX_FRAME = 150
"""Never enlarge the square an icon is drawn in beyond this many pixels."""
CENTRE_PULL = 0.6
"""How far content is moved from where its frame puts it (0) to the exact centre (1)."""

_OPAQUE_ENOUGH = 12
"""Alpha (of 255) above which a pixel counts as content; shadows fade out below it."""
_MEASURED_ICONS = 150
_INK_THRESHOLD = 248
_LEAST_INK = 0.006
_LEAST_CONTRAST = 3.0


def rasterise(artwork: Artwork, pixels: int) -> Image.Image:
    """Draw artwork so that its longer side has `pixels` pixels, on a transparent ground."""
    if isinstance(artwork, Bitmap):
        with open_image(artwork.path) as image:
            return image.convert("RGBA").resize((pixels, pixels), Image.Resampling.LANCZOS)
    # Imported here so that everything else works, and is tested, without the SVG renderer.
    import resvg_py

    longer_side = "width" if artwork.width >= artwork.height else "height"
    options: dict[str, Any] = {longer_side: pixels}
    png = resvg_py.svg_to_bytes(
        svg_string=svg_document(artwork),
        skip_system_fonts=True,  # the result must not depend on the fonts of this machine
        **options,
    )
    return open_image(io.BytesIO(bytes(png))).convert("RGBA")


def svg_document(vector: Vector) -> str:
    """Wrap an SVG fragment into a document."""
    box = f"{vector.left} {vector.top} {vector.width} {vector.height}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}" width="{vector.width}" height="{vector.height}" color="#202020">'
        f"{vector.body}</svg>"
    )


def content_box(image: Image.Image) -> tuple[int, int, int, int] | None:
    """Return the bounding box of what is visible in an RGBA image; None when nothing is."""
    mask = image.getchannel("A").point(lambda alpha: 255 if alpha > _OPAQUE_ENOUGH else 0)
    return mask.getbbox()


def content_extent(artwork: Artwork) -> float | None:
    """Return the longer side of the content as a fraction of the icon's own frame."""
    box = content_box(rasterise(artwork, SIZE))
    return max(box[2] - box[0], box[3] - box[1]) / SIZE if box else None


def frame_pixels(artworks: Sequence[Artwork], pool: Pool) -> float:
    """Choose the frame for a style, so that its large icons nearly fill the image.

    One frame for all icons of a style keeps the sizes that its artists chose: an ant stays small.
    """
    sample = artworks[:: max(1, len(artworks) // _MEASURED_ICONS)]
    extents = [extent for extent in pool.map(content_extent, sample, 8) if extent]
    return float(min(MAX_FRAME, CONTENT_TARGET / np.percentile(extents, 95)))


def draw(artwork: Artwork, frame: float) -> Picture | None:
    """Draw one icon in a frame of `frame` pixels; None when it turns out blank."""
    image = rasterise(artwork, round(frame * SUPERSAMPLE))
    box = content_box(image)
    return None if box is None else place_in_canvas(image, box)


def place_in_canvas(image: Image.Image, box: tuple[int, int, int, int]) -> Picture:
    """Put the content of an RGBA image on a white square and reduce it to the final size."""
    canvas, margin = SIZE * SUPERSAMPLE, MARGIN * SUPERSAMPLE
    left = (canvas - image.width) / 2 + box[0]
    top = (canvas - image.height) / 2 + box[1]
    content = image.crop(box)
    largest = canvas - 2 * margin
    if max(content.size) > largest:
        centre_x, centre_y = left + content.width / 2, top + content.height / 2
        scale = largest / max(content.size)
        width = max(1, round(content.width * scale))
        height = max(1, round(content.height * scale))
        content = content.resize((width, height), Image.Resampling.LANCZOS)
        left, top = centre_x - width / 2, centre_y - height / 2
    position = (
        _place_axis(left, content.width, canvas, margin),
        _place_axis(top, content.height, canvas, margin),
    )
    ground = Image.new("RGBA", (canvas, canvas), (255, 255, 255, 255))
    ground.alpha_composite(content, position)
    small = ground.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return np.asarray(small, dtype=np.uint8)


def _place_axis(start: float, length: int, canvas: int, margin: int) -> int:
    """Move content along one axis towards the centre, and inside the margins."""
    start += CENTRE_PULL * ((canvas - length) / 2 - start)
    return max(0, round(min(max(start, margin), canvas - margin - length)))


def is_faint(picture: Picture) -> bool:
    """Return whether an image is nearly empty (white glyphs, hairlines)."""
    ink = float((picture < _INK_THRESHOLD).any(-1).mean())
    return ink < _LEAST_INK or float(picture.std()) < _LEAST_CONTRAST
