"""Random numbers for a part of a batch, the same however the batch is divided."""

from dataclasses import dataclass

import torch

from lorasmith.core.device import make_generator


@dataclass(frozen=True)
class BatchRng:
    """Numbers are drawn for the whole batch, and this part's share of them is kept.

    A run therefore does not depend on how many processes or accumulated parts share a batch.
    Parts of one batch need generators with equal seeds and must draw in the same order.
    """

    generator: torch.Generator
    """On the device where the numbers are wanted."""
    batch_size: int
    """Pictures in the whole batch."""
    start: int = 0
    """Place of this part's first picture in the batch."""
    count: int | None = None
    """Pictures in this part; None for all that follow."""

    def uniform(self, *sizes: int) -> torch.Tensor:
        """Return numbers from 0 to 1, float32 ``[*sizes, B]``."""
        drawn = torch.rand(*sizes, self.batch_size, generator=self.generator, device=self._device)
        return drawn[..., self._rows]

    def normal(self, *sizes: int) -> torch.Tensor:
        """Return unit normal numbers, float32 ``[B, *sizes]``."""
        drawn = torch.randn(self.batch_size, *sizes, generator=self.generator, device=self._device)
        return drawn[self._rows]

    def integers(self, high: int) -> torch.Tensor:
        """Return whole numbers from 0 to ``below - 1``, int64 ``[B]``."""
        size = (self.batch_size,)
        drawn = torch.randint(high, size, generator=self.generator, device=self._device)
        return drawn[self._rows]

    def per_image_generators(self, stream: int) -> list[torch.Generator]:
        """Return one generator per picture of this part, on the CPU.

        For what is decided on the host, such as where a picture is cropped. They depend on how
        the batch's generator was seeded and on nothing that was drawn from it since; reading
        that does not wait for the device.

        Args:
            stream: different numbers give generators that have nothing to do with each other.
        """
        seed = self.generator.initial_seed()
        return [make_generator(seed, stream, place) for place in range(self.batch_size)[self._rows]]

    @property
    def _rows(self) -> slice:
        return slice(self.start, None if self.count is None else self.start + self.count)

    @property
    def _device(self) -> torch.device:
        return self.generator.device
