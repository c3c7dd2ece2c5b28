import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorasmith.data.order import BatchOrder


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 9))
def test_every_row_comes_once_per_epoch(rows: int, batch: int, seed: int) -> None:
    order = BatchOrder([1.0] * rows, batch, seed)
    drawn = torch.cat([order.batch(step) for step in range(-(-3 * rows // batch))])
    assert drawn.dtype == torch.int64
    for epoch in range(3):
        once = drawn[epoch * rows : (epoch + 1) * rows]
        assert sorted(once.tolist()) == list(range(rows))


@settings(max_examples=40, deadline=None)
@given(
    weights=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=30),
    batch=st.integers(1, 20),
    steps=st.lists(st.integers(0, 200), min_size=1, max_size=5),
)
def test_a_batch_is_a_function_of_its_number(
    weights: list[float], batch: int, steps: list[int]
) -> None:
    one = BatchOrder(weights, batch, seed=3)
    for step in steps:
        drawn = one.batch(step)
        assert len(drawn) == batch
        assert 0 <= int(drawn.min()) <= int(drawn.max()) < len(weights)
        assert torch.equal(drawn, BatchOrder(weights, batch, seed=3).batch(step))


def test_epochs_and_seeds_differ() -> None:
    order = BatchOrder([1.0] * 50, 50, seed=0)
    assert not torch.equal(order.batch(0), order.batch(1))
    assert not torch.equal(order.batch(0), BatchOrder([1.0] * 50, 50, seed=1).batch(0))


@settings(max_examples=30, deadline=None)
@given(weights=st.lists(st.floats(0.05, 1.0), min_size=2, max_size=40), seed=st.integers(0, 5))
def test_no_row_comes_twice_in_a_weighted_epoch(weights: list[float], seed: int) -> None:
    order = BatchOrder(weights, 1, seed)
    epoch = torch.cat([order.batch(step) for step in range(order.epoch_size)])
    assert order.epoch_size == max(1, int(sum(weights) + 1e-6))
    assert len(set(epoch.tolist())) == len(epoch)


def test_rows_come_as_often_as_their_weights_say() -> None:
    weights = [1.0] * 20 + [0.5] * 10 + [0.1] * 10
    order = BatchOrder(weights, 26, seed=0)
    assert order.epoch_size == 26
    epochs = 2000
    drawn = torch.cat([order.batch(step) for step in range(epochs)])
    share = torch.bincount(drawn, minlength=40) / epochs
    assert (share[:20] == 1.0).all()
    torch.testing.assert_close(share[20:30], torch.full((10,), 0.5), atol=0.05, rtol=0.0)
    torch.testing.assert_close(share[30:], torch.full((10,), 0.1), atol=0.03, rtol=0.0)
    firsts = torch.stack([order.batch(step)[0] for step in range(epochs)])
    assert len(firsts.unique()) == 40  # any row may come first
