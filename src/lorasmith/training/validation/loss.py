"""The validation loss: on fixed images, timesteps and noise, compared with the base model's.

The loss of a training step says little: it differs tenfold with the noise levels drawn. Measured
on the same grid again and again, and as a difference from the base model, even a small gain shows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from lorasmith.core.batch_rng import BatchRng
from lorasmith.core.device import make_generator
from lorasmith.training.data.batch import Batch
from lorasmith.training.data.dataset import TrainDataset
from lorasmith.training.losses import Noise, diffusion_loss
from lorasmith.training.methods import TrainableModules
from lorasmith.training.step.train_step import DiffusionLoss, compute_loss

_STREAM = 2
"""Position of the validation noise in a run's stream of random numbers; see ``step_data``."""
_MAX_IMAGES = 32
"""Images that are measured at most; of more, evenly spread ones."""


@dataclass(frozen=True)
class ValidationResult:
    """A validation loss and the base model's."""

    loss: float
    """Mean with the adapters as they are."""
    base_loss: float
    """Mean without them."""

    def log_entries(self, name: str) -> dict[str, float]:
        """Return the log's entries under a name, ``validation_loss`` or ``fixed_loss``."""
        gain = self.base_loss - self.loss
        return {name: self.loss, f"{name}_base": self.base_loss, f"{name}_gain": gain}


class ValidationLoss:
    """Images, noise levels and noise that stay the same for a whole run."""

    def __init__(
        self,
        loss: DiffusionLoss,
        dataset: TrainDataset,
        num_timesteps: int,
        batch_size: int,
        seed: int,
    ) -> None:
        """Lay out the grid.

        Args:
            loss: the training loss. Measured is the plain mean squared error, without weighting,
                noise offset or a custom loss function, so that runs can be compared.
            dataset: the validation images, or the training images if there are none.
            num_timesteps: how many noise levels, evenly spread.
            batch_size: how many pairs of image and noise level go through the model at once.
            seed: of the noise.
        """
        plain = loss.settings.model_copy(update={"weighting": "constant", "noise_offset": 0.0})
        self._loss = loss._replace(settings=plain, loss_fn=diffusion_loss)
        self._dataset = dataset
        self._batch_size = batch_size
        self._seed = seed
        steps = loss.process.num_timesteps
        self._timesteps = [int((k + 0.5) * steps / num_timesteps) for k in range(num_timesteps)]
        self._indices = _spread(dataset.num_tagged, _MAX_IMAGES)

    @torch.no_grad()
    def mean(self) -> float:
        """Return the mean loss over the grid with the adapters as they are."""
        total, count = 0.0, 0
        for batch, noise in self.batches():
            losses = compute_loss(self._loss, batch, noise)
            total += float(losses.double().sum())
            count += len(losses)
        return total / count

    def measure(self, trainable: TrainableModules, base_loss: float | None) -> ValidationResult:
        """Measure with the adapters and, unless that is known, without them.

        Args:
            trainable: the adapters; dropout is off meanwhile.
            base_loss: the base model's loss from an earlier call.
        """
        trainable.train(False)
        try:
            loss = self.mean()
            if base_loss is None:
                trainable.set_strength(0.0)
                base_loss = self.mean()
        finally:
            trainable.set_strength(1.0)
            trainable.train(True)
        return ValidationResult(loss, base_loss)

    def batches(self) -> Iterator[tuple[Batch, Noise]]:
        """Yield the grid, batch by batch."""
        for indices, timesteps in self._split_grid():
            generator = make_generator(self._seed, _STREAM, device=self._device)
            batch = self._dataset.get_batch(indices, BatchRng(generator, len(indices)))
            shape = batch.latents.shape[1:]
            pairs = zip(indices.tolist(), timesteps.tolist(), strict=True)
            noise = torch.stack(
                [
                    torch.randn(shape, generator=make_generator(self._seed, _STREAM, image, level))
                    for image, level in pairs
                ]
            )
            device = batch.latents.device
            yield batch, Noise(timesteps.to(device), noise.to(device))

    def _split_grid(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield images and noise levels of one bucket each, int64 ``[B]`` both."""
        buckets: dict[int, list[int]] = {}
        for index in self._indices:
            buckets.setdefault(self._dataset.bucket_indices[index], []).append(index)
        timesteps = torch.tensor(self._timesteps)
        for bucket in buckets.values():
            indices = torch.tensor(bucket).repeat_interleave(len(timesteps))
            pairs = torch.stack([indices, timesteps.repeat(len(bucket))])
            for part in torch.split(pairs, self._batch_size, dim=1):
                yield part[0], part[1]

    @property
    def _device(self) -> torch.device:
        return self._dataset.loss_weights.device


def _spread(count: int, limit: int) -> list[int]:
    """Return at most ``limit`` indices below ``count``, evenly spread."""
    if count <= limit:
        return list(range(count))
    return [position * count // limit for position in range(limit)]
