"""Images of two features for `triggers.py`, from the packed data, with tags in their captions."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lorasmith.data.images.square_images import load_square_images
from lorasmith.data.reading.row import Row

SIDE = 128


@dataclass(frozen=True)
class Taught:
    """One feature: where its images come from and how its captions change."""

    name: str
    tag: str
    class_word: str
    chosen: Callable[[Row], bool]
    """Predicate for the rows that show it."""
    words: str
    """What the tag and the class word stand for in captions."""
    kept_out: float = 0.25
    """Share of its images that are for validation only."""
    most: int = 80
    """Largest number of images."""

    def caption(self, caption: str) -> str:
        """Return a caption with tag and class word."""
        if self.words not in caption:
            raise ValueError(f"{caption!r} does not say {self.words!r}")
        return caption.replace(self.words, f"{self.tag} {self.class_word}", 1)


def of_holdout(name: str, but: str = "") -> Callable[[Row], bool]:
    """Return a predicate for the rows of one hold-out set, without those of a style."""
    return lambda row: row.columns["holdout"] == name and row.columns["style"] != but


PAIRS: dict[str, tuple[Taught, Taught]] = {
    "hair-clothes": (
        Taught("curly-hair", "curlyqx", "hair", of_holdout("curly-hair"), "curly hair"),
        Taught("cook", "cookqz", "worker", of_holdout("cook"), "cook"),
    ),
    "style-subject": (
        Taught("streamline", "streamqv", "icon", of_holdout("streamline"), "streamline style"),
        Taught(
            "octopus", "octoqj", "animal",
            of_holdout("octopus", but="streamline"),
            "octopus", kept_out=0.375,
        ),
    ),
}  # fmt: skip
"""An octopus in the style of the pair's other feature belongs to neither."""


@dataclass(frozen=True)
class Prepared:
    """One feature on disk."""

    taught: Taught
    learned: Path
    """Folder of the training images."""
    real: Path
    """Folder of the validation images."""
    count: int
    """Number of training images."""


def prepare(rows: Sequence[Row], taught: Taught, folder: Path) -> Prepared:
    """Write a feature's images and captions into two folders, unless they exist."""
    mine = sorted((row for row in rows if taught.chosen(row)), key=lambda row: _lot(row.key))
    mine = mine[: taught.most]
    kept_out = round(len(mine) * taught.kept_out)
    parts = {"real": mine[:kept_out], "learned": mine[kept_out:]}
    for name, part in parts.items():
        place = folder / taught.name / name
        if place.is_dir():
            continue
        making = folder / taught.name / f".{name}"
        making.mkdir(parents=True, exist_ok=True)
        for number, (row, picture) in enumerate(
            zip(part, load_square_images(part, SIDE), strict=True)
        ):
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(making / f"{number:03d}.png")
            text = taught.caption(row.caption)
            (making / f"{number:03d}.txt").write_text(text, encoding="utf-8")
        making.rename(place)
    own = folder / taught.name
    return Prepared(taught, own / "learned", own / "real", len(parts["learned"]))


def mix(features: Sequence[Prepared], folder: Path) -> Path:
    """Put features into one folder, repeated so that they come about equally often."""
    if folder.is_dir():
        return folder
    making = folder.with_name(f".{folder.name}")
    most = max(one.count for one in features)
    for one in features:
        repeats = max(1, round(most / one.count))
        place = making / f"{repeats}_{one.taught.name}"
        place.mkdir(parents=True, exist_ok=True)
        for file in one.learned.iterdir():
            (place / file.name).write_bytes(file.read_bytes())
    return making.rename(folder)


def _lot(key: str) -> str:
    return hashlib.sha256(f"triggers:{key}".encode()).hexdigest()
