"""Draw labelled sheets of each kind of row, to look at.

python sheet.py --emoji work/emoji128.tar --photographs FOLDER --out work/sheets
"""

import argparse
import sys
import textwrap
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "data"))

from inputs import read_inputs
from people.attributes import HOLDOUTS, NEVER_DRAWN
from PIL import Image, ImageDraw, ImageFont
from rows import COUNTS, HOLDOUT_PREFIX, draw_row

LABEL_HEIGHT = 76
PADDING = 6
FONT_SIZE = 9
LETTERS = 28
"""Of a label's line."""


def main() -> None:
    """Write one sheet for each kind."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--emoji", type=Path, required=True)
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--columns", type=int, default=12)
    parser.add_argument("--rows", type=int, default=6)
    parser.add_argument("--first", type=int, default=0, help="number of the first picture")
    options = parser.parse_args()
    inputs = read_inputs(options.emoji, options.photographs)
    options.out.mkdir(parents=True, exist_ok=True)
    holdouts = [f"{HOLDOUT_PREFIX}{name}" for name in HOLDOUTS if name != NEVER_DRAWN]
    numbers = range(options.first, options.first + options.columns * options.rows)
    for kind in [*COUNTS, *holdouts]:
        made = [draw_row(inputs, kind, number) for number in numbers]
        # Tags and sentences in turn.
        labels = [
            row["captions"][3 * (index % 2) if len(row["captions"]) > 3 else 0]
            for index, (_, row) in enumerate(made)
        ]
        sheet = draw_sheet([image for image, _ in made], labels, options.columns)
        sheet.save(options.out / f"{kind}.png")
        print(options.out / f"{kind}.png")


def draw_sheet(images: list[Image.Image], labels: list[str], columns: int) -> Image.Image:
    """Return pictures of one size in rows, each above its label."""
    width, height = images[0].width + PADDING, images[0].height + LABEL_HEIGHT
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT_SIZE)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        x, y = index % columns * width, index // columns * height
        sheet.paste(image, (x, y))
        text = "\n".join(textwrap.wrap(label, LETTERS)[:6])
        draw.multiline_text((x, y + images[0].height + 2), text, (0, 0, 0), font, spacing=1)
    return sheet


if __name__ == "__main__":
    main()
