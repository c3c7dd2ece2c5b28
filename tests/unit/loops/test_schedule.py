import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorasmith.core.errors import ConfigError
from lorasmith.loops.lr_schedule import lr_factor, resolve_warmup_steps


def test_the_rate_rises_then_falls_along_half_a_cosine() -> None:
    values = [lr_factor(step, total=14, warmup=4, min_ratio=0.2) for step in range(15)]
    assert values[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert values[4] == 1.0
    assert values[9] == pytest.approx(0.6)  # half way between 1 and the floor
    assert values[14] == pytest.approx(0.2)
    assert values[6] == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * 0.2)))


def test_the_other_kinds() -> None:
    assert [lr_factor(s, 10, 0, 0.0, "linear") for s in (0, 5, 10)] == [1.0, 0.5, 0.0]
    assert lr_factor(9, 10, 0, 0.0, "constant") == 1.0
    assert lr_factor(0, 10, 1, 0.0, "constant") == 0.5
    assert lr_factor(99, 10, 0, 0.1, "linear") == pytest.approx(0.1)  # stays at the floor


@pytest.mark.parametrize(("floor", "warmup"), [(-0.1, 0), (1.1, 0), (0.5, -1)])
def test_impossible_settings_are_refused(floor: float, warmup: int) -> None:
    with pytest.raises(ConfigError):
        lr_factor(0, 10, warmup, floor)


@given(
    total=st.integers(1, 500),
    warmup=st.integers(0, 600),
    floor=st.floats(0.0, 1.0),
    kind=st.sampled_from(["constant", "linear", "cosine"]),
)
def test_one_peak_and_no_less_than_the_floor(
    total: int, warmup: int, floor: float, kind: str
) -> None:
    values = [lr_factor(step, total, warmup, floor, kind) for step in range(total)]
    peak = min(warmup, total)
    assert all(0.0 < value <= 1.0 + 1e-12 for value in values[:peak])
    assert values[:peak] == sorted(values[:peak])
    assert values[peak:] == sorted(values[peak:], reverse=True)
    assert all(value >= floor - 1e-12 for value in values[peak:])


@pytest.mark.parametrize(
    ("warmup", "steps"), [(20, 20), (0, 0), (0.05, 25), (0.001, 0), (0.999, 500), (1, 1)]
)
def test_a_warm_up_may_be_a_share_of_all_steps(warmup: float, steps: int) -> None:
    assert resolve_warmup_steps(warmup, 500) == steps
