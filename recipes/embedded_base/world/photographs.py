"""Photographs: reading them, cutting squares, and what captions say of a square."""

import random
from dataclasses import dataclass
from pathlib import Path

from grammar import with_article
from PIL import Image

from lorasmith.data.images.open_image import open_image

SUFFIXES = (".avif", ".jpg", ".jpeg", ".png")
SHORTER_SIDE = 352
"""Larger photographs are scaled to this."""
LEAST_SIDE = 128
WHOLE_SHARE = 0.7
"""A square of at least this share of the shorter side shows what the photograph is of."""


@dataclass(frozen=True)
class Photograph:
    """A photograph and what it is of."""

    image: Image.Image
    subject: str
    """'rc car', from the name of its folder."""


def read_photographs(folder: Path) -> list[Photograph]:
    """Read the photographs in the folders of a folder, each named after what it shows."""
    files = find_photographs(folder)
    return [Photograph(_read(file), _name_subject(file.parent.name)) for file in files]


def find_photographs(folder: Path) -> list[Path]:
    """Return the photographs in the folders of a folder.

    Raises:
        ValueError: there are none, or one is too small to cut a square from.
    """
    files = sorted(path for path in folder.glob("*/*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"{folder}: no photographs in its folders ({', '.join(SUFFIXES)})")
    for file in files:
        with open_image(file) as image:
            if min(image.size) < LEAST_SIDE:
                raise ValueError(f"{file}: has fewer than {LEAST_SIDE} pixels on a side; remove it")
    return files


def cut_square(photograph: Image.Image, side: int, rng: random.Random) -> tuple[Image.Image, float]:
    """Return a random square scaled to ``side``, and its share of the shorter side.

    Squares are at least ``side`` large, so that none is blurred.
    """
    shorter = min(photograph.size)
    cut = round(side * (shorter / side) ** rng.random())
    x, y = rng.randint(0, photograph.width - cut), rng.randint(0, photograph.height - cut)
    square = photograph.crop((x, y, x + cut, y + cut))
    square = square.resize((side, side), Image.Resampling.LANCZOS)
    if rng.random() < 0.5:
        square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return square, cut / shorter


def describe_square(subject: str, share: float) -> list[str]:
    """Return captions of a square; small ones need not show the subject."""
    if share < WHOLE_SHARE:
        return ["a close-up photo", "photo, close-up", f"part of a photo of {_phrase(subject)}"]
    return [f"a photo of {_phrase(subject)}", f"photo, {subject}"]


def _phrase(subject: str) -> str:
    return "an rc car" if subject == "rc car" else with_article(subject)


def _name_subject(folder: str) -> str:
    return "".join(letter for letter in folder if not letter.isdigit()).replace("_", " ").strip()


def _read(file: Path) -> Image.Image:
    with open_image(file) as opened:
        image = opened.convert("RGB")
    factor = SHORTER_SIDE / min(image.size)
    if factor < 1.0:
        size = (round(image.width * factor), round(image.height * factor))
        image = image.resize(size, Image.Resampling.LANCZOS)
    return image
