"""What a run's curves say in plain words: too little, too much, too long, or fine.

Each rule states its evidence. Thresholds were chosen on simulated curves with the noise of real
ones, so that curves without a fault hardly ever get a warning (see the tests).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lorasmith.config.train_config import TrainConfig
from lorasmith.reports.curves import (
    Curve,
    downsample,
    estimate_jitter,
    estimate_noise,
    extract_curve,
    measure_fall,
    measure_rise,
)
from lorasmith.runs.paths import RunPaths

Kind = Literal["flat", "oscillating", "overfitting", "unclear", "fine", "failed"]
Log = Sequence[Mapping[str, float]]
"""The lines of ``log.jsonl``."""

_MIN_LINES = 8
"""Lines of the log below which the training loss is not judged."""
_FALL_P_VALUE, _FALL_SHARE = 0.1, 0.25
_RISE_P_VALUE, _RISE_SHARE = 0.01, 0.15
_MIN_GAIN = 0.01
"""Share by which the validation loss must be below the base model's to count as learned."""
_LOST_GAIN, _MIN_LOST_LOSS = 0.15, 0.01
"""Overfitting: what is lost again, as a share of the gain and of the base model's loss."""
_SPREAD_OF_IMAGES = 1.4
"""Standard deviation over mean of the losses of single images at random noise levels."""
_EXCESS, _MIN_SPREAD = 2.0, 0.25
_MAX_NOISE = 0.5
"""Noise (of logarithms, line to line) that can hide whether a curve falls."""


@dataclass(frozen=True)
class Advice:
    """One finding."""

    kind: Kind
    """Which rule found it."""
    title: str
    """The finding in a few words."""
    evidence: str
    """What the curves show."""
    remedy: str = ""
    """What to do about it; may be empty."""


@dataclass(frozen=True)
class CurrentSettings:
    """The settings that advice refers to."""

    learning_rate: float | None
    """The peak; None if it is unknown."""
    batch_size: int
    images_per_step: int
    rank: int
    best_lora: str
    """Name of the file with the best LoRA."""

    @classmethod
    def of_run(cls, config: TrainConfig, log: Log) -> "CurrentSettings":
        """Read the settings; the log knows a learning rate that they leave open."""
        rates = extract_curve(log, "lr").values
        return cls(
            learning_rate=float(rates.max()) if len(rates) else config.train.learning_rate,
            batch_size=config.train.batch_size,
            images_per_step=config.train.images_per_step(),
            rank=config.lora.rank,
            best_lora=RunPaths.from_name(config.output.name).best_lora.name,
        )


def advise(log: Log, config: TrainConfig) -> list[Advice]:
    """Judge a run by its log.

    Args:
        log: the lines of ``log.jsonl``.
        config: the run's settings, for values to try next.

    Returns:
        The findings, the most urgent first; at least one.
    """
    settings = CurrentSettings.of_run(config, log)
    losses = downsample(extract_curve(log, "loss"))
    validation, fixed = relative_validation_loss(log), relative_to_base(log, "fixed_loss")
    if len(losses) < _MIN_LINES:
        return [_find_overfitting(losses, validation, settings) or _too_short(losses)]
    findings = [
        _find_oscillation(losses, settings),
        _find_overfitting(losses, validation, settings),
        _find_flatness(losses, validation if len(validation) else fixed, settings),
    ]
    faults = [finding for finding in findings if finding is not None]
    return faults or [_find_late_loss(validation, settings) or _fine(losses, validation, fixed)]


def relative_validation_loss(log: Log) -> Curve:
    """Return the validation loss over the base model's: 1 is no better than the base model."""
    return relative_to_base(log, "validation_loss")


def relative_to_base(log: Log, key: str) -> Curve:
    """Return a loss on fixed noise over the base model's loss on the same noise."""
    base = f"{key}_base"
    lines = [line for line in log if line.get(key) is not None and line.get(base)]
    ratios = [{"step": line["step"], "ratio": line[key] / line[base]} for line in lines]
    return extract_curve(ratios, "ratio")


def best_step(validation: Curve) -> int | None:
    """Return the step with the lowest validation loss, the earliest of equal ones."""
    return int(validation.steps[validation.values.argmin()]) if len(validation) else None


def _find_flatness(losses: Curve, measured: Curve, settings: CurrentSettings) -> Advice | None:
    """Find that nothing is learned: neither the training loss nor one on fixed noise falls."""
    fall = measure_fall(losses)
    if fall.is_significant(_FALL_P_VALUE) or _gain(measured) is not None:
        return None
    is_measured = len(measured) > 1
    noise = estimate_noise(losses)
    if not is_measured and (noise > _MAX_NOISE or fall.share >= _FALL_SHARE):
        return Advice(
            "unclear",
            "The training loss is too noisy to judge by",
            f"It varies by {noise:.0%} from line to line, which can hide a fall of "
            f"{max(fall.share, _FALL_SHARE):.0%}.",
            "Look at the previews; for a measurement, hold out some images for validation "
            "(data.validation_split = 0.1), or log larger batches.",
        )
    evidence = "The training loss does not fall more than its noise explains"
    evidence += ", and on fixed noise the loss stays at the base model's." if is_measured else "."
    return Advice(
        "flat",
        "Hardly anything is learned",
        evidence,
        f"Raise train.learning_rate{_suggest(settings.learning_rate, 2.0)} or "
        f"lora.rank{_suggest(settings.rank, 2)}.",
    )


