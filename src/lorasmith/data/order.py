"""Which rows make up batch number k: a pure function, so that a resumed run sees the same ones."""

import math
from collections.abc import Sequence

import torch

from lorasmith.core.device import generator


class BatchOrder:
    """Shuffled epochs cut into batches that may run across an epoch's end.

    With weights of 1 every row comes exactly once per epoch. With weights of at most 1 an epoch
    is ``floor(sum(weights))`` rows, none of them twice, and a row is in it with a probability
    of its weight.
    """

    def __init__(self, weights: Sequence[float], batch_size: int, seed: int) -> None:
        self.weights = torch.tensor(weights, dtype=torch.float64)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch_size = max(1, math.floor(float(self.weights.sum()) + 1e-6))
        self._uniform = bool((self.weights == 1.0).all())
        self._cached: tuple[int, torch.Tensor] = (-1, torch.empty(0, dtype=torch.int64))

    def batch(self, step: int) -> torch.Tensor:
        """Return the row numbers of batch ``step`` (from 0), int64 ``[batch_size]``."""
        start = step * self.batch_size
        pieces = []
        wanted = self.batch_size
        while wanted > 0:
            epoch, within = divmod(start, self.epoch_size)
            piece = self._epoch(epoch)[within : within + wanted]
            pieces.append(piece)
            start += len(piece)
            wanted -= len(piece)
        return torch.cat(pieces)

    def _epoch(self, epoch: int) -> torch.Tensor:
        if self._cached[0] != epoch:
            self._cached = (epoch, self._draw(epoch))
        return self._cached[1]

    def _draw(self, epoch: int) -> torch.Tensor:
        draws = generator(self.seed, epoch)
        if self._uniform:
            return torch.randperm(len(self.weights), generator=draws)
        # Systematic sampling along a random order: exactly epoch_size rows, and each with a
        # probability that is its weight, which drawing one by one would not give.
        order = torch.randperm(len(self.weights), generator=draws)
        start = torch.rand(1, generator=draws, dtype=torch.float64)
        ends = self.weights[order].cumsum(0) * (self.epoch_size / float(self.weights.sum()))
        ends[-1] = self.epoch_size
        places = torch.arange(self.epoch_size, dtype=torch.float64) + start
        return order[torch.searchsorted(ends, places, right=True)]
