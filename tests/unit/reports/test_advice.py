"""Each rule of the advice on curves with and without its problem, with many seeds."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from helpers.reports.noisy_curves import (
    LossTrend,
    diverging,
    jumping,
    learning,
    level,
    losses,
    oscillating,
)
from lorasmith.config.train_config import TrainConfig
from lorasmith.reports.advice import Advice, advise, best_step, relative_validation_loss
from lorasmith.reports.curves import extract_curve

SEEDS = range(40)

Shape = Callable[[float], float]


def make_config(**train: Any) -> TrainConfig:
    data = {"path": "pictures", "tag": "ink"}
    tree = {"data": data, "output": {"name": "some/ink"}, "train": train, "lora": {"rank": 8}}
    return TrainConfig.model_validate(tree)


def log(
    trend: LossTrend, seed: int, shape: Shape | None = None, interval: int = 50,
    key: str = "validation_loss", **sizes: int,
) -> list[dict[str, float]]:  # fmt: skip
    """The log of a run: its training loss, and a validation loss if a shape is given.

    The validation loss is measured on the same images, noise levels and noise each time, so that
    it has hardly any noise of its own: half a percent.
    """
    curve = losses(trend, seed, **sizes)
    lines = [
        {"step": int(step), "loss": float(value), "lr": 1e-3}
        for step, value in zip(curve.steps, curve.values, strict=True)
    ]
    if shape is not None:
        rng = np.random.default_rng(1000 + seed)
        total = int(curve.steps[-1])
        for step in range(0, total + 1, interval):
            value = 0.08 * shape(step / total) * float(rng.normal(1.0, 0.002))
            value = 0.08 if step == 0 else value
            lines.append({"step": step, key: value, f"{key}_base": 0.08})
    return sorted(lines, key=lambda line: line["step"])


def share_of(kind: str, logs: Sequence[list[dict[str, float]]], **train: Any) -> float:
    """The share of the logs for which a rule finds something."""
    config = make_config(**train)
    findings = [{advice.kind for advice in advise(log, config)} for log in logs]
    return float(np.mean([kind in kinds for kinds in findings]))


def of_kind(kind: str, findings: Sequence[Advice]) -> Advice:
    return next(advice for advice in findings if advice.kind == kind)


def better(x: float) -> float:
    return 0.75 + 0.25 * float(np.exp(-6 * x))


def identity(x: float) -> float:
    return 1.0


def overfitting(x: float) -> float:
    """Better until two fifths, then worse and worse."""
    return 1.0 - 0.6 * x + 0.75 * x**2


def worse(x: float) -> float:
    return 1.0 + 0.2 * x


# --- flat -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [250, 1000])
def test_flat_curve_is_found(steps: int) -> None:
    assert share_of("flat", [log(level, seed, steps=steps) for seed in SEEDS]) >= 0.8
    assert share_of("flat", [log(level, seed, identity, steps=steps) for seed in SEEDS]) >= 0.8
    advice = of_kind("flat", advise(log(level, 0, identity), make_config()))
    assert "learning_rate (now 0.001, try 0.002)" in advice.remedy
    assert "lora.rank (now 8, try 16)" in advice.remedy
    assert "on fixed noise the loss stays at the base model's" in advice.evidence


@pytest.mark.parametrize("steps", [250, 1000])
def test_falling_curve_is_not_flat(steps: int) -> None:
    logs = [log(trend, seed, steps=steps) for seed in SEEDS for trend in (learning, _slow)]
    assert share_of("flat", logs) <= 0.05


def _slow(x: np.ndarray) -> np.ndarray:
    return 1.0 - 0.35 * x


def test_validation_gain_is_not_flat_whatever_the_training_loss() -> None:
    assert share_of("flat", [log(level, seed, better) for seed in SEEDS]) == 0.0


def test_flatness_is_judged_by_fixed_noise_loss_without_validation() -> None:
    learned = [log(level, seed, better, key="fixed_loss") for seed in SEEDS]
    assert share_of("flat", learned) == share_of("unclear", learned) == 0.0
    assert "fell by 25.1%" in of_kind("fine", advise(learned[0], make_config())).evidence
    assert share_of("flat", [log(level, seed, identity, key="fixed_loss") for seed in SEEDS]) >= 0.8
    memorised = [log(learning, seed, overfitting, key="fixed_loss") for seed in SEEDS]
    assert share_of("overfitting", memorised) == 0.0


def test_too_noisy_curve_is_unclear() -> None:
    logs = [log(level, seed, steps=200, batch=1, line=4) for seed in SEEDS]
    assert share_of("unclear", logs, batch_size=1) >= 0.6
    assert share_of("flat", logs, batch_size=1) <= 0.2


# --- oscillating ----------------------------------------------------------------------------------


@pytest.mark.parametrize("trend", [oscillating, diverging, jumping])
def test_oscillating_curve_is_found(trend: LossTrend) -> None:
    assert share_of("oscillating", [log(trend, seed) for seed in SEEDS]) >= 0.8
    advice = of_kind("oscillating", advise(log(trend, 0), make_config()))
    assert "learning_rate (now 0.001, try 0.0005)" in advice.remedy
    assert "batch_size (now 8, try 16)" in advice.remedy


@pytest.mark.parametrize("trend", [learning, level])
@pytest.mark.parametrize(("batch", "steps"), [(8, 250), (8, 4000), (1, 1500)])
def test_noise_of_single_steps_is_not_oscillation(trend: LossTrend, batch: int, steps: int) -> None:
    logs = [log(trend, seed, batch=batch, steps=steps) for seed in SEEDS]
    assert share_of("oscillating", logs, batch_size=batch) <= 0.08


# --- overfitting ----------------------------------------------------------------------------------


def test_overfitting_is_found_and_points_to_the_best_step() -> None:
    assert share_of("overfitting", [log(learning, seed, overfitting) for seed in SEEDS]) >= 0.95
    advice = of_kind("overfitting", advise(log(learning, 0, overfitting), make_config()))
    assert advice.remedy.startswith("Use ink-best.safetensors, the state at step 100")
    assert "From step 100 to step 250" in advice.evidence


def test_overfitting_from_the_start_points_to_the_base_model() -> None:
    advice = of_kind("overfitting", advise(log(learning, 0, worse), make_config()))
    assert "The base model itself does better" in advice.remedy
    assert "-best" not in advice.remedy


@pytest.mark.parametrize("interval", [10, 50, 100])
def test_falling_or_constant_validation_loss_is_not_overfitting(interval: int) -> None:
    logs = [log(learning, seed, shape, interval) for seed in SEEDS for shape in (better, identity)]
    assert share_of("overfitting", logs) <= 0.03


def test_losses_that_rise_together_are_oscillation_not_overfitting() -> None:
    logs = [log(diverging, seed, overfitting) for seed in SEEDS]
    assert share_of("overfitting", logs) <= 0.1
    assert share_of("oscillating", logs) >= 0.9


def test_one_bad_measurement_is_not_overfitting() -> None:
    lines = log(learning, 0, better)
    lines[-1]["validation_loss"] = 0.2
    assert share_of("overfitting", [lines]) == 0.0


def test_last_validation_loss_above_the_base_model_is_not_fine() -> None:
    lines = log(learning, 0, better)
    last = [line for line in lines if "validation_loss" in line][-1]
    last["validation_loss"] = 1.2 * last["validation_loss_base"]
    (advice,) = advise(lines, make_config())
    assert (advice.kind, advice.title) == (
        "unclear",
        "The last validation loss is worse than an earlier one",
    )
    assert "20.0% above it at step 250" in advice.evidence
    assert advice.remedy.startswith("Compare with ink-best.safetensors, the state at step 200")


# --- no fault -----------------------------------------------------------------------------


def test_healthy_run_is_fine_and_has_its_gain() -> None:
    logs = [log(learning, seed, better) for seed in SEEDS]
    assert share_of("fine", logs) >= 0.9
    findings = advise(log(learning, 0, better), make_config())
    assert [advice.kind for advice in findings] == ["fine"]
    assert "loss is 25.1% below the base model's at its best (step 250)" in findings[0].evidence
    assert findings[0].remedy == ""


def test_without_validation_images_the_advice_is_careful() -> None:
    findings = advise(log(learning, 0, steps=1000), make_config())
    assert "only validation images" in of_kind("fine", findings).evidence
    unseen = advise(log(learning, 0, identity, steps=1000), make_config())
    assert "no lower than the base model's" in of_kind("fine", unseen).evidence


@pytest.mark.parametrize("lines", [[], [{"step": 10, "loss": 0.1}]])
def test_log_with_too_few_lines_is_too_short(lines: list[dict[str, float]]) -> None:
    findings = advise(lines, make_config())
    assert [advice.title for advice in findings] == ["Too short to judge"]
    counts = {0: "has 0 lines with a loss", 1: "has 1 line with a loss"}
    assert counts[len(lines)] in findings[0].evidence


def test_best_step_is_the_earliest_lowest() -> None:
    lines = [
        {"step": step, "validation_loss": value, "validation_loss_base": 2.0}
        for step, value in [(0, 2.0), (10, 1.0), (20, 1.5), (30, 1.0)]
    ]
    assert relative_validation_loss(lines).values.tolist() == [1.0, 0.5, 0.75, 0.5]
    assert best_step(relative_validation_loss(lines)) == 10
    assert best_step(extract_curve([], "x")) is None
