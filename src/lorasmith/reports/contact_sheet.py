"""Contact sheets: groups of images side by side, each with a number and a caption."""

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_GAP = 8
_CAPTION_HEIGHT = 32
_FONT_SIZE = 12
_WRAP = 40

Cell = tuple[Sequence[Image.Image], str]
"""Images that are shown side by side, and the caption under them."""


def make_contact_sheet(cells: Sequence[Cell], columns: int = 6) -> Image.Image:
    """Arrange cells row by row, numbered from 1, each with its caption on at most two lines."""
    width = max(sum(image.width for image in images) for images, _ in cells) + _GAP
    height = max(image.height for images, _ in cells for image in images) + _CAPTION_HEIGHT + _GAP
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), "white")
    canvas = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_FONT_SIZE)
    for i, (images, caption) in enumerate(cells):
        row, column = divmod(i, columns)
        left, top = _GAP + column * width, _GAP + row * height
        offset = left
        for image in images:
            sheet.paste(image, (offset, top))
            offset += image.width
        text = "\n".join(textwrap.wrap(f"{i + 1}. {caption}", _WRAP)[:2])
        canvas.multiline_text((left, top + height - _CAPTION_HEIGHT - _GAP), text, "black", font)
    return sheet
