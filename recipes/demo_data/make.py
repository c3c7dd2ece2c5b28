"""Make the demo's images: 24 of a style and 12 of clothes that the embedded model has never seen.

    python recipes/demo_data/make.py emoji128.tar src/lorasmith/demo_data src/lorasmith/demo_cook

The style is Fluent Emoji High Contrast by Microsoft (MIT): solid black shapes on white. The
clothes are those of cooks in Fluent Emoji, flat and with gradients, by the same. The images come
unchanged from the packed emoji data; in the captions a trigger word replaces the words for the
style or the cook.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from lorasmith.core.files import atomic_write, write_text
from lorasmith.data.images.decode import decode_image
from lorasmith.data.reading.reader import Row, read_rows

STYLE, STYLE_WORDS = "fluent-mono", "high contrast style"
TAG = "inkmono"
CONCEPTS = (
    "cat face", "elephant", "owl", "tropical fish", "turtle", "rabbit face",
    "banana", "hamburger", "soft ice cream", "strawberry", "hot beverage", "mushroom",
    "grinning face", "face with tears of joy", "old woman", "skull",
    "key", "umbrella", "light bulb", "camera", "teapot", "alarm clock",
    "sailboat", "automobile",
)  # fmt: skip
"""Unicode names: animals, food, faces, things, vehicles."""

COOK_STYLES = ("fluent", "fluent-flat")
COOK_TAG, COOK_CLASS = "cookqz", "worker"

FLUENT_MONO = """\
The pictures in this folder are from Fluent Emoji (high contrast) by Microsoft,
https://github.com/microsoft/fluentui-emoji
Changed: rasterised at 128 x 128 pixels on white, recentred, stored in shades of grey.

"""
FLUENT = """\
The pictures in this folder are from Fluent Emoji (color and flat) by Microsoft,
https://github.com/microsoft/fluentui-emoji
Changed: rasterised at 128 x 128 pixels on white, recentred.

"""
MIT = """\
MIT License

Copyright (c) Microsoft Corporation.

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""


def main(packed: Path, styles: Path, clothes: Path) -> None:
    """Write ``name.png`` and ``name.txt`` for each image, and the attributions."""
    rows = read_rows(packed)
    write_style({row.columns["name"]: row for row in rows if row.columns["style"] == STYLE}, styles)
    write_clothes(
        [
            row
            for row in rows
            if row.columns["holdout"] == "cook" and row.columns["style"] in COOK_STYLES
        ],
        clothes,
    )


def write_style(rows: dict[str, Row], out: Path) -> None:
    """Write the images of the style, one of each concept."""
    missing = [name for name in CONCEPTS if name not in rows]
    if missing:
        sys.exit(f"the data have no {STYLE} picture of {', '.join(missing)}")
    for name in CONCEPTS:
        row, stem = rows[name], out / name.replace(" ", "-")
        picture = decode_image(row.read_bytes(), row.key).convert("L")
        write_pair(picture, changed(row, STYLE_WORDS, f"{TAG} style"), stem)
    write_text(out / "ATTRIBUTION.txt", FLUENT_MONO + MIT)
    print(f"{len(CONCEPTS)} pictures in {out}")


def write_clothes(rows: Sequence[Row], out: Path) -> None:
    """Write the cooks."""
    if not rows:
        sys.exit(f"the data have no cooks in {' or '.join(COOK_STYLES)}")
    for row in rows:
        stem = out / re.sub(r"[^a-z]+", "-", f"{row.columns['style']} {row.columns['name']}")
        picture = decode_image(row.read_bytes(), row.key)
        write_pair(picture, changed(row, "cook", f"{COOK_TAG} {COOK_CLASS}"), stem)
    write_text(out / "ATTRIBUTION.txt", FLUENT + MIT)
    print(f"{len(rows)} pictures in {out}")


def changed(row: Row, words: str, tagged: str) -> str:
    """Return a caption with words replaced by the tag."""
    if words not in row.caption:
        sys.exit(f"{row.key}: its caption {row.caption!r} does not say {words!r}")
    return row.caption.replace(words, tagged, 1)


def write_pair(picture: Image.Image, caption: str, stem: Path) -> None:
    """Write one image and its caption."""
    with atomic_write(stem.with_suffix(".png")) as temporary:
        picture.save(temporary, format="PNG", optimize=True)
    write_text(stem.with_suffix(".txt"), caption + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:]))
