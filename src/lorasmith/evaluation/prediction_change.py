"""What LoRA files change in a network's predictions, on real pictures of a feature."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lorasmith.adapters.files.lora_file import load_lora_file
from lorasmith.adapters.injection.inject import AttachedLora, attach_lora
from lorasmith.evaluation.base_model import pil_to_tensor
from lorasmith.evaluation.concept import PROMPT_KINDS, EvalConcept
from lorasmith.evaluation.image_generator import ImageGenerator
from lorasmith.evaluation.metrics import triggers
from lorasmith.evaluation.predictions import FixedNoisePredictor, encode_images
from lorasmith.evaluation.results import SpaceLeak

if TYPE_CHECKING:
    from lorasmith.models.load import Model

_MOST = 16
"""Real pictures that predictions are compared on; of more, evenly spread ones."""


@dataclass(frozen=True)
class PairedLoss:
    """A LoRA's loss less the base model's, on the same pictures, noise levels and noise."""

    difference: float
    """Mean over the pictures; below zero is better than the base."""
    error: float | None
    """Standard error of that mean; None for a single picture."""
    base: float
    """The base model's own loss."""


class ConceptPredictions:
    """A feature's real pictures, noised, as a question to a network with or without LoRAs.

    Gates are not obeyed: this is about what the weights do.
    """

    def __init__(self, studio: ImageGenerator, feature: EvalConcept) -> None:
        self._model = studio.model
        self._feature = feature
        pictures, self.captions = feature.sample(_MOST)
        """Their captions, with the tag."""
        latents = encode_images(self._model, pil_to_tensor(pictures, studio.image_side))
        # Guidance draws twice as many rows at once.
        self._noise = FixedNoisePredictor(
            self._model, latents, batch_size=2 * studio.options.batch_size
        )
        self._known: dict[tuple[tuple[str, ...], tuple[Path, ...]], torch.Tensor] = {}

    def predict(self, texts: Sequence[str], files: Sequence[Path] = ()) -> torch.Tensor:
        """Return predictions, float32 ``[N * T, C, h, w]``, one text for each picture.

        What was asked before is not asked again.

        Raises:
            WeightsError: a file does not fit the model.
        """
        key = tuple(texts), tuple(files)
        if key not in self._known:
            with _at_work(self._model, files):
                self._known[key] = self._noise.predict(texts)
        return self._known[key]

    def leak(self, file: Path) -> SpaceLeak:
        """Return what a LoRA changes with and without its tag, relative to the base's predictions.

        Asked twice, the base gives the floor.
        """
        changed = {
            kind: triggers.changes(self.predict(texts, [file]), self.predict(texts), "prediction")
            for kind, texts in self._texts().items()
        }
        again = self._noise.predict(self.captions)
        floor = triggers.changes(again, self.predict(self.captions), "prediction")
        return leak_from_changes(changed.pop("present"), changed, floor)

    def paired_loss(self, file: Path) -> PairedLoss:
        """Return what a LoRA gains over the base model on these pictures."""
        ours = self._noise.losses(self.predict(self.captions, [file]))
        base = self._noise.losses(self.predict(self.captions))
        difference = ours - base
        count = len(difference)
        error = float(difference.std()) / count**0.5 if count > 1 else None
        return PairedLoss(float(difference.mean()), error, float(base.mean()))

    def _texts(self) -> Mapping[str, Sequence[str]]:
        count, one = len(self.captions), self._feature
        plain = [one.remove_tag(caption) for caption in self.captions]
        others = {
            kind: one.prompts_without_tag(kind, count) for kind in PROMPT_KINDS if kind != "class"
        }
        return {"present": self.captions, "class": plain, **others}


def leak_from_changes(
    present: torch.Tensor, absent: Mapping[str, torch.Tensor], floor: torch.Tensor
) -> SpaceLeak:
    """Return the means of changes ``[.]``, and the leak ratio of all without the tag together."""
    return SpaceLeak(
        present=float(present.mean()),
        absent={kind: float(changes.mean()) for kind, changes in absent.items()},
        ratio=triggers.leak_ratio(torch.cat(list(absent.values())), present),
        floor=float(floor.mean()),
    )


@contextmanager
def _at_work(model: "Model", files: Sequence[Path]) -> Iterator[None]:
    """Attach LoRAs while the block runs, at full weight and with open gates."""
    attached: list[AttachedLora] = []
    try:
        for file in files:
            attached.append(attach_lora(model, load_lora_file(file)))  # noqa: PERF401 (detach what got in)
        yield
    finally:
        for one in reversed(attached):
            one.detach()
