"""Image grids: a plain one, and one with labels for reports."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

MAX_GRID_SIDE = 8192
"""Images are scaled down so that a grid's images cover no more pixels along either side."""

_GAP = 6
_FONT_SIZE = 13
_BACKGROUND, _FOREGROUND = "white", "black"

Point = tuple[int, int]


def make_grid(images: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """Return a grid of images row by row without gaps, as A1111 makes it.

    Args:
        images: at least one; cells are as large as the largest, smaller ones are centred.
        columns: images per row; None makes the grid nearly square, wider rather than taller.
    """
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    cell = _cell_size(images, columns, rows)
    grid = Image.new("RGB", (columns * cell[0], rows * cell[1]), _FOREGROUND)
    for index, image in enumerate(images):
        y, x = divmod(index, columns)
        _paste(grid, image, (x * cell[0], y * cell[1]), cell)
    return grid


def make_labelled_grid(
    rows: Sequence[Sequence[Image.Image | None]],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    title: str = "",
) -> Image.Image:
    """Return a grid of images with labels, for reports.

    Args:
        rows: images row by row; None leaves a cell empty. At least one image.
        row_labels: on the left, one per row, wrapped; may be left out.
        column_labels: on top, one per column, wrapped; may be left out.
        title: a line above everything.
    """
    columns = max(len(row) for row in rows)
    cell = _cell_size([image for row in rows for image in row if image], columns, len(rows))
    left_labels = [_wrap(label, max(cell[0], 120)) for label in row_labels]
    top_labels = [_wrap(label, cell[0]) for label in column_labels]
    layout = _Layout(
        cell, _left_width(left_labels), _top_height(title, top_labels), columns, len(rows)
    )
    sheet = Image.new("RGB", layout.sheet_size(_text_size(title)[0]), _BACKGROUND)
    _write(sheet, title, (_GAP, _GAP))
    for x, label in enumerate(top_labels):
        _write(sheet, label, (layout.cell_origin(x, 0)[0], layout.top - _text_size(label)[1]))
    for y, label in enumerate(left_labels):
        offset = max(0, cell[1] - _text_size(label)[1]) // 2
        _write(sheet, label, (_GAP, layout.cell_origin(0, y)[1] + offset))
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            if image is not None:
                _paste(sheet, image, layout.cell_origin(x, y), cell)
    return sheet


@dataclass(frozen=True)
class _Layout:
    """Where the cells of a labelled grid lie, in pixels."""

    cell: Point
    left: int
    top: int
    columns: int
    rows: int

    def cell_origin(self, x: int, y: int) -> Point:
        """Return the upper left corner of a cell."""
        width, height = self.cell
        return self.left + _GAP + x * (width + _GAP), self.top + _GAP + y * (height + _GAP)

    def sheet_size(self, title_width: int) -> Point:
        """Return the sheet's width and height."""
        width, height = self.cell_origin(self.columns, self.rows)
        return max(width, title_width + 2 * _GAP), height


def _left_width(labels: Sequence[str]) -> int:
    return _GAP + max(_text_size(label)[0] for label in labels) if labels else 0


def _top_height(title: str, labels: Sequence[str]) -> int:
    parts = [_text_size(title)[1], max((_text_size(label)[1] for label in labels), default=0)]
    return sum(_GAP + height for height in parts if height)


def _cell_size(images: Sequence[Image.Image], columns: int, rows: int) -> Point:
    """Return a cell's width and height so that the grid stays within `MAX_GRID_SIDE`."""
    width, height = max(i.width for i in images), max(i.height for i in images)
    shrink = min(1.0, MAX_GRID_SIDE / (width * columns), MAX_GRID_SIDE / (height * rows))
    return max(1, int(width * shrink)), max(1, int(height * shrink))


def _paste(sheet: Image.Image, image: Image.Image, origin: Point, cell: Point) -> None:
    shrink = min(1.0, cell[0] / image.width, cell[1] / image.height)
    if shrink < 1.0:
        size = (max(1, int(image.width * shrink)), max(1, int(image.height * shrink)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    inset = (cell[0] - image.width) // 2, (cell[1] - image.height) // 2
    sheet.paste(image, (origin[0] + inset[0], origin[1] + inset[1]))


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_FONT_SIZE)


def _write(sheet: Image.Image, text: str, origin: Point) -> None:
    ImageDraw.Draw(sheet).multiline_text(origin, text, _FOREGROUND, font=_font())


def _text_size(text: str) -> Point:
    """Return the width and height of text in pixels."""
    if not text:
        return 0, 0
    box = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox((0, 0), text, font=_font())
    return math.ceil(box[2]), math.ceil(box[3])


def _wrap(label: str, width: int) -> str:
    """Break a label at spaces so that its lines fit, where words are short enough."""
    lines: list[str] = []
    for word in label.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _text_size(longer)[0] <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)
