"""Contact sheets: pictures side by side with a number and a caption under each group."""

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_GAP = 8
_TEXT_HEIGHT = 32
_FONT_SIZE = 12
_WRAP = 40

Cell = tuple[Sequence[Image.Image], str]
"""Pictures that are shown side by side, and the words under them."""


def make_contact_sheet(cells: Sequence[Cell], columns: int = 6) -> Image.Image:
    """Lay cells out row by row, numbered from 1, each with its caption on at most two lines."""
    width = max(sum(image.width for image in images) for images, _ in cells) + _GAP
    height = max(image.height for images, _ in cells for image in images) + _TEXT_HEIGHT + _GAP
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_FONT_SIZE)
    for number, (images, caption) in enumerate(cells):
        y, x = divmod(number, columns)
        left, top = _GAP + x * width, _GAP + y * height
        offset = left
        for image in images:
            sheet.paste(image, (offset, top))
            offset += image.width
        words = "\n".join(textwrap.wrap(f"{number + 1}. {caption}", _WRAP)[:2])
        draw.multiline_text((left, top + height - _TEXT_HEIGHT - _GAP), words, "black", font)
    return sheet
