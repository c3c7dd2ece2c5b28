"""Images as data URIs, for pages that load nothing."""

import base64
import io

from PIL import Image

_MAX_UNCHANGED_SIDE = 256
"""Longest side in pixels up to which an image goes into a page unchanged."""
_MAX_SIDE = 448
_QUALITY = 88


def is_embedded_unchanged(image: Image.Image) -> bool:
    """Tell whether an image is small enough to go into a page unchanged."""
    return max(image.size) <= _MAX_UNCHANGED_SIDE


def image_to_data_uri(image: Image.Image) -> str:
    """Return an image as a data URI: PNG, or a smaller WebP where it is large."""
    stream = io.BytesIO()
    if is_embedded_unchanged(image):
        image.save(stream, format="PNG", optimize=True)
        return bytes_to_data_uri(stream.getvalue(), "png")
    small = image.convert("RGB")
    small.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.LANCZOS)
    small.save(stream, format="WEBP", quality=_QUALITY)
    return bytes_to_data_uri(stream.getvalue(), "webp")


def bytes_to_data_uri(encoded: bytes, image_format: str) -> str:
    """Return the bytes of an image file (png, webp) as a data URI."""
    return f"data:image/{image_format};base64,{base64.b64encode(encoded).decode()}"
