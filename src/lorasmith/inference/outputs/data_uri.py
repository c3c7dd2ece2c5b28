"""Images as data URIs, for pages that load nothing."""

import base64
import io

from PIL import Image

_AS_IT_IS = 256
"""Longest side in pixels up to which a picture goes into a page unchanged."""
_LONGEST = 448
_QUALITY = 88


def is_embedded_unchanged(image: Image.Image) -> bool:
    """Tell whether a picture is small enough to go into a page as it is."""
    return max(image.size) <= _AS_IT_IS


def image_to_data_uri(image: Image.Image) -> str:
    """Return a picture as a data URI: PNG, or WebP scaled down where it is large."""
    stream = io.BytesIO()
    if is_embedded_unchanged(image):
        image.save(stream, format="PNG", optimize=True)
        return bytes_to_data_uri(stream.getvalue(), "png")
    small = image.convert("RGB")
    small.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
    small.save(stream, format="WEBP", quality=_QUALITY)
    return bytes_to_data_uri(stream.getvalue(), "webp")


def bytes_to_data_uri(encoded: bytes, kind: str) -> str:
    """Return the bytes of a picture file of a kind (png, webp) as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"
