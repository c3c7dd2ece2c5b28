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
class Feature:
    """One feature: where its images come from and how its captions change."""

    name: str
    tag: str
    class_word: str
    is_selected: Callable[[Row], bool]
    """Predicate for the rows that show it."""
    words: str
    """What the tag and the class word stand for in captions."""
    validation_share: float = 0.25
    """Share of its images that are for validation only."""
    max_images: int = 80
    """Largest number of images."""

    def caption(self, caption: str) -> str:
        """Return a caption with tag and class word."""
        if self.words not in caption:
            raise ValueError(f"{caption!r} does not say {self.words!r}")
        return caption.replace(self.words, f"{self.tag} {self.class_word}", 1)


def of_holdout(name: str, except_style: str = "") -> Callable[[Row], bool]:
    """Return a predicate for the rows of one hold-out set, without those of a style."""
    return lambda row: row.columns["holdout"] == name and row.columns["style"] != except_style


PAIRS: dict[str, tuple[Feature, Feature]] = {
    "hair-clothes": (
        Feature("curly-hair", "curlyqx", "hair", of_holdout("curly-hair"), "curly hair"),
        Feature("cook", "cookqz", "worker", of_holdout("cook"), "cook"),
    ),
    "style-subject": (
        Feature("streamline", "streamqv", "icon", of_holdout("streamline"), "streamline style"),
        Feature(
            "octopus", "octoqj", "animal",
            of_holdout("octopus", except_style="streamline"),
            "octopus", validation_share=0.375,
        ),
    ),
}  # fmt: skip
"""An octopus in the style of the pair's other feature belongs to neither."""


@dataclass(frozen=True)
class PreparedFeature:
    """One feature on disk."""

    feature: Feature
    training: Path
    """Folder of the training images."""
    validation: Path
    """Folder of the validation images."""
    count: int
    """Number of training images."""


def prepare(rows: Sequence[Row], feature: Feature, folder: Path) -> PreparedFeature:
    """Write a feature's images and captions into two folders, unless they exist."""
    selected = sorted(
        (row for row in rows if feature.is_selected(row)), key=lambda row: _lot(row.key)
    )
    selected = selected[: feature.max_images]
    num_validation = round(len(selected) * feature.validation_share)
    parts = {"real": selected[:num_validation], "learned": selected[num_validation:]}
    for name, part in parts.items():
        target = folder / feature.name / name
        if target.is_dir():
            continue
        temporary = folder / feature.name / f".{name}"
        temporary.mkdir(parents=True, exist_ok=True)
        for index, (row, image) in enumerate(
            zip(part, load_square_images(part, SIDE), strict=True)
        ):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(temporary / f"{index:03d}.png")
            text = feature.caption(row.caption)
            (temporary / f"{index:03d}.txt").write_text(text, encoding="utf-8")
        temporary.rename(target)
    root = folder / feature.name
    return PreparedFeature(feature, root / "learned", root / "real", len(parts["learned"]))


def mix(features: Sequence[PreparedFeature], folder: Path) -> Path:
    """Put features into one folder, repeated so that they come about equally often."""
    if folder.is_dir():
        return folder
    temporary = folder.with_name(f".{folder.name}")
    largest = max(feature.count for feature in features)
    for feature in features:
        repeats = max(1, round(largest / feature.count))
        target = temporary / f"{repeats}_{feature.feature.name}"
        target.mkdir(parents=True, exist_ok=True)
        for file in feature.training.iterdir():
            (target / file.name).write_bytes(file.read_bytes())
    return temporary.rename(folder)


def _lot(key: str) -> str:
    return hashlib.sha256(f"triggers:{key}".encode()).hexdigest()
