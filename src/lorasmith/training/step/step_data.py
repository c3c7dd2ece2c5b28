"""The batches of a run's steps: which images, which random numbers, which preservation terms."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from lorasmith.config.optimization import LossConfig
from lorasmith.config.train_config import PreserveConfig
from lorasmith.core.batch_rng import BatchRng
from lorasmith.core.device import make_generator
from lorasmith.models.noise_schedule import NoiseSchedule
from lorasmith.training.data.batch import Batch
from lorasmith.training.data.dataset import TrainDataset
from lorasmith.training.losses import Noise, sample_noise

# First positions in the stream of random numbers, so that no two uses share any. The adapters'
# initialisation has 0, the validation loss 2, dropout 3.
_STEPS, _PRESERVE, _EARLIER = 1, 4, 5


@dataclass(frozen=True)
class StepData:
    """Draws the microbatches of a step. Everything depends on the step and the seed only."""

    dataset: TrainDataset
    """The training images."""
    preservation_sets: tuple[TrainDataset, ...]
    """Images of earlier features whose predictions are to be preserved."""
    preserve: PreserveConfig
    """The weights of preservation terms, and how often steps have them."""
    process: NoiseSchedule
    """The noise schedule."""
    loss_settings: LossConfig
    """Noise offset and such."""
    seed: int
    """The run's seed."""
    accumulation_steps: int = 1
    """Into how many microbatches each process divides its share."""
    num_processes: int = 1
    """How many processes share a step."""
    process_index: int = 0
    """Which of them this is."""

    @property
    def _device(self) -> torch.device:
        return self.dataset.loss_weights.device

    def has_preservation(self, step: int) -> bool:
        """Return whether a step (from 0) has preservation terms."""
        preserve = self.preserve
        is_on = preserve.strength > 0 or (
            preserve.earlier_features_strength > 0 and len(self.preservation_sets) > 0
        )
        return is_on and step % preserve.every_n_steps == 0

    def microbatches(self, step: int, indices: torch.Tensor) -> Iterator[tuple[Batch, Noise]]:
        """Yield this process's microbatches of a step, one after the other.

        An image has the same random numbers in whichever microbatch it is. In steps with
        preservation each microbatch is followed by the same images with captions without the
        trigger word, and all of them by images of an earlier feature.

        Args:
            step: from 0.
            indices: the images of the step, int64 ``[B]``.
        """
        preserve, has_preservation = self.preserve, self.has_preservation(step)
        for share, rng in self._split(indices, step, _STEPS):
            batch = self.dataset.get_batch(share, rng)
            noise = sample_noise(self.process, self.loss_settings, batch, rng)
            yield batch, noise
            if has_preservation and preserve.strength:
                generator = make_generator(self.seed, _PRESERVE, step, device=self._device)
                caption_rng = replace(rng, generator=generator)
                yield (
                    self.dataset.get_batch_without_tag(batch, caption_rng, preserve.strength),
                    noise,
                )
        if has_preservation and preserve.earlier_features_strength and self.preservation_sets:
            yield from self._earlier_features(step, len(indices))

    def _earlier_features(self, step: int, batch_size: int) -> Iterator[tuple[Batch, Noise]]:
        """Yield a batch of an earlier feature; the features take turns.

        Args:
            step: from 0.
            batch_size: how many images the step trains on.
        """
        turn = step // self.preserve.every_n_steps
        feature = turn % len(self.preservation_sets)
        dataset = self.preservation_sets[feature]
        indices = dataset.batch_sampler.get_batch(turn // len(self.preservation_sets))
        # Losses are divided by the size of the batch that is trained on.
        strength = self.preserve.earlier_features_strength * batch_size / len(indices)
        for share, rng in self._split(indices, step, _EARLIER):
            batch = dataset.get_batch(share, rng)
            batch = replace(
                batch,
                loss_weights=torch.full_like(batch.loss_weights, strength),
                task="preserve_frozen",
                frozen_index=feature,
            )
            yield batch, sample_noise(self.process, self.loss_settings, batch, rng)

    def _split(
        self, indices: torch.Tensor, step: int, stream: int
    ) -> Iterator[tuple[torch.Tensor, BatchRng]]:
        """Yield this process's shares of a batch, with what they draw from."""
        first = 0
        shares = indices.tensor_split(self.num_processes * self.accumulation_steps)
        for position, share in enumerate(shares):
            if position % self.num_processes == self.process_index and len(share):
                generator = make_generator(self.seed, stream, step, device=self._device)
                yield share, BatchRng(generator, len(indices), first, len(share))
            first += len(share)
