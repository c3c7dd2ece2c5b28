import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorasmith.core.errors import ConfigError
from lorasmith.loops.optimization.lr_schedule import lr_factor, resolve_warmup_steps


def test_lr_rises_then_falls_along_half_a_cosine() -> None:
    factors = [lr_factor(step, total_steps=14, warmup_steps=4, min_ratio=0.2) for step in range(15)]
    assert factors[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert factors[4] == 1.0
    assert factors[9] == pytest.approx(0.6)  # half way between 1 and the minimum
    assert factors[14] == pytest.approx(0.2)
    assert factors[6] == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * 0.2)))


def test_linear_and_constant_schedules_have_their_shape() -> None:
    assert [lr_factor(step, 10, 0, 0.0, "linear") for step in (0, 5, 10)] == [1.0, 0.5, 0.0]
    assert lr_factor(9, 10, 0, 0.0, "constant") == 1.0
    assert lr_factor(0, 10, 1, 0.0, "constant") == 0.5
    assert lr_factor(99, 10, 0, 0.1, "linear") == pytest.approx(0.1)  # stays at the minimum


@given(min_ratio=st.floats(0.0, 1.0))
def test_constant_schedule_ignores_the_minimum(min_ratio: float) -> None:
    assert lr_factor(7, 10, 0, min_ratio, "constant") == 1.0


@pytest.mark.parametrize(
    ("min_ratio", "warmup_steps", "schedule", "message"),
    [
        (-0.1, 0, "cosine", "lr_scheduler_min_lr_ratio must be between 0 and 1"),
        (1.1, 0, "cosine", "lr_scheduler_min_lr_ratio must be between 0 and 1"),
        (0.5, -1, "cosine", "lr_warmup_steps cannot be negative"),
        (0.5, 0, "cosin", "no learning rate schedule 'cosin'; did you mean 'cosine'"),
    ],
)
def test_impossible_settings_are_refused(
    min_ratio: float, warmup_steps: int, schedule: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        lr_factor(0, 10, warmup_steps, min_ratio, schedule)


@given(
    total_steps=st.integers(1, 500),
    warmup_steps=st.integers(0, 600),
    min_ratio=st.floats(0.0, 1.0),
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
)
def test_lr_has_one_peak_and_stays_above_the_minimum(
    total_steps: int, warmup_steps: int, min_ratio: float, schedule: str
) -> None:
    factors = [
        lr_factor(step, total_steps, warmup_steps, min_ratio, schedule)
        for step in range(total_steps)
    ]
    peak = min(warmup_steps, total_steps)
    assert all(0.0 < factor <= 1.0 + 1e-12 for factor in factors[:peak])
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert all(factor >= min_ratio - 1e-12 for factor in factors[peak:])


@pytest.mark.parametrize(
    ("warmup", "steps"), [(20, 20), (0, 0), (0.05, 25), (0.001, 0), (0.999, 500), (1, 1)]
)
def test_warmup_below_1_is_a_share_of_all_steps(warmup: float, steps: int) -> None:
    assert resolve_warmup_steps(warmup, 500) == steps
