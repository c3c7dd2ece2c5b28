"""Random numbers for a part of a batch, the same however the batch is divided."""

from dataclasses import dataclass

import torch

from lorasmith.core.device import generator


@dataclass(frozen=True)
class Draws:
    """Numbers are drawn for the whole batch, and this part's share of them is kept.

    A run therefore does not depend on how many processes or accumulated parts share a batch.
    Parts of one batch need generators with equal seeds and must draw in the same order.
    """

    generator: torch.Generator
    """On the device where the numbers are wanted."""
    whole: int
    """Pictures in the whole batch."""
    first: int = 0
    """Place of this part's first picture in the batch."""
    count: int | None = None
    """Pictures in this part; None for all that follow."""

    def uniform(self, *sizes: int) -> torch.Tensor:
        """Return numbers from 0 to 1, float32 ``[*sizes, B]``."""
        drawn = torch.rand(*sizes, self.whole, generator=self.generator, device=self._device)
        return drawn[..., self._own]

    def normal(self, *sizes: int) -> torch.Tensor:
        """Return unit normal numbers, float32 ``[B, *sizes]``."""
        drawn = torch.randn(self.whole, *sizes, generator=self.generator, device=self._device)
        return drawn[self._own]

    def integers(self, below: int) -> torch.Tensor:
        """Return whole numbers from 0 to ``below - 1``, int64 ``[B]``."""
        size = (self.whole,)
        drawn = torch.randint(below, size, generator=self.generator, device=self._device)
        return drawn[self._own]

    def of_each(self, stream: int) -> list[torch.Generator]:
        """Return one generator per picture of this part, on the CPU.

        For what is decided on the host, such as where a picture is cropped. They depend on how
        the batch's generator was seeded and on nothing that was drawn from it since; reading
        that does not wait for the device.

        Args:
            stream: different numbers give generators that have nothing to do with each other.
        """
        seed = self.generator.initial_seed()
        return [generator(seed, stream, place) for place in range(self.whole)[self._own]]

    @property
    def _own(self) -> slice:
        return slice(self.first, None if self.count is None else self.first + self.count)

    @property
    def _device(self) -> torch.device:
        return self.generator.device
