"""Which rows are in the batch of a step: a pure function, so that a resumed run repeats them."""

import bisect
import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

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
        """Return the row indices of batch ``step`` (from 0), int64 ``[batch_size]``."""
        start = step * self.batch_size
        pieces = []
        missing = self.batch_size
        while missing > 0:
            epoch, within = divmod(start, self.epoch_size)
            piece = self._epoch_rows(epoch)[within : within + missing]
            pieces.append(piece)
            start += len(piece)
            missing -= len(piece)
        return torch.cat(pieces)

    def _epoch_rows(self, epoch: int) -> torch.Tensor:
        if self._cached[0] != epoch:
            self._cached = (epoch, self._draw(epoch))
        return self._cached[1]

    def _draw(self, epoch: int) -> torch.Tensor:
        generator = make_generator(self.seed, epoch)
        if self._uniform:
            return torch.randperm(len(self.weights), generator=generator)
        # Systematic sampling along a random order: exactly epoch_size rows, each with
        # a probability of its weight, which independent draws would not give.
        order = torch.randperm(len(self.weights), generator=generator)
        start = torch.rand(1, generator=generator, dtype=torch.float64)
        ends = self.weights[order].cumsum(0) * (self.epoch_size / float(self.weights.sum()))
        ends[-1] = self.epoch_size
        positions = torch.arange(self.epoch_size, dtype=torch.float64) + start
        return order[torch.searchsorted(ends, positions, right=True)]


# Random streams: no other use of a run's seed shares their numbers.
_TAGGED_STREAM, _CLASS_STREAM, _BATCH_STREAM = 0x6F72646572, 0x636C617373, 0x6261746368


