"""Make the demo's pictures: 24 of a style that the embedded model has never seen.

    python recipes/demo_data/make.py emoji128.tar src/lorasmith/demo_data

The style is Fluent Emoji High Contrast by Microsoft (MIT): solid black shapes on white. The
pictures are taken from the packed emoji data as they are; in the captions the words for the style
are replaced by the demo's tag.
"""

import sys
from pathlib import Path

from PIL import Image

from lorasmith.core.files import replacing, write_text
from lorasmith.data.picture import decode
from lorasmith.data.rows import Row, read_rows

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

ATTRIBUTION = """\
The pictures in this folder are from Fluent Emoji (high contrast) by Microsoft,
https://github.com/microsoft/fluentui-emoji
Changed: rasterised at 128 x 128 pixels on white, recentred, stored in shades of grey.

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


def main(packed: Path, out: Path) -> None:
    """Write ``name.png``, ``name.txt`` for each concept, and the attribution."""
    rows = {row.columns["name"]: row for row in read_rows(packed) if row.columns["style"] == STYLE}
    missing = [name for name in CONCEPTS if name not in rows]
    if missing:
        sys.exit(f"{packed}: has no {STYLE} picture of {', '.join(missing)}")
    for name in CONCEPTS:
        write_pair(rows[name], out / name.replace(" ", "-"))
    write_text(out / "ATTRIBUTION.txt", ATTRIBUTION)
    print(f"{len(CONCEPTS)} pictures in {out}")


def write_pair(row: Row, stem: Path) -> None:
    """Write one picture and its caption."""
    if STYLE_WORDS not in row.caption:
        sys.exit(f"{row.key}: its caption {row.caption!r} does not name the style")
    picture: Image.Image = decode(row.read_bytes(), row.key).convert("L")
    with replacing(stem.with_suffix(".png")) as temporary:
        picture.save(temporary, format="PNG", optimize=True)
    caption = row.caption.replace(STYLE_WORDS, f"{TAG} style")
    write_text(stem.with_suffix(".txt"), caption + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
