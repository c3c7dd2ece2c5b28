import torch
from hypothesis import given
from hypothesis import strategies as st

from lorasmith.core.batch_rng import BatchRng


def take(rng: BatchRng) -> tuple[torch.Tensor, ...]:
    return rng.uniform(), rng.uniform(3), rng.normal(2, 4), rng.integers(1000)


@given(parts=st.integers(1, 4), size=st.integers(1, 5), seed=st.integers(0, 99))
def test_parts_concatenate_to_the_full_batch(parts: int, size: int, seed: int) -> None:
    total = parts * size
    full = take(BatchRng(torch.Generator().manual_seed(seed), total))
    pieces = [
        take(BatchRng(torch.Generator().manual_seed(seed), total, part * size, size))
        for part in range(parts)
    ]
    for kind, (expected, batch_dim) in enumerate(zip(full, (0, 1, 0, 0), strict=True)):
        assert torch.equal(torch.cat([piece[kind] for piece in pieces], dim=batch_dim), expected)


def test_samples_have_their_shapes_and_ranges() -> None:
    rng, three, unit, full = take(BatchRng(torch.Generator().manual_seed(0), 500, 100))
    assert [tuple(t.shape) for t in (rng, three, unit, full)] == [
        (400,), (3, 400), (400, 2, 4), (400,),
    ]  # fmt: skip
    assert 0.0 <= float(three.min()) < float(three.max()) < 1.0
    assert abs(float(unit.std()) - 1.0) < 0.05
    assert full.dtype == torch.int64
    assert 0 <= int(full.min()) < int(full.max()) < 1000


@given(parts=st.integers(1, 4), size=st.integers(1, 5), seed=st.integers(0, 99))
def test_per_image_generators_do_not_depend_on_the_split(parts: int, size: int, seed: int) -> None:
    def first_numbers(batch_rng: BatchRng, stream: int = 7) -> list[float]:
        each = batch_rng.per_image_generators(stream)
        return [float(torch.rand((), generator=rng, dtype=torch.float64)) for rng in each]

    def fresh(first: int = 0, count: int | None = None) -> BatchRng:
        return BatchRng(torch.Generator().manual_seed(seed), parts * size, first, count)

    full = first_numbers(fresh())
    pieces = [first_numbers(fresh(part * size, size)) for part in range(parts)]
    assert full == [value for piece in pieces for value in piece]
    assert len(set(full)) == parts * size
    used = fresh()
    used.normal(3)
    assert first_numbers(used) == full
    assert not set(first_numbers(fresh(), 8)) & set(full)