def _find_oscillation(losses: Curve, settings: CurrentSettings) -> Advice | None:
    """Find that the steps are too large: the loss rises again, or jumps from line to line."""
    rise, spread = measure_rise(losses), estimate_noise(losses)
    # A downsampled point is the mean of several lines, and so of more images.
    images = settings.images_per_step * float(np.diff(losses.steps).mean())
    expected = _SPREAD_OF_IMAGES / images**0.5
    if rise.is_significant(_RISE_P_VALUE) and rise.share >= _RISE_SHARE:
        evidence = f"The smoothed training loss rises by {rise.share:.0%} from an earlier low."
    elif spread > max(_EXCESS * expected, _MIN_SPREAD):
        evidence = (
            f"The training loss jumps by {spread:.0%} from line to line; {expected:.0%} is usual "
            "with this many images per line."
        )
    else:
        return None
    return Advice(
        "oscillating",
        "The loss oscillates",
        evidence,
        f"Lower train.learning_rate{_suggest(settings.learning_rate, 0.5)} or use a larger "
        f"train.batch_size{_suggest(settings.batch_size, 2)}.",
    )


def _suggest(value: float | None, factor: float) -> str:
    """Return `` (now 8, try 16)``; nothing if the value is unknown."""
    if value is None:
        return ""
    now, new = (str(x) if isinstance(x, int) else f"{x:.2g}" for x in (value, value * factor))
    return f" (now {now}, try {new})"


def _find_overfitting(losses: Curve, validation: Curve, settings: CurrentSettings) -> Advice | None:
    """Find that the validation loss rises while the training loss falls."""
    best = best_step(validation)
    if best is None or len(validation) < 3:
        return None
    lowest, later = float(validation.values.min()), validation.after(best)
    jitter = estimate_jitter(validation.values)
    limit = max(_MIN_LOST_LOSS, _LOST_GAIN * max(0.0, 1.0 - lowest), 2 * jitter)
    # A single measurement may be chance, so the last two must agree.
    if len(later) < 2 or float(later.values[-2:].min()) - lowest < limit:
        return None
    if _rises_after(losses, best):
        return None
    rise = float(later.values[-1]) / lowest - 1.0
    remedy = (
        f"Use {settings.best_lora}, the state at step {best}"
        if best > 0
        else "The base model itself does better: use other or more images"
    )
    return Advice(
        "overfitting",
        "It memorises the training images (overfitting)",
        f"From step {best} to step {int(later.steps[-1])} the validation loss rises by {rise:.1%}, "
        "while the training loss does not.",
        f"{remedy}. Next time: fewer steps, a smaller lora.rank, lora.dropout, or more images.",
    )


def _rises_after(losses: Curve, step: int) -> bool:
    """Return whether the training loss is certainly higher after a step than just before it."""
    later = losses.after(step)
    before = losses.values[: len(losses) - len(later)][-max(1, len(later)) :]
    if not len(later) or not len(before):
        return False
    change = float(np.log(later.values).mean() - np.log(before).mean())
    error = estimate_noise(losses) * (1.0 / len(later) + 1.0 / len(before)) ** 0.5
    return bool(change > 2.0 * error)


def _gain(validation: Curve) -> float | None:
    """Return the share by which the lowest loss is below the base model's; None if too little."""
    gain = 1.0 - float(validation.values.min()) if len(validation) else 0.0
    return gain if gain >= _MIN_GAIN else None


def _too_short(losses: Curve) -> Advice:
    return Advice(
        "unclear",
        "Too short to judge",
        f"The log has {len(losses)} {'line' if len(losses) == 1 else 'lines'} with a loss; "
        f"{_MIN_LINES} are needed.",
        "Train longer, or set train.log_every_n_steps lower.",
    )


def _find_late_loss(validation: Curve, settings: CurrentSettings) -> Advice | None:
    """Find that only the last validation loss is above the base model's, after a gain."""
    best, gain = best_step(validation), _gain(validation)
    if best is None or gain is None or float(validation.values[-1]) <= 1.0:
        return None
    return Advice(
        "unclear",
        "The last validation loss is worse than an earlier one",
        f"The validation loss is {gain:.1%} below the base model's at step {best}, and "
        f"{float(validation.values[-1]) - 1.0:.1%} above it at step {int(validation.steps[-1])}. "
        "A single measurement may be chance.",
        f"Compare with {settings.best_lora}, the state at step {best}. "
        "A lower validation.every_n_steps gives more measurements.",
    )


def _fine(losses: Curve, validation: Curve, fixed: Curve) -> Advice:
    gain, training = (
        _gain(validation),
        f"The training loss fell by {measure_fall(losses).share:.0%}",
    )
    fixed_gain = 1.0 - float(fixed.values.min()) if len(fixed) else 0.0
    if fixed_gain > 0.0:
        training = f"On fixed noise, the loss on the training images fell by {fixed_gain:.1%}"
    if gain is not None:
        evidence = (
            f"The validation loss is {gain:.1%} below the base model's at its best "
            f"(step {best_step(validation)})."
        )
    elif len(validation):
        evidence = (
            f"{training}; the validation loss is no lower than the base model's. Look at the "
            "previews."
        )
    else:
        evidence = (
            f"{training}. Whether more was learned than these images, only validation images "
            "(data.validation_split) would show."
        )
    return Advice("fine", "The curves look healthy", evidence)
