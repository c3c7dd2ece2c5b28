"""Random numbers for a part of a batch that do not depend on how the batch is split."""

from dataclasses import dataclass

import torch

from lorasmith.core.device import make_generator


@dataclass(frozen=True)
class BatchRng:
    """Samples for the full batch and returns the rows of one part.

    A run therefore does not depend on how many processes or accumulation steps share a batch.
    Parts of one batch need generators with equal seeds and must sample in the same order.
    """

    generator: torch.Generator
    """On the device of the samples."""
    batch_size: int
    """Images in the full batch."""
    start: int = 0
    """Index of this part's first image in the batch."""
    count: int | None = None
    """Images in this part; None for all that follow."""

    def uniform(self, *sizes: int) -> torch.Tensor:
        """Return uniform samples in 0..1, float32 ``[*sizes, B]``."""
        samples = torch.rand(*sizes, self.batch_size, generator=self.generator, device=self._device)
        return samples[..., self._rows]

    def normal(self, *sizes: int) -> torch.Tensor:
        """Return standard normal samples, float32 ``[B, *sizes]``."""
        samples = torch.randn(
            self.batch_size, *sizes, generator=self.generator, device=self._device
        )
        return samples[self._rows]

    def integers(self, high: int) -> torch.Tensor:
        """Return integers from 0 to ``high - 1``, int64 ``[B]``."""
        size = (self.batch_size,)
        samples = torch.randint(high, size, generator=self.generator, device=self._device)
        return samples[self._rows]

    def per_image_generators(self, stream: int) -> list[torch.Generator]:
        """Return one generator per image of this part, on the CPU.

        For decisions on the host, such as where an image is cropped. They depend on the seed of
        the batch's generator only, not on what was sampled from it since, and reading the seed
        does not wait for the device.

        Args:
            stream: different values give independent generators.
        """
        seed = self.generator.initial_seed()
        return [make_generator(seed, stream, i) for i in range(self.batch_size)[self._rows]]

    @property
    def _rows(self) -> slice:
        return slice(self.start, None if self.count is None else self.start + self.count)

    @property
    def _device(self) -> torch.device:
        return self.generator.device
