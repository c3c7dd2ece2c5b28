"""What the pages have in common: their template environment, style sheet and pictures."""

import base64
import io
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from jinja2 import Template

_AS_IT_IS = 256
"""Longest side in pixels up to which a picture goes into a page unchanged."""
_LONGEST = 448
_QUALITY = 88


def page_template(package: str, name: str) -> "Template":
    """Return a page's template; ``style.css`` of this room can be included in it."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    rooms = dict.fromkeys((package, "lorasmith.evaluation"))
    loader = ChoiceLoader([PackageLoader(room, package_path=".") for room in rooms])
    # Everything is escaped: captions, tags and names are the user's, and may be anything.
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    return environment.get_template(name)


def fits(image: Image.Image) -> bool:
    """Tell whether a picture is small enough to go into a page as it is."""
    return max(image.size) <= _AS_IT_IS


def picture_uri(image: Image.Image) -> str:
    """Return a picture as a data URI: PNG, or WebP scaled down where it is large."""
    stream = io.BytesIO()
    if fits(image):
        image.save(stream, format="PNG", optimize=True)
        return encoded_uri(stream.getvalue(), "png")
    small = image.convert("RGB")
    small.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
    small.save(stream, format="WEBP", quality=_QUALITY)
    return encoded_uri(stream.getvalue(), "webp")


def encoded_uri(encoded: bytes, kind: str) -> str:
    """Return the bytes of a picture file of a kind (png, webp) as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"
