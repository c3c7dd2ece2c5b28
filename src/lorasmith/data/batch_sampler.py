"""Which rows are in the batch of a step: a pure function, so that a resumed run repeats them."""

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
        # One element per occurrence; an entry's first occurrences come before its second ones.
        occurrences = range(int(counts.max()))
        self._tagged_rounds = _drop_empty(
            [((counts > k) & ~class_mask).nonzero().flatten() for k in occurrences]
        )
        class_rounds = _drop_empty(
            [((counts > k) & class_mask).nonzero().flatten() for k in occurrences]
        )
        self._class_entries = (
            torch.cat(class_rounds) if class_rounds else torch.empty(0, dtype=torch.int64)
        )
        self._tagged_per_epoch = sum(len(entries) for entries in self._tagged_rounds)
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
        self._cached: tuple[int, list[torch.Tensor]] = (-1, [])

    def get_batch(self, step: int) -> torch.Tensor:
        """Return the entries of batch ``step`` (from 0), int64 ``[1 to batch_size]``."""
        epoch, within = self._find(step)
        if self._cached[0] != epoch:
            self._cached = (epoch, self._make_batches(epoch))
        return self._cached[1][within]

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
        counts = Counter(self._bucket_indices[self._draw(epoch)].tolist())
        return sum(-(-count // self.batch_size) for count in counts.values())

    def _make_batches(self, epoch: int) -> list[torch.Tensor]:
        entries = self._draw(epoch)
        buckets = self._bucket_indices[entries]
        batches: list[torch.Tensor] = []
        for bucket in sorted(set(buckets.tolist())):
            members = entries[buckets == bucket]
            # tensor_split makes the first batches longer by one where the sizes are not equal.
            batches += members.tensor_split(-(-len(members) // self.batch_size))
        order = torch.randperm(
            len(batches), generator=make_generator(self.seed, _BATCH_STREAM, epoch)
        ).tolist()
        return [batches[i] for i in order]

    def _draw(self, epoch: int) -> torch.Tensor:
        """Return all entries of an epoch in random order, every second one a class entry.

        First occurrences come before second ones, so that a batch seldom has an entry twice.
        """
        generator = make_generator(self.seed, _TAGGED_STREAM, epoch)
        tagged = torch.cat(
            [
                entries[torch.randperm(len(entries), generator=generator)]
                for entries in self._tagged_rounds
            ]
        )
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


def _drop_empty(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor for tensor in tensors if len(tensor)]
