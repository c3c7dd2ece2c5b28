"""Zero-shot classification (arXiv:2103.00020, section 3.1): which of some texts fits an image."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image

from lorasmith.core.errors import ConfigError, DataError, WeightsError
from lorasmith.core.regular_files import read_regular_file
from lorasmith.data.images.decode import decode_image
from lorasmith.data.reading.links import LinkPolicy
from lorasmith.data.reading.listing import DatasetListing, printable_name
from lorasmith.data.reading.row import MAX_FILE_BYTES, is_image_name
from lorasmith.data.reading.walk import walk_folders
from lorasmith.evaluation.feature_extractor import FeatureExtractor, normalize

PLACE = "{}"
"""Where a label goes in a template."""
_BATCH_SIZE = 8
"""Decoded images that are in memory at once."""


@dataclass(frozen=True)
class ClassifiedImage:
    """An image's probabilities, or why there are none."""

    path: Path
    probabilities: dict[str, float] = field(default_factory=dict)
    """By label, in the labels' order; their sum is 1."""
    problem: str = ""
    """Why the image could not be read; empty where it was."""

    def ranking(self) -> list[tuple[str, float]]:
        """Return labels and probabilities, the largest first."""
        return sorted(self.probabilities.items(), key=lambda item: -item[1])


def parse_labels(text: str) -> list[str]:
    """Split labels at commas.

    Raises:
        ConfigError: there are fewer than two, or one is there twice.
    """
    labels = [label.strip() for label in text.split(",") if label.strip()]
    twice = next((label for k, label in enumerate(labels) if label in labels[:k]), None)
    if twice is not None:
        raise ConfigError(f"--labels: {twice!r} is there twice")
    if len(labels) < 2:
        raise ConfigError('--labels: give at least two, separated by commas: "a dog, a cat"')
    return labels


def find_images(paths: Sequence[Path]) -> Iterator[Path | ClassifiedImage]:
    """Yield files as they are and folders' visible images, sorted; problems of folders as such.

    Masks (`name.mask.png`) and images behind links out of a folder are left out.
    """
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        listing, links = DatasetListing(), LinkPolicy(path, False)
        images = [
            folder / name
            for folder, names in walk_folders(path, links, listing)
            for name in names
            if is_image_name(name) and not links.refuses(folder / name)
        ]
        yield from sorted(images)
        if not images and not listing.problems:
            yield ClassifiedImage(path, problem="there are no images in this folder")
        for problem in listing.problems:
            yield ClassifiedImage(path / problem.file, problem=problem.detail)


def classify_images(
    paths: Sequence[Path],
    labels: Sequence[str],
    extractor: FeatureExtractor,
    template: str = PLACE,
) -> Iterator[ClassifiedImage]:
    """Yield the probability of each label for each image, in the order of `find_images`.

    With unit-length features f of the image and g of the texts, and the temperature s that was
    learned with them, p = softmax(s <f, g>). An image that cannot be read stops no other.

    Args:
        paths: images, and folders of images.
        labels: at least two.
        extractor: the network that compares; one that has a text encoder.
        template: the text of a label, with `{}` in its place.

    Raises:
        ConfigError: the template has no place for the label.
        WeightsError: the extractor has no text encoder.
    """
    if PLACE not in template:
        raise ConfigError(f"--template: {template!r} has no {PLACE}, where the label goes")
    texts = extractor.text_features([template.replace(PLACE, label) for label in labels])
    if texts is None:
        raise WeightsError(
            f"{extractor.name}: has no text encoder to compare labels with; use a CLIP model or a "
            "model folder with an image_tower"
        )
    entries = list(find_images(paths))
    for start in range(0, len(entries), _BATCH_SIZE):
        opened = [_open(entry) for entry in entries[start : start + _BATCH_SIZE]]
        images = [image for _, image in opened if image is not None]
        rows = iter(_compute_probabilities(images, texts, extractor) if images else ())
        for result, image in opened:
            if image is None:
                yield result
            else:
                yield ClassifiedImage(result.path, dict(zip(labels, next(rows), strict=True)))


def _compute_probabilities(
    images: Sequence[Image.Image], texts: torch.Tensor, extractor: FeatureExtractor
) -> list[list[float]]:
    features = normalize(extractor.image_features(images))
    logits = extractor.logit_scale * features.double() @ normalize(texts).double().T
    probabilities: list[list[float]] = logits.softmax(dim=1).tolist()
    return probabilities


def _open(entry: Path | ClassifiedImage) -> tuple[ClassifiedImage, Image.Image | None]:
    if isinstance(entry, ClassifiedImage):
        return entry, None
    path = entry
    name = printable_name(str(path))
    try:
        return ClassifiedImage(path), decode_image(read_regular_file(path, MAX_FILE_BYTES), name)
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    except DataError as error:
        problem = str(error).removeprefix(f"{name}: ")
    return ClassifiedImage(path, problem=problem), None
