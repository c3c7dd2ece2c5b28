from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorasmith.data.batch_sampler import BucketBatchSampler, WeightedBatchSampler


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 9))
def test_every_row_comes_once_per_epoch(rows: int, batch: int, seed: int) -> None:
    sampler = WeightedBatchSampler([1.0] * rows, batch, seed)
    drawn = torch.cat([sampler.get_batch(step) for step in range(-(-3 * rows // batch))])
    assert drawn.dtype == torch.int64
    for epoch in range(3):
        epoch_rows = drawn[epoch * rows : (epoch + 1) * rows]
        assert sorted(epoch_rows.tolist()) == list(range(rows))


@settings(max_examples=40, deadline=None)
@given(
    weights=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=30),
    batch=st.integers(1, 20),
    steps=st.lists(st.integers(0, 200), min_size=1, max_size=5),
)
def test_batch_is_a_function_of_its_number(
    weights: list[float], batch: int, steps: list[int]
) -> None:
    sampler = WeightedBatchSampler(weights, batch, seed=3)
    for step in steps:
        drawn = sampler.get_batch(step)
        assert len(drawn) == batch
        assert 0 <= int(drawn.min()) <= int(drawn.max()) < len(weights)
        assert torch.equal(drawn, WeightedBatchSampler(weights, batch, seed=3).get_batch(step))


def test_epochs_and_seeds_differ() -> None:
    sampler = WeightedBatchSampler([1.0] * 50, 50, seed=0)
    assert not torch.equal(sampler.get_batch(0), sampler.get_batch(1))
    assert not torch.equal(
        sampler.get_batch(0), WeightedBatchSampler([1.0] * 50, 50, seed=1).get_batch(0)
    )


@settings(max_examples=30, deadline=None)
@given(weights=st.lists(st.floats(0.05, 1.0), min_size=2, max_size=40), seed=st.integers(0, 5))
def test_no_row_comes_twice_in_a_weighted_epoch(weights: list[float], seed: int) -> None:
    sampler = WeightedBatchSampler(weights, 1, seed)
    epoch = torch.cat([sampler.get_batch(step) for step in range(sampler.epoch_size)])
    assert sampler.epoch_size == max(1, int(sum(weights) + 1e-6))
    assert len(set(epoch.tolist())) == len(epoch)


def test_rows_come_as_often_as_their_weights_say() -> None:
    weights = [1.0] * 20 + [0.5] * 10 + [0.1] * 10
    sampler = WeightedBatchSampler(weights, 26, seed=0)
    assert sampler.epoch_size == 26
    epochs = 2000
    drawn = torch.cat([sampler.get_batch(step) for step in range(epochs)])
    share = torch.bincount(drawn, minlength=40) / epochs
    assert (share[:20] == 1.0).all()
    torch.testing.assert_close(share[20:30], torch.full((10,), 0.5), atol=0.05, rtol=0.0)
    torch.testing.assert_close(share[30:], torch.full((10,), 0.1), atol=0.03, rtol=0.0)
    firsts = torch.stack([sampler.get_batch(step)[0] for step in range(epochs)])
    assert len(firsts.unique()) == 40  # any row may come first


# --- buckets --------------------------------------------------------------------------------

ENTRIES = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4)), min_size=1, max_size=40)


def epoch_batches(sampler: BucketBatchSampler, epoch: int) -> list[list[int]]:
    start = epoch * sampler.steps_per_epoch
    return [sampler.get_batch(start + k).tolist() for k in range(sampler.steps_per_epoch)]


@settings(max_examples=60, deadline=None)
@given(entries=ENTRIES, batch=st.integers(1, 50), seed=st.integers(0, 3), epoch=st.integers(0, 5))
def test_every_entry_comes_as_often_as_it_is_repeated(
    entries: list[tuple[int, int]], batch: int, seed: int, epoch: int
) -> None:
    buckets, repeats = zip(*entries, strict=True)
    batches = epoch_batches(BucketBatchSampler(buckets, repeats, batch, seed), epoch)
    assert Counter(n for batch in batches for n in batch) == dict(enumerate(repeats))


