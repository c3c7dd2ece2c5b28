"""What a run's curves say in plain words: too little, too much, too long, or fine.

Each rule states its evidence. Thresholds were chosen on simulated curves with the noise of real
ones, so that curves without the fault are hardly ever blamed (see the tests).
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

Kind = Literal["flat", "oscillating", "overfitting", "unclear", "fine"]

_FEWEST_LINES = 8
"""Lines of the log below which the training loss is not judged."""
_FALL_CHANCE, _FALL_SHARE = 0.1, 0.25
_CLIMB_CHANCE, _CLIMB_SHARE = 0.01, 0.15
_SMALLEST_GAIN = 0.01
"""Share by which the held-out loss has to be better than the base model's to count as learned."""
_LOST_GAIN, _SMALLEST_LOSS = 0.15, 0.01
"""Overfitting: what is lost again, as a share of the gain and of the base model's loss."""
_SPREAD_OF_SAMPLES = 1.4
"""Standard deviation over mean of the losses of single pictures at random noise levels."""
_EXCESS, _SMALLEST_SPREAD = 2.0, 0.25
_HIDDEN = 0.5
"""Noise (of logarithms, line to line) above which a flat curve is not told from a falling one."""


@dataclass(frozen=True)
class Advice:
    """One finding."""

    kind: Kind
    """Which rule."""
    title: str
    """What is the matter, in a few words."""
    evidence: str
    """What was seen in the curves."""
    remedy: str
    """What to do about it; empty where there is nothing to do."""


def advise(records: Sequence[Mapping[str, float]], run: TrainConfig) -> list[Advice]:
    """Judge a run by its log.

    Args:
        records: the lines of ``log.jsonl``.
        run: its settings, for numbers to try next. A learning rate that they leave
            open is taken from the log.

    Returns:
        The findings, the most urgent first; at least one.
    """
    losses = downsample(extract_curve(records, "loss"))
    held_out, fixed = relative_validation_loss(records), relative_to_base(records, "fixed_loss")
    if len(losses) < _FEWEST_LINES:
        return [_overfitting(losses, held_out, run) or _too_short(losses)]
    rates = extract_curve(records, "lr").values
    peak = float(rates.max()) if len(rates) else run.train.learning_rate
    found = [
        _oscillating(losses, run, peak),
        _overfitting(losses, held_out, run),
        _flat(losses, held_out if len(held_out) else fixed, run, peak),
    ]
    sure = [one for one in found if one is not None]
    return sure or [_too_far(held_out, run) or _fine(losses, held_out, fixed)]


def relative_validation_loss(records: Sequence[Mapping[str, float]]) -> Curve:
    """Return the held-out loss as a share of the base model's: 1 is no better than it."""
    return relative_to_base(records, "held_out")


def relative_to_base(records: Sequence[Mapping[str, float]], key: str) -> Curve:
    """Return a loss on fixed noise as a share of the base model's on the same."""
    base = f"{key}_base"
    pairs = [r for r in records if r.get(key) is not None and r.get(base)]
    return extract_curve([{"step": r["step"], "share": r[key] / r[base]} for r in pairs], "share")


def best_step(held_out: Curve) -> int | None:
    """Return the step with the lowest held-out loss, the earliest of equals."""
    return int(held_out.steps[held_out.values.argmin()]) if len(held_out) else None


def _flat(losses: Curve, measured: Curve, run: TrainConfig, peak: float | None) -> Advice | None:
    """Nothing is learned: neither the training loss nor one on fixed noise falls."""
    fallen = measure_fall(losses)
    if fallen.is_significant(_FALL_CHANCE) or _gain(measured) is not None:
        return None
    known = len(measured) > 1
    if not known and (estimate_noise(losses) > _HIDDEN or fallen.share >= _FALL_SHARE):
        return Advice(
            "unclear",
            "The training loss is too noisy to judge by",
            f"It varies by {estimate_noise(losses):.0%} from line to line, which can hide a fall of "
            f"{max(fallen.share, _FALL_SHARE):.0%}.",
            "Look at the previews; for a measurement, keep some pictures out (data.validation_split = "
            "0.1), or log larger batches.",
        )
    evidence = "The training loss does not fall more than its noise explains"
    evidence += ", and on fixed noise the loss stays at the base model's." if known else "."
    rank = run.lora.rank
    return Advice(
        "flat",
        "Hardly anything is learned",
        evidence,
        f"Raise train.learning_rate{_try(peak, 2.0)} or lora.rank{_try(rank, 2)}.",
    )


def _oscillating(losses: Curve, run: TrainConfig, peak: float | None) -> Advice | None:
    """The steps are too large: the loss climbs again, or jumps from line to line."""
    climb, spread = measure_rise(losses), estimate_noise(losses)
    # Thinning averages lines of long logs, and with them samples.
    samples = run.train.images_per_step() * float(np.diff(losses.steps).mean())
    expected = _SPREAD_OF_SAMPLES / samples**0.5
    if climb.is_significant(_CLIMB_CHANCE) and climb.share >= _CLIMB_SHARE:
        evidence = f"The smoothed training loss climbs by {climb.share:.0%} from an earlier low."
    elif spread > max(_EXCESS * expected, _SMALLEST_SPREAD):
        evidence = (
            f"The training loss jumps by {spread:.0%} from line to line; {expected:.0%} is usual "
            "with so many pictures in a line."
        )
    else:
        return None
    return Advice(
        "oscillating",
        "The loss swings",
        evidence,
        f"Lower train.learning_rate{_try(peak, 0.5)} or use a larger "
        f"train.batch_size{_try(run.train.batch_size, 2)}.",
    )


