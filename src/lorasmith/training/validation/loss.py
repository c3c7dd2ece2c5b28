"""The loss on a fixed grid of pictures, noise levels and noise, beside the base model's.

The loss of a training step says little: it differs tenfold with the noise level that was drawn.
Measured again and again on the same grid, and as a difference from the base model on that grid,
even a small gain is seen.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from lorasmith.adapters.injection.trainable import TrainableLora
from lorasmith.core.batch_rng import BatchRng
from lorasmith.core.device import make_generator
from lorasmith.training.data.batch import Batch
from lorasmith.training.data.dataset import TrainDataset
from lorasmith.training.losses import Noise
from lorasmith.training.train_step import DiffusionLoss

_STREAM = 2
"""Position in a run's stream of random numbers that nothing else has."""
_MOST = 32
"""Pictures that are measured at most; of more, evenly spread ones."""


@dataclass(frozen=True)
class ValidationResult:
    """What the grid gave."""

    loss: float
    """Mean over the grid, with the adapters as they are."""
    base: float
    """The same without them."""

    def log_entries(self, name: str) -> dict[str, float]:
        """Return the log's entries under a name, ``held_out`` or ``fixed_loss``."""
        return {name: self.loss, f"{name}_base": self.base, f"{name}_gain": self.base - self.loss}


class ValidationLoss:
    """Pictures, noise levels and noise that stay the same for a whole run."""

    def __init__(
        self, objective: DiffusionLoss, data: TrainDataset, levels: int, batch_size: int, seed: int
    ) -> None:
        """Lay out the grid.

        Args:
            objective: the run's loss; its min-SNR weights and noise offset are left out here.
            data: held-out pictures, or those of the training where there are none.
            levels: how many noise levels, evenly spread.
            batch_size: cells measured at once.
            seed: the run's seed.
        """
        plain = objective.settings.model_copy(update={"min_snr": 0.0, "noise_offset": 0.0})
        self._objective = objective._replace(settings=plain)
        self._data = data
        self._batch_size = batch_size
        self._seed = seed
        steps = objective.process.num_timesteps
        self._levels = [int((k + 0.5) * steps / levels) for k in range(levels)]
        self._numbers = _spread(data.num_tagged, _MOST)

    @torch.no_grad()
    def loss(self) -> float:
        """Return the mean loss over the grid with the adapters as they are."""
        total, count = 0.0, 0
        for batch, drawn in self._cells():
            losses = self._objective.compute(batch, drawn)
            total += float(losses.double().sum())
            count += len(losses)
        return total / count

    def measure(self, trained: TrainableLora, base: float | None) -> ValidationResult:
        """Measure with adapters and, unless that is known already, without them.

        Args:
            trained: the adapters; dropout is off while this runs.
            base: the base model's loss from an earlier call.
        """
        trained.train(False)
        try:
            loss = self.loss()
            if base is None:
                trained.set_strength(0.0)
                base = self.loss()
        finally:
            trained.set_strength(1.0)
            trained.train(True)
        return ValidationResult(loss, base)

    def _cells(self) -> Iterator[tuple[Batch, Noise]]:
        for numbers, levels in self._chunks():
            draws = make_generator(self._seed, _STREAM, device=self._device)
            batch = self._data.get_batch(numbers, BatchRng(draws, len(numbers)))
            shape = batch.latents.shape[1:]
            noise = torch.stack(
                [
                    torch.randn(shape, generator=make_generator(self._seed, _STREAM, number, level))
                    for number, level in zip(numbers.tolist(), levels.tolist(), strict=True)
                ]
            )
            device = batch.latents.device
            yield batch, Noise(levels.to(device), noise.to(device))

    def _chunks(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield pictures and noise levels of one bucket each, int64 ``[B]`` both."""
        buckets: dict[int, list[int]] = {}
        for number in self._numbers:
            buckets.setdefault(self._data.bucket_indices[number], []).append(number)
        levels = torch.tensor(self._levels)
        for own in buckets.values():
            numbers = torch.tensor(own).repeat_interleave(len(levels))
            both = torch.stack([numbers, levels.repeat(len(own))])
            for part in torch.split(both, self._batch_size, dim=1):
                yield part[0], part[1]

    @property
    def _device(self) -> torch.device:
        return self._data.loss_weights.device


def _spread(count: int, most: int) -> list[int]:
    """Return at most ``most`` numbers below ``count``, evenly spread."""
    if count <= most:
        return list(range(count))
    return [place * count // most for place in range(most)]