@settings(max_examples=60, deadline=None)
@given(entries=ENTRIES, batch=st.integers(1, 50))
def test_batches_are_of_one_bucket_and_nearly_equal(
    entries: list[tuple[int, int]], batch: int
) -> None:
    buckets, repeats = zip(*entries, strict=True)
    sizes: dict[int, list[int]] = {}
    for entries_of_batch in epoch_batches(BucketBatchSampler(buckets, repeats, batch, 0), 1):
        (bucket,) = {buckets[n] for n in entries_of_batch}
        sizes.setdefault(bucket, []).append(len(entries_of_batch))
    for bucket, result in sizes.items():
        total = sum(r for b, r in entries if b == bucket)
        assert sum(result) == total
        assert len(result) == -(-total // batch)  # no more batches than needed
        assert max(result) <= batch
        assert max(result) - min(result) <= 1


@settings(max_examples=40, deadline=None)
@given(
    entries=ENTRIES,
    class_share=st.integers(0, 3),
    batch=st.integers(1, 9),
    steps=st.lists(st.integers(0, 300), min_size=1, max_size=5),
)
def test_bucket_batch_is_a_function_of_its_number(
    entries: list[tuple[int, int]], class_share: int, batch: int, steps: list[int]
) -> None:
    buckets, repeats = zip(*entries, strict=True)
    is_class = [n % 4 < class_share and n > 0 for n in range(len(entries))]
    sampler = BucketBatchSampler(buckets, repeats, batch, 3, is_class)
    for step in steps:
        same_sampler = BucketBatchSampler(buckets, repeats, batch, 3, is_class)
        assert torch.equal(sampler.get_batch(step), same_sampler.get_batch(step))


def test_bucket_batches_of_the_documented_example() -> None:
    sampler = BucketBatchSampler([0] * 25, [1] * 25, 8, seed=0)
    assert sampler.steps_per_epoch == 4
    assert sorted(len(batch) for batch in epoch_batches(sampler, 0)) == [6, 6, 6, 7]


def test_bucket_epochs_and_seeds_differ() -> None:
    sampler = BucketBatchSampler([0, 1] * 20, [1] * 40, 5, seed=0)
    first, second = epoch_batches(sampler, 0), epoch_batches(sampler, 1)
    assert first != second
    assert first != epoch_batches(BucketBatchSampler([0, 1] * 20, [1] * 40, 5, seed=1), 0)
    # Buckets come mixed, not one after the other.
    buckets = [batch[0] % 2 for batch in first]
    assert buckets not in (sorted(buckets), sorted(buckets, reverse=True))


def test_repeats_are_spread_over_the_epoch() -> None:
    sampler = BucketBatchSampler([0] * 8, [4] * 8, 8, seed=0)
    assert all(len(set(batch)) == 8 for batch in epoch_batches(sampler, 0))


@settings(max_examples=40, deadline=None)
@given(
    tagged=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3)), min_size=1, max_size=12),
    classes=st.lists(st.integers(0, 3), min_size=1, max_size=30),
    batch=st.integers(1, 9),
)
def test_class_entries_go_round_beside_the_tagged(
    tagged: list[tuple[int, int]], classes: list[int], batch: int
) -> None:
    buckets = [bucket for bucket, _ in tagged] + classes
    repeats = [counts for _, counts in tagged] + [1] * len(classes)
    is_class = [False] * len(tagged) + [True] * len(classes)
    sampler = BucketBatchSampler(buckets, repeats, batch, 0, is_class)
    tagged_count = sum(counts for _, counts in tagged)
    total: Counter[int] = Counter()
    step = 0
    for _ in range(4):
        result: Counter[int] = Counter()
        while result.total() < 2 * tagged_count:  # an epoch has as many class entries as others
            indices = sampler.get_batch(step).tolist()
            assert 1 <= len(indices) <= batch
            assert len({buckets[n] for n in indices}) == 1
            result.update(indices)
            step += 1
        assert {n: c for n, c in result.items() if not is_class[n]} == dict(
            enumerate(counts for _, counts in tagged)
        )
        assert sum(c for n, c in result.items() if is_class[n]) == tagged_count
        total += result
    class_counts = [total[n] for n, classed in enumerate(is_class) if classed]
    assert (
        max(class_counts) - min(class_counts) <= 1
    )  # all come equally often, however many they are


def test_batches_mix_classes_with_the_tagged() -> None:
    sampler = BucketBatchSampler([0] * 24, [1] * 24, 8, 0, [False] * 8 + [True] * 16)
    assert [sum(n >= 8 for n in batch) for batch in epoch_batches(sampler, 0)] == [4, 4]