def _try(now: float | None, factor: float) -> str:
    """Return `` (8 now, try 16)``; nothing where the number is not known."""
    if now is None:
        return ""
    shown = (str(x) if isinstance(x, int) else f"{x:.2g}" for x in (now, now * factor))
    return " ({} now, try {})".format(*shown)


def _overfitting(losses: Curve, held_out: Curve, run: TrainConfig) -> Advice | None:
    """The pictures are learned by heart: the held-out loss rises while the training loss falls."""
    best = best_step(held_out)
    if best is None or len(held_out) < 3:
        return None
    lowest, later = float(held_out.values.min()), held_out.after(best)
    lost = max(
        _SMALLEST_LOSS, _LOST_GAIN * max(0.0, 1.0 - lowest), 2 * estimate_jitter(held_out.values)
    )
    # A single measurement may be an accident, so the last two have to agree.
    if len(later) < 2 or float(later.values[-2:].min()) - lowest < lost:
        return None
    if _rises_after(losses, best):
        return None
    risen = float(later.values[-1]) / lowest - 1.0
    remedy = (
        f"Use {base_name(run.output.name)}-best.safetensors, the state at step {best}"
        if best > 0
        else "The base model itself does better: use other or more pictures"
    )
    return Advice(
        "overfitting",
        "It learns the pictures by heart",
        f"From step {best} to step {int(later.steps[-1])} the held-out loss rises by {risen:.1%}, "
        "while the training loss does not.",
        f"{remedy}. Next time: fewer steps, a smaller lora.rank, lora.dropout, or more pictures.",
    )


def _rises_after(losses: Curve, step: int) -> bool:
    """Tell whether the training loss is certainly higher after a step than just before it."""
    later = losses.after(step)
    before = losses.values[: len(losses) - len(later)][-max(1, len(later)) :]
    if not len(later) or not len(before):
        return False
    change = float(np.log(later.values).mean() - np.log(before).mean())
    error = estimate_noise(losses) * (1.0 / len(later) + 1.0 / len(before)) ** 0.5
    return bool(change > 2.0 * error)


def base_name(name: str) -> str:
    """Return an output name without its folders."""
    return name.replace("\\", "/").rpartition("/")[2]


def _gain(held_out: Curve) -> float | None:
    """Return by which share the best held-out loss beats the base model's, if that is anything."""
    gain = 1.0 - float(held_out.values.min()) if len(held_out) else 0.0
    return gain if gain >= _SMALLEST_GAIN else None


def _too_short(losses: Curve) -> Advice:
    return Advice(
        "unclear",
        "Too short to judge",
        f"The log has {len(losses)} {'line' if len(losses) == 1 else 'lines'} with a loss; "
        f"{_FEWEST_LINES} are needed.",
        "Train longer, or set train.log_every_n_steps lower.",
    )


def _too_far(held_out: Curve, run: TrainConfig) -> Advice | None:
    """The last look alone is behind the base model, after a gain: less than overfitting needs."""
    best = best_step(held_out)
    if best is None or _gain(held_out) is None or float(held_out.values[-1]) <= 1.0:
        return None
    return Advice(
        "unclear",
        "The last look is worse than an earlier one",
        f"On pictures that were not trained on, the loss is {_gain(held_out):.1%} below the base "
        f"model's at step {best}, and {float(held_out.values[-1]) - 1.0:.1%} above it at step "
        f"{int(held_out.steps[-1])}. A single measurement may be an accident.",
        f"Compare with {base_name(run.output.name)}-best.safetensors, the state at step {best}. "
        "A lower validation.every_n_steps tells more.",
    )


def _fine(losses: Curve, held_out: Curve, fixed: Curve) -> Advice:
    gain, fallen = _gain(held_out), f"The training loss fell by {measure_fall(losses).share:.0%}"
    known = 1.0 - float(fixed.values.min()) if len(fixed) else 0.0
    if known > 0.0:
        fallen = f"On fixed noise, the loss on the training pictures fell by {known:.1%}"
    if gain is not None:
        evidence = (
            f"On pictures that were not trained on, the loss is {gain:.1%} below the base model's "
            f"at its best (step {best_step(held_out)})."
        )
    elif len(held_out):
        evidence = (
            f"{fallen}; on pictures that were not trained on there is no gain over the base "
            "model. Look at the previews."
        )
    else:
        evidence = (
            f"{fallen}. Whether it learned more than these pictures, only pictures kept out "
            "(data.validation_split) would tell."
        )
    return Advice("fine", "The curves look healthy", evidence, "")
