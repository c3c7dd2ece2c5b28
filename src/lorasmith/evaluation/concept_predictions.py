"""What LoRA files change in a network's predictions, on real images of a concept."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lorasmith.adapters.files.lora_file import load_lora_file
from lorasmith.adapters.injection.inject import attach_lora
from lorasmith.evaluation.base_model import pil_to_tensor
from lorasmith.evaluation.concept import PROMPT_KINDS, EvalConcept
from lorasmith.evaluation.fixed_noise import FixedNoisePredictor, encode_images
from lorasmith.evaluation.image_generator import ImageGenerator
from lorasmith.evaluation.metrics import triggers
from lorasmith.evaluation.results import PairedLoss, SpaceLeak

if TYPE_CHECKING:
    from lorasmith.models.model import Model

_MAX_IMAGES = 16
"""Real images that predictions are compared on; of more, evenly spaced ones."""


class ConceptPredictions:
    """Predictions for a concept's noised real images, with and without LoRAs.

    Gates stay open: this measures the weights.
    """

    def __init__(self, generator: ImageGenerator, concept: EvalConcept) -> None:
        self._model = generator.model
        self._strict = generator.strict
        self._concept = concept
        images, self.captions = concept.sample(_MAX_IMAGES)
        """The images' captions, with the trigger word."""
        latents = encode_images(self._model, pil_to_tensor(images, generator.image_side))
        # With guidance, sampling runs twice as many rows at once.
        batch_size = 2 * generator.options.batch_size
        self._predictor = FixedNoisePredictor(self._model, latents, batch_size=batch_size)
        self._cache: dict[tuple[tuple[str, ...], tuple[Path, ...]], torch.Tensor] = {}

    def predict(self, prompts: Sequence[str], files: Sequence[Path] = ()) -> torch.Tensor:
        """Return predictions, float32 ``[N * T, C, h, w]``; repeated calls use a cache.

        Args:
            prompts: one for each image.
            files: LoRAs to attach.

        Raises:
            WeightsError: a file does not fit the model.
        """
        key = tuple(prompts), tuple(files)
        if key not in self._cache:
            with _attached(self._model, files, self._strict):
                self._cache[key] = self._predictor.predict(prompts)
        return self._cache[key]

    def leak(self, file: Path) -> SpaceLeak:
        """Return what a LoRA changes with and without its trigger word.

        Changes are relative to the base model's predictions; the floor is the change between two
        runs of the base model.
        """
        changes = {
            kind: triggers.changes(
                self.predict(prompts, [file]), self.predict(prompts), "prediction"
            )
            for kind, prompts in self._prompts().items()
        }
        repeated = self._predictor.predict(self.captions)
        floor = triggers.changes(repeated, self.predict(self.captions), "prediction")
        return leak_from_changes(changes.pop("present"), changes, floor)

    def paired_loss(self, file: Path) -> PairedLoss:
        """Return a LoRA's loss minus the base model's on these images."""
        lora = self._predictor.losses(self.predict(self.captions, [file]))
        base = self._predictor.losses(self.predict(self.captions))
        difference = lora - base
        count = len(difference)
        error = float(difference.std()) / count**0.5 if count > 1 else None
        return PairedLoss(float(difference.mean()), error, float(base.mean()))

    def _prompts(self) -> Mapping[str, Sequence[str]]:
        concept, count = self._concept, len(self.captions)
        class_prompts = [concept.remove_tag(caption) for caption in self.captions]
        other_prompts = {
            kind: concept.prompts_without_tag(kind, count)
            for kind in PROMPT_KINDS
            if kind != "class"
        }
        return {"present": self.captions, "class": class_prompts, **other_prompts}


def leak_from_changes(
    present: torch.Tensor, absent: Mapping[str, torch.Tensor], floor: torch.Tensor
) -> SpaceLeak:
    """Return the means of changes, and the leak ratio over all prompts without the trigger word.

    Args:
        present: changes with the trigger word, ``[N]``.
        absent: changes without it by kind of prompt, ``[N]`` each.
        floor: changes between two runs of the base model, ``[N]``.
    """
    return SpaceLeak(
        present=float(present.mean()),
        absent={kind: float(changes.mean()) for kind, changes in absent.items()},
        ratio=triggers.leak_ratio(torch.cat(list(absent.values())), present),
        floor=float(floor.mean()),
    )


@contextmanager
def _attached(model: "Model", files: Sequence[Path], strict: bool) -> Iterator[None]:
    """Attach LoRAs inside the block, at strength 1 and with open gates."""
    with ExitStack() as stack:
        for file in files:
            lora = load_lora_file(file, ignore_unknown=not strict)
            stack.callback(attach_lora(model, lora, strict=strict).detach)
        yield
