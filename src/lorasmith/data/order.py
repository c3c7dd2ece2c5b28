"""Which rows make up batch number k: a pure function, so that a resumed run sees the same ones."""

from collections.abc import Sequence

import torch

from lorasmith.core.device import generator


class BatchOrder:
    """Shuffled epochs cut into batches that may run across an epoch's end.

    With equal weights every row comes exactly once per epoch. With weights an epoch is
    ``round(sum(weights))`` rows, drawn without replacement in proportion to them.
    """

    def __init__(self, weights: Sequence[float], batch_size: int, seed: int) -> None:
        self.weights = torch.tensor(weights, dtype=torch.float64)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch_size = max(1, round(float(self.weights.sum())))
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

    def epoch_of(self, step: int) -> float:
        """Return how many epochs have been seen before batch ``step``."""
        return step * self.batch_size / self.epoch_size

    def _epoch(self, epoch: int) -> torch.Tensor:
        if self._cached[0] != epoch:
            self._cached = (epoch, self._draw(epoch))
        return self._cached[1]

    def _draw(self, epoch: int) -> torch.Tensor:
        draws = generator(self.seed, epoch)
        if self._uniform:
            return torch.randperm(len(self.weights), generator=draws)
        # Exponential keys (Efraimidis and Spirakis 2006): the smallest u^(1/w) order is a
        # weighted sample without replacement, and unlike torch.multinomial has no size limit.
        uniform = torch.rand(len(self.weights), generator=draws, dtype=torch.float64)
        keys = -torch.log(uniform.clamp_min(1e-300)) / self.weights
        return keys.argsort()[: self.epoch_size]
