"""A classifier of drawing styles, trained on real images only.

Its features come from the embedded image encoder: mean and standard deviation of every channel of
every stage, which describe the style rather than the content. A linear layer on them is trained on
images of some concepts and validated on those of others.

The classes are the styles that the base model has never seen, and one class for the seven styles
that it knows, which are similar to each other and need not be distinguished.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from lorasmith.data.images.square_images import load_square_images, uint8_to_signed
from lorasmith.data.reading.row import Row
from lorasmith.models.vision.base import ImageEncoder

KNOWN = "one the base knows"
VALIDATION_SHARE = 0.2
_DECAY = 1e-4
_AT_ONCE = 64


def lot(text: str) -> float:
    """Return a pseudo-random number from 0 to 1, a hash of a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


@torch.no_grad()
def features(tower: ImageEncoder, pictures: torch.Tensor) -> torch.Tensor:
    """Return the style features of images ``[N, 3, H, W]`` in -1..1, ``[N, D]``."""
    parts = []
    for pictures_part in torch.split(pictures, _AT_ONCE):
        maps = tower.feature_maps(pictures_part)
        parts.append(
            torch.cat([part for feature_map in maps for part in _moments(feature_map)], dim=1)
        )
    return torch.cat(parts)


def _moments(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return maps.mean(dim=(2, 3)), maps.std(dim=(2, 3))


@torch.no_grad()
def features_of_rows(tower: ImageEncoder, rows: Sequence[Row], side: int) -> torch.Tensor:
    """Return the style features of real images, ``[N, D]``, decoding a few at a time."""
    return torch.cat(
        [
            features(
                tower, uint8_to_signed(load_square_images(rows[start : start + _AT_ONCE], side))
            )
            for start in range(0, len(rows), _AT_ONCE)
        ]
    )


@dataclass(frozen=True)
class StyleJudge:
    """A trained classifier."""

    tower: ImageEncoder
    styles: tuple[str, ...]
    mean: torch.Tensor
    deviation: torch.Tensor
    linear: nn.Linear
    accuracy: float
    """Accuracy on validation images, mean over the styles."""
    recall: dict[str, float]
    """Accuracy for each style."""
    validated_on: int
    """Number of validation images."""

    @torch.no_grad()
    def styles_of(self, pictures: torch.Tensor) -> list[str]:
        """Return the predicted styles of images ``[N, 3, H, W]`` in -1..1."""
        return self._named(features(self.tower, pictures))

    def _named(self, tower_features: torch.Tensor) -> list[str]:
        scores = self.linear((tower_features - self.mean) / self.deviation)
        return [self.styles[k] for k in scores.argmax(dim=1).tolist()]


def class_of(row: Row) -> str:
    """Return the class of a real image."""
    return KNOWN if row.columns["role"] == "base" else str(row.columns["style"])


def train_judge(tower: ImageEncoder, rows: Sequence[Row], side: int) -> StyleJudge:
    """Train on four fifths of the concepts, validate on the rest.

    Args:
        tower: the image encoder, frozen.
        rows: real images with the columns ``style``, ``role`` and ``name``.
        side: image size in pixels.
    """
    styles = tuple(sorted({class_of(row) for row in rows}))
    labels = torch.tensor([styles.index(class_of(row)) for row in rows])
    unseen = torch.tensor([lot(f"judge:{row.columns['name']}") < VALIDATION_SHARE for row in rows])
    tower_features = features_of_rows(tower, rows, side)
    mean, deviation = (
        tower_features[~unseen].mean(dim=0),
        tower_features[~unseen].std(dim=0).clamp_min(1e-6),
    )
    scaled = (tower_features - mean) / deviation
    linear = _fit(scaled[~unseen], labels[~unseen], len(styles))
    with torch.no_grad():
        right = linear(scaled[unseen]).argmax(dim=1) == labels[unseen]
    recall = {
        style: float(right[labels[unseen] == k].float().mean()) for k, style in enumerate(styles)
    }
    accuracy = sum(recall.values()) / len(recall)
    return StyleJudge(tower, styles, mean, deviation, linear, accuracy, recall, int(unseen.sum()))


def _fit(inputs: torch.Tensor, labels: torch.Tensor, classes: int) -> nn.Linear:
    """Return multinomial logistic regression with equally weighted classes."""
    torch.manual_seed(0)
    linear = nn.Linear(inputs.shape[1], classes)
    weight = len(labels) / (classes * torch.bincount(labels, minlength=classes).clamp_min(1))
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(linear(inputs), labels, weight)
        loss = loss + _DECAY * linear.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return linear.requires_grad_(False)
