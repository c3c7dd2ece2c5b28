"""Each rule on curves that call for it and on curves that do not, many seeds each."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from noisy_curves import Trend, jumping, learning, level, losses, running_away, swinging

from lorasmith.config.train_config import TrainConfig
from lorasmith.reports.advice import Advice, advise, best_step, relative_validation_loss
from lorasmith.reports.curves import extract_curve

SEEDS = range(40)

Shape = Callable[[float], float]


def run_of(**train: Any) -> TrainConfig:
    data = {"path": "pictures", "tag": "ink"}
    tree = {"data": data, "output": {"name": "some/ink"}, "train": train, "lora": {"rank": 8}}
    return TrainConfig.model_validate(tree)


def log(
    trend: Trend, seed: int, shape: Shape | None = None, every: int = 50, key: str = "held_out",
    **sizes: int,
) -> list[dict[str, float]]:  # fmt: skip
    """The log of a run: its training loss, and its held-out loss where a shape is given.

    The held-out loss is measured on the same pictures, levels and noises each time, so that it is
    nearly free of noise; half a percent is left.
    """
    curve = losses(trend, seed, **sizes)
    lines = [
        {"step": int(step), "loss": float(value), "lr": 1e-3}
        for step, value in zip(curve.steps, curve.values, strict=True)
    ]
    if shape is not None:
        draws = np.random.default_rng(1000 + seed)
        total = int(curve.steps[-1])
        for step in range(0, total + 1, every):
            value = 0.08 * shape(step / total) * float(draws.normal(1.0, 0.002))
            value = 0.08 if step == 0 else value
            lines.append({"step": step, key: value, f"{key}_base": 0.08})
    return sorted(lines, key=lambda line: line["step"])


def share_of(kind: str, logs: Sequence[list[dict[str, float]]], **train: Any) -> float:
    """In how many of the logs a rule finds something."""
    run = run_of(**train)
    return float(np.mean([kind in {one.kind for one in advise(one, run)} for one in logs]))


def the(kind: str, found: Sequence[Advice]) -> Advice:
    return next(one for one in found if one.kind == kind)


def better(x: float) -> float:
    return 0.75 + 0.25 * float(np.exp(-6 * x))


def same(x: float) -> float:
    return 1.0


def by_heart(x: float) -> float:
    """Better until two fifths, then worse and worse."""
    return 1.0 - 0.6 * x + 0.75 * x**2


def worse(x: float) -> float:
    return 1.0 + 0.2 * x


# --- flat -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [250, 1000])
def test_a_flat_curve_is_found(steps: int) -> None:
    assert share_of("flat", [log(level, seed, steps=steps) for seed in SEEDS]) >= 0.8
    assert share_of("flat", [log(level, seed, same, steps=steps) for seed in SEEDS]) >= 0.8
    found = the("flat", advise(log(level, 0, same), run_of()))
    assert "learning_rate (0.001 now, try 0.002)" in found.remedy
    assert "lora.rank (8 now, try 16)" in found.remedy
    assert "on fixed noise the loss stays at the base model's" in found.evidence


@pytest.mark.parametrize("steps", [250, 1000])
def test_a_falling_curve_is_not_flat(steps: int) -> None:
    logs = [log(trend, seed, steps=steps) for seed in SEEDS for trend in (learning, _slow)]
    assert share_of("flat", logs) <= 0.05


def _slow(x: np.ndarray) -> np.ndarray:
    return 1.0 - 0.35 * x


def test_a_gain_on_held_out_pictures_is_not_flat_whatever_the_training_loss_looks_like() -> None:
    assert share_of("flat", [log(level, seed, better) for seed in SEEDS]) == 0.0


def test_without_held_out_pictures_the_training_pictures_on_fixed_noise_tell() -> None:
    learned = [log(level, seed, better, key="fixed_loss") for seed in SEEDS]
    assert share_of("flat", learned) == share_of("unclear", learned) == 0.0
    assert "fell by 25.1%" in the("fine", advise(learned[0], run_of())).evidence
    assert share_of("flat", [log(level, seed, same, key="fixed_loss") for seed in SEEDS]) >= 0.8
    memorised = [log(learning, seed, by_heart, key="fixed_loss") for seed in SEEDS]
    assert share_of("overfitting", memorised) == 0.0


def test_a_curve_that_is_too_noisy_is_said_to_be_so() -> None:
    logs = [log(level, seed, steps=200, batch=1, line=4) for seed in SEEDS]
    assert share_of("unclear", logs, batch_size=1) >= 0.6
    assert share_of("flat", logs, batch_size=1) <= 0.2


# --- oscillating ----------------------------------------------------------------------------------


@pytest.mark.parametrize("trend", [swinging, running_away, jumping])
def test_a_swinging_curve_is_found(trend: Trend) -> None:
    assert share_of("oscillating", [log(trend, seed) for seed in SEEDS]) >= 0.8
    found = the("oscillating", advise(log(trend, 0), run_of()))
    assert "learning_rate (0.001 now, try 0.0005)" in found.remedy
    assert "batch_size (8 now, try 16)" in found.remedy


@pytest.mark.parametrize("trend", [learning, level])
@pytest.mark.parametrize(("batch", "steps"), [(8, 250), (8, 4000), (1, 1500)])
def test_the_noise_of_single_steps_is_no_swing(trend: Trend, batch: int, steps: int) -> None:
    logs = [log(trend, seed, batch=batch, steps=steps) for seed in SEEDS]
    assert share_of("oscillating", logs, batch_size=batch) <= 0.08


# --- overfitting ----------------------------------------------------------------------------------


def test_overfitting_is_found_and_points_to_the_best_step() -> None:
    assert share_of("overfitting", [log(learning, seed, by_heart) for seed in SEEDS]) >= 0.95
    found = the("overfitting", advise(log(learning, 0, by_heart), run_of()))
    assert found.remedy.startswith("Use ink-best.safetensors, the state at step 100")
    assert "From step 100 to step 250" in found.evidence


def test_overfitting_from_the_start_points_to_the_base_model() -> None:
    found = the("overfitting", advise(log(learning, 0, worse), run_of()))
    assert "The base model itself does better" in found.remedy
    assert "-best" not in found.remedy


@pytest.mark.parametrize("every", [10, 50, 100])
def test_a_held_out_loss_that_falls_or_stays_is_no_overfitting(every: int) -> None:
    logs = [log(learning, seed, shape, every) for seed in SEEDS for shape in (better, same)]
    assert share_of("overfitting", logs) <= 0.03


def test_a_run_whose_losses_rise_together_is_no_overfitting_but_a_swing() -> None:
    logs = [log(running_away, seed, by_heart) for seed in SEEDS]
    assert share_of("overfitting", logs) <= 0.1
    assert share_of("oscillating", logs) >= 0.9


def test_one_bad_measurement_is_no_overfitting() -> None:
    lines = log(learning, 0, better)
    lines[-1]["held_out"] = 0.2
    assert share_of("overfitting", [lines]) == 0.0


def test_a_last_look_behind_the_base_model_is_not_called_healthy() -> None:
    lines = log(learning, 0, better)
    last = [line for line in lines if "held_out" in line][-1]
    last["held_out"] = 1.2 * last["held_out_base"]
    (found,) = advise(lines, run_of())
    assert (found.kind, found.title) == ("unclear", "The last look is worse than an earlier one")
    assert "20.0% above it at step 250" in found.evidence
    assert found.remedy.startswith("Compare with ink-best.safetensors, the state at step 200")


# --- nothing to blame -----------------------------------------------------------------------------


def test_a_healthy_run_is_told_so_with_its_gain() -> None:
    logs = [log(learning, seed, better) for seed in SEEDS]
    assert share_of("fine", logs) >= 0.9
    found = advise(log(learning, 0, better), run_of())
    assert [one.kind for one in found] == ["fine"]
    assert "the loss is 25.1% below the base model's at its best (step 250)" in found[0].evidence
    assert found[0].remedy == ""


def test_without_held_out_pictures_the_verdict_is_careful() -> None:
    found = advise(log(learning, 0, steps=1000), run_of())
    assert "only pictures kept out" in the("fine", found).evidence
    unseen = advise(log(learning, 0, same, steps=1000), run_of())
    assert "no gain over the base model" in the("fine", unseen).evidence


@pytest.mark.parametrize("lines", [[], [{"step": 10, "loss": 0.1}]])
def test_a_log_with_hardly_anything_is_too_short(lines: list[dict[str, float]]) -> None:
    found = advise(lines, run_of())
    assert [one.title for one in found] == ["Too short to judge"]
    told = {0: "has 0 lines with a loss", 1: "has 1 line with a loss"}
    assert told[len(lines)] in found[0].evidence


def test_the_best_step_is_the_earliest_lowest() -> None:
    lines = [
        {"step": step, "held_out": value, "held_out_base": 2.0}
        for step, value in [(0, 2.0), (10, 1.0), (20, 1.5), (30, 1.0)]
    ]
    assert relative_validation_loss(lines).values.tolist() == [1.0, 0.5, 0.75, 0.5]
    assert best_step(relative_validation_loss(lines)) == 10
    assert best_step(extract_curve([], "x")) is None
