"""Which rows make up batch number k: a pure function, so that a resumed run sees the same ones."""

import bisect
import copy
import math
from collections import Counter
from collections.abc import Sequence

import torch

from lorasmith.core.device import make_generator


class WeightedBatchSampler:
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

    def get_batch(self, step: int) -> torch.Tensor:
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
        draws = make_generator(self.seed, epoch)
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


# First position of the draws below, so that no other use of a run's seed shares their numbers.
_TAGGED, _CLASS, _BATCHES = 0x6F72646572, 0x636C617373, 0x6261746368


class BucketBatchSampler:
    """Shuffled epochs cut into batches of one bucket each, nearly equal in size.

    An entry comes exactly as often in an epoch as its repeats say: nothing is dropped and nothing
    is filled up. A bucket of 25 entries at a batch size of 8 gives batches of 7, 6, 6 and 6.

    Class entries, where there are any, are as many in an epoch as the others together. They go
    round on their own, in shuffled rounds that run across epochs, so that all are seen equally
    often however many they are.
    """

    def __init__(
        self,
        bucket_indices: Sequence[int],
        repeats: Sequence[int],
        batch_size: int,
        seed: int,
        is_class: Sequence[bool] | None = None,
    ) -> None:
        """Describe the entries.

        Args:
            bucket_of: each entry's bucket, any whole number.
            repeats: how often each comes in an epoch (class entries: in their round), at least 1.
            batch_size: size of the largest batches, at least 1.
            seed: seed of the shuffling.
            is_class: which entries are class entries; at least one must be none.
        """
        self.batch_size = batch_size
        self._bucket_of = torch.tensor(bucket_indices, dtype=torch.int64)
        classes = torch.zeros(len(bucket_indices), dtype=torch.bool)
        if is_class is not None:
            classes = torch.tensor(is_class, dtype=torch.bool)
        every = torch.tensor(repeats, dtype=torch.int64)
        # One element per draw, those of an entry's first time before those of its second.
        times = range(int(every.max()))
        self._tagged = _rounds([((every > k) & ~classes).nonzero().flatten() for k in times])
        classed = _rounds([((every > k) & classes).nonzero().flatten() for k in times])
        self._classes = torch.cat(classed) if classed else torch.empty(0, dtype=torch.int64)
        self._draws = sum(len(part) for part in self._tagged)
        self._start(seed)

    def with_seed(self, seed: int) -> "BucketBatchSampler":
        """Return the order of the same entries under another seed."""
        other = copy.copy(self)
        other._start(seed)
        return other

    def _start(self, seed: int) -> None:
        self.seed = seed
        self.steps_per_epoch = self._steps_in(0)
        """Batches of the first epoch; with class entries later ones may have a few more or less."""
        self._starts = [0]
        self._cached: tuple[int, list[torch.Tensor]] = (-1, [])

    def get_batch(self, step: int) -> torch.Tensor:
        """Return the entries of batch ``step`` (from 0), int64 ``[1 to batch_size]``."""
        epoch, within = self._find(step)
        if self._cached[0] != epoch:
            self._cached = (epoch, self._batches(epoch))
        return self._cached[1][within]

    def epoch_of(self, step: int) -> int:
        """Return the epoch (from 0) that a step (from 0) belongs to."""
        return self._find(step)[0]

    def _find(self, step: int) -> tuple[int, int]:
        """Return a step's epoch and its place in it."""
        if not len(self._classes):
            return divmod(step, self.steps_per_epoch)
        # Which class entries are drawn decides how many batches an epoch has.
        while self._starts[-1] <= step:
            self._starts.append(self._starts[-1] + self._steps_in(len(self._starts) - 1))
        epoch = bisect.bisect_right(self._starts, step) - 1
        return epoch, step - self._starts[epoch]

    def _steps_in(self, epoch: int) -> int:
        counts = Counter(self._bucket_of[self._draw(epoch)].tolist())
        return sum(-(-count // self.batch_size) for count in counts.values())

    def _batches(self, epoch: int) -> list[torch.Tensor]:
        drawn = self._draw(epoch)
        buckets = self._bucket_of[drawn]
        batches: list[torch.Tensor] = []
        for bucket in sorted(set(buckets.tolist())):
            own = drawn[buckets == bucket]
            # tensor_split makes the first ones longer by one where it does not come out even.
            batches += own.tensor_split(-(-len(own) // self.batch_size))
        shuffled = torch.randperm(
            len(batches), generator=make_generator(self.seed, _BATCHES, epoch)
        ).tolist()
        return [batches[k] for k in shuffled]

    def _draw(self, epoch: int) -> torch.Tensor:
        """Return all entries of an epoch in random order, classes evenly between the others.

        All first times come before all second times, so that one batch seldom has an entry twice.
        """
        draws = make_generator(self.seed, _TAGGED, epoch)
        tagged = torch.cat(
            [part[torch.randperm(len(part), generator=draws)] for part in self._tagged]
        )
        if not len(self._classes):
            return tagged
        return torch.stack([tagged, self._class_draws(epoch)], dim=1).flatten()

    def _class_draws(self, epoch: int) -> torch.Tensor:
        """Return the epoch's ``_draws`` elements of the endless sequence of class rounds."""
        start, end, length = epoch * self._draws, (epoch + 1) * self._draws, len(self._classes)
        rounds = range(start // length, -(-end // length))
        shuffled = [
            self._classes[torch.randperm(length, generator=make_generator(self.seed, _CLASS, k))]
            for k in rounds
        ]
        first = rounds.start * length
        return torch.cat(shuffled)[start - first : end - first]


def _rounds(parts: list[torch.Tensor]) -> list[torch.Tensor]:
    return [part for part in parts if len(part)]