class BucketBatchSampler:
    """Shuffled epochs cut into batches of one bucket each, nearly equal in size.

    An entry comes exactly as often in an epoch as its repeats say: no entry is dropped or added to
    fill batches. A bucket of 25 entries at a batch size of 8 gives batches of 7, 6, 6 and 6.

    An epoch has as many class entries, where there are any, as others. They come in shuffled
    rounds that continue across epochs, so that all come equally often, whatever their number.
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
            bucket_indices: each entry's bucket, any integer.
            repeats: how often each comes in an epoch (class entries: in their round), at least 1.
            batch_size: size of the largest batches, at least 1.
            seed: seed of the shuffling.
            is_class: which entries are class entries; not all of them.
        """
        self.batch_size = batch_size
        self._bucket_indices = torch.tensor(bucket_indices, dtype=torch.int64)
        class_mask = torch.zeros(len(bucket_indices), dtype=torch.bool)
        if is_class is not None:
            class_mask = torch.tensor(is_class, dtype=torch.bool)
        counts = torch.tensor(repeats, dtype=torch.int64)
        self._tagged_rounds = _make_rounds(counts, ~class_mask)
        class_rounds = [
            rounds.entries.repeat(rounds.times) for rounds in _make_rounds(counts, class_mask)
        ]
        self._class_entries = torch.cat([torch.empty(0, dtype=torch.int64), *class_rounds])
        self._tagged_per_epoch = int(counts[~class_mask].sum())
        buckets = self._bucket_indices
        self._tagged_buckets = _sum_by_bucket(buckets[~class_mask], counts[~class_mask])
        self._buckets = sorted(set(bucket_indices))
        self._reset(seed)

    def with_seed(self, seed: int) -> "BucketBatchSampler":
        """Return the order of the same entries under another seed."""
        other = copy.copy(self)
        other._reset(seed)
        return other

    def _reset(self, seed: int) -> None:
        self.seed = seed
        self.steps_per_epoch = self._count_steps(0)
        """Batches of the first epoch; with class entries later ones may have a few more or less."""
        self._epoch_starts = [0]
        self._cached: tuple[int, _EpochBatches | None] = (-1, None)

    def get_batch(self, step: int) -> torch.Tensor:
        """Return the entries of batch ``step`` (from 0), int64 ``[1 to batch_size]``."""
        epoch, within = self._find(step)
        cached_epoch, batches = self._cached
        if batches is None or cached_epoch != epoch:
            batches = self._make_batches(epoch)
            self._cached = (epoch, batches)
        return batches.get(within)

    def _find(self, step: int) -> tuple[int, int]:
        """Return a step's epoch, and the step within it."""
        if not len(self._class_entries):
            return divmod(step, self.steps_per_epoch)
        # The class entries of an epoch decide how many batches it has.
        while self._epoch_starts[-1] <= step:
            self._epoch_starts.append(
                self._epoch_starts[-1] + self._count_steps(len(self._epoch_starts) - 1)
            )
        epoch = bisect.bisect_right(self._epoch_starts, step) - 1
        return epoch, step - self._epoch_starts[epoch]

    def _count_steps(self, epoch: int) -> int:
        """Return how many batches an epoch has; the tagged entries need no drawing for that."""
        counts = dict(self._tagged_buckets)
        if len(self._class_entries):
            drawn = self._bucket_indices[self._draw_class_entries(epoch)]
            for bucket, count in _sum_by_bucket(drawn, torch.ones_like(drawn)).items():
                counts[bucket] = counts.get(bucket, 0) + count
        return sum(-(-count // self.batch_size) for count in counts.values())

    def _make_batches(self, epoch: int) -> "_EpochBatches":
        entries = self._draw(epoch)
        buckets = self._bucket_indices[entries]
        all_members = (entries[buckets == bucket] for bucket in self._buckets)
        members = [entries for entries in all_members if len(entries)]
        generator = make_generator(self.seed, _BATCH_STREAM, epoch)
        return _EpochBatches(members, self.batch_size, generator)

    def _draw(self, epoch: int) -> torch.Tensor:
        """Return all entries of an epoch in random order, every second one a class entry.

        First occurrences come before second ones, so that a batch seldom has an entry twice.
        """
        generator = make_generator(self.seed, _TAGGED_STREAM, epoch)
        tagged = torch.empty(self._tagged_per_epoch, dtype=torch.int64)
        start = 0
        for rounds in self._tagged_rounds:
            for _ in range(rounds.times):
                stop = start + len(rounds.entries)
                order = torch.randperm(len(rounds.entries), generator=generator)
                tagged[start:stop] = rounds.entries[order]
                start = stop
        if not len(self._class_entries):
            return tagged
        return torch.stack([tagged, self._draw_class_entries(epoch)], dim=1).flatten()

    def _draw_class_entries(self, epoch: int) -> torch.Tensor:
        """Return the epoch's share of the endless sequence of class rounds."""
        count, length = self._tagged_per_epoch, len(self._class_entries)
        start, end = epoch * count, (epoch + 1) * count
        rounds = range(start // length, -(-end // length))
        shuffled = [
            self._class_entries[
                torch.randperm(length, generator=make_generator(self.seed, _CLASS_STREAM, k))
            ]
            for k in rounds
        ]
        first = rounds.start * length
        return torch.cat(shuffled)[start - first : end - first]


class _Rounds(NamedTuple):
    """Rounds of an epoch that all have the same entries, each once."""

    entries: torch.Tensor
    times: int


def _make_rounds(counts: torch.Tensor, mask: torch.Tensor) -> list[_Rounds]:
    """Return the rounds of entries: an entry that comes k times is in the first k.

    There is one item for each different number, however large the numbers are.

    Args:
        counts: how often each entry comes, int64 ``[N]``.
        mask: which entries are meant, bool ``[N]``.
    """
    rounds, previous = [], 0
    for count in sorted(set(counts[mask].tolist())):
        entries = ((counts > previous) & mask).nonzero().flatten()
        rounds.append(_Rounds(entries, count - previous))
        previous = count
    return rounds


def _sum_by_bucket(buckets: torch.Tensor, counts: torch.Tensor) -> dict[int, int]:
    """Return the sum of the counts of each bucket."""
    values, positions = torch.unique(buckets, return_inverse=True)
    sums = torch.zeros(len(values), dtype=torch.int64).index_add_(0, positions, counts)
    return dict(zip(values.tolist(), sums.tolist(), strict=True))


class _EpochBatches:
    """The batches of an epoch in random order. Each is cut out when it is asked for."""

    def __init__(
        self, members: Sequence[torch.Tensor], batch_size: int, generator: torch.Generator
    ) -> None:
        """Take the entries of each bucket, in their order."""
        self._members = members
        self._counts = [-(-len(entries) // batch_size) for entries in members]
        self._order = torch.randperm(sum(self._counts), generator=generator)

    def get(self, index: int) -> torch.Tensor:
        """Return a batch: the first ones of a bucket are longer by one where they are not equal."""
        number = int(self._order[index])
        for entries, count in zip(self._members, self._counts, strict=True):
            if number < count:
                size, longer = divmod(len(entries), count)
                start = number * size + min(number, longer)
                return entries[start : start + size + (number < longer)]
            number -= count
        raise IndexError(index)
