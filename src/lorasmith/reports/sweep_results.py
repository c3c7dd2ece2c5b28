"""The results of a sweep's LoRAs: their metrics, which is best, and how certain that is."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lorasmith.config.sweep import SweepConfig, Variant, variant_names
from lorasmith.config.train_config import ValidationConfig
from lorasmith.core.errors import LorasmithError
from lorasmith.reports.advice import Advice, best_step, relative_validation_loss
from lorasmith.reports.curves import Floats, downsample, extract_curve, smooth
from lorasmith.reports.number_format import format_percent
from lorasmith.runs.paths import RunPaths
from lorasmith.runs.run_folder import RunFolder, read_run_folder
from lorasmith.runs.sweep_paths import SweepPaths

_SEED = "train.seed"
_FAILED = "given up: "


@dataclass(frozen=True)
class SweepResult:
    """What came of one LoRA of a sweep."""

    name: str
    """The varied settings, as in its file's name."""
    settings: Mapping[str, Any]
    """The varied settings by their dotted names, with this LoRA's values."""
    folder: Path
    """Its log, previews and report."""
    file: Path | None = None
    """The LoRA; None if it was not written."""
    gain: float | None = None
    """How far its lowest validation loss is below the base model's, as a share of that; both on
    the same images, noise levels and noise. None without validation images."""
    best_step: int | None = None
    """The step of the lowest validation loss."""
    validation_loss: float | None = None
    """The lowest validation loss."""
    training_loss: float | None = None
    """The smoothed training loss at the end."""
    steps: int = 0
    """Optimizer steps taken."""
    seconds: float | None = None
    """Training time, which LoRAs that are trained together share."""
    state: str = "not begun"
    """Why training ended, as a phrase."""

    @property
    def failure(self) -> str:
        """Why it was given up; empty if it was not."""
        return self.state.removeprefix(_FAILED) if self.state.startswith(_FAILED) else ""


def read_sweep_results(config: SweepConfig, paths: SweepPaths) -> list[SweepResult]:
    """Read the results of a sweep's LoRAs so far, the best first.

    The state of one whose files are damaged says so, and nothing else is known about it.
    """
    results = [
        _read_result(variant, lora)
        for variant, lora in zip(config.variants(), paths.loras, strict=True)
    ]
    return sorted(results, key=_sort_key)


def _sort_key(result: SweepResult) -> tuple[bool, float]:
    """Sort by gain, failed runs last."""
    return bool(result.failure), math.inf if result.gain is None else -result.gain


def _read_result(variant: Variant, paths: RunPaths) -> SweepResult:
    if not paths.settings.is_file():
        return SweepResult(variant.name, variant.settings, paths.folder)
    try:
        run = read_run_folder(paths.folder)
    except LorasmithError as error:
        file = paths.lora if paths.lora.is_file() else None
        state = f"its files cannot be read: {error}"
        return SweepResult(variant.name, variant.settings, paths.folder, file, state=state)
    relative_loss = relative_validation_loss(run.log)
    validation_losses = extract_curve(run.log, "validation_loss").values
    training_losses = downsample(extract_curve(run.log, "loss"))
    is_measured = len(relative_loss) > 0
    return SweepResult(
        name=variant.name,
        settings=variant.settings,
        folder=paths.folder,
        file=paths.lora if paths.lora.is_file() else None,
        gain=1.0 - float(relative_loss.values.min()) if is_measured else None,
        best_step=best_step(relative_loss),
        validation_loss=float(validation_losses.min()) if is_measured else None,
        training_loss=_last_value(training_losses),
        steps=_steps_done(run),
        seconds=run.summary.seconds if run.summary else None,
        state=_state(run, paths),
    )


def _last_value(losses: Any) -> float | None:
    return float(smooth(losses).values[-1]) if len(losses) else None


def _steps_done(run: RunFolder) -> int:
    if run.summary:
        return run.summary.steps
    return int(max((line["step"] for line in run.log), default=0))


def _state(run: RunFolder, paths: RunPaths) -> str:
    if paths.failure.is_file():
        return f"{_FAILED}{paths.failure.read_text(encoding='utf-8', errors='replace').strip()}"
    return run.summary.stop_reason if run.summary else "not finished"


# --- how certain the differences are ----------------------------------------------------------


def make_notes(config: SweepConfig, results: Sequence[SweepResult]) -> list[Advice]:
    """Return which runs failed and which differences between the results are significant."""
    notes = [
        Advice(
            "failed",
            f"{result.name} was given up",
            f"{result.failure[:1].upper()}{result.failure[1:]}.",
        )
        for result in results
        if result.failure
    ]
    ranked = [result for result in results if result.gain is not None and not result.failure]
    return [*notes, _rank(config.validation, ranked), *_warn_of_loss_settings(config.vary)]


def _rank(validation: ValidationConfig, results: Sequence[SweepResult]) -> Advice:
    if not results:
        reason = (
            "validation.every_n_steps is 0, so nothing was measured"
            if validation.every_n_steps == 0
            else "There were no validation images"
        )
        return Advice(
            "unclear",
            "The LoRAs are not ranked",
            f"{reason}, and training losses do not tell which LoRA is better. Set "
            "data.validation_split = 0.1 or so, with validation.every_n_steps above 0, or compare "
            "the images.",
        )
    names, gains, incomplete = group_by_settings(results)
    settings, seeds = gains.shape
    if seeds < 2:
        return _unknown_chance(
            "No settings were trained with several seeds. Vary train.seed too, as in "
            "train.seed=0,1,2, to see how far gains differ by chance."
        )
    if settings == 0:
        return _unknown_chance("No settings have results for all seeds.")
    if settings == 1:
        return Advice(
            "unclear",
            "Only the seed differs",
            f"The gain is {format_percent(float(gains.mean()))} and varies by "
            f"{format_percent(float(gains.std(ddof=1)))} (standard deviation): that much is "
            "chance.",
        )
    note = _compare(names, gains)
    if not incomplete:
        return note
    left_out = f"Not compared, as a seed is missing: {', '.join(incomplete)}."
    return replace(note, evidence=f"{note.evidence} {left_out}")


def _unknown_chance(evidence: str) -> Advice:
    return Advice("unclear", "It is not known how much of the differences is chance", evidence)


def _compare(names: Sequence[str], gains: Floats) -> Advice:
    """Compare the settings that are best on average over the seeds with the others."""
    means, spread = gains.mean(axis=1), seed_spread(gains)
    best = int(means.argmax())
    limit = significance_limit(spread, gains.shape[1])
    distance = means[best] - means
    close = [name for i, name in enumerate(names) if i != best and distance[i] < limit]
    scale = (
        f"The difference between two settings varies by {format_percent(spread)} from seed to seed "
        f"(standard deviation), so that averages over {gains.shape[1]} seeds less than "
        f"{format_percent(limit)} apart say nothing."
    )
    average = f"{names[best]} gains {format_percent(float(means[best]))} on average over the seeds"
    if not close:
        title = f"{names[best]} is the best"
        return Advice("fine", title, f"{scale} {average}, the others clearly less.")
    if len(close) == len(names) - 1:
        return Advice(
            "unclear",
            "No settings are certainly better than the others",
            f"{scale} {average}, and the others are all closer than that.",
        )
    return Advice(
        "unclear",
        f"{names[best]} is among the best",
        f"{scale} {average}; closer than that: {', '.join(close)}.",
    )


def seed_spread(gains: Floats) -> float:
    """Return by how much the difference between two settings varies from seed to seed.

    What a seed does to all settings alike, such as the order of the images, is taken out: the
    residuals of a two-way layout have (S - 1)(K - 1) degrees of freedom, and the difference of two
    of them has twice their variance.

    Args:
        gains: of S settings under K seeds, float64 ``[S, K]``, both at least 2.
    """
    settings, seeds = gains.shape
    residuals = gains - gains.mean(axis=1, keepdims=True) - gains.mean(axis=0, keepdims=True)
    squares = float(np.square(residuals + gains.mean()).sum())
    return math.sqrt(2.0 * squares / ((settings - 1) * (seeds - 1)))


def significance_limit(spread: float, seeds: int) -> float:
    """Return the difference of two averages below which settings count as equal.

    That is the spread over the seeds or, for few seeds, two standard errors.
    """
    return spread * max(1.0, 2.0 / math.sqrt(seeds))


def group_by_settings(results: Sequence[SweepResult]) -> tuple[list[str], Floats, list[str]]:
    """Return a table of gains: a row for each combination of settings, a column for each seed.

    Args:
        results: with a gain each.

    Returns:
        the names of the S settings, their gains as float64 ``[S, K]``, and the names of settings
        that are left out because they lack a seed that others have.
    """
    settings = [
        {key: value for key, value in result.settings.items() if key != _SEED} for result in results
    ]
    distinct = [row for i, row in enumerate(settings) if row not in settings[:i]]
    gains_by_seed = [
        {
            result.settings.get(_SEED): result.gain
            for result, row in zip(results, settings, strict=True)
            if row == group
        }
        for group in distinct
    ]
    seeds = list(dict.fromkeys(seed for gains in gains_by_seed for seed in gains))
    names = variant_names(distinct)
    complete = {
        name: [gains[seed] for seed in seeds]
        for name, gains in zip(names, gains_by_seed, strict=True)
        if len(gains) == len(seeds)
    }
    table = np.array(list(complete.values()), dtype=np.float64).reshape(-1, len(seeds))
    return list(complete), table, [name for name in names if name not in complete]


def _warn_of_loss_settings(varied: Iterable[str]) -> Iterator[Advice]:
    names = [name for name in varied if name.startswith("train.loss.")]
    if names:
        yield Advice(
            "unclear",
            "Training losses cannot be compared",
            f"{' and '.join(names)} changes what they measure. Validation losses do not depend on "
            "it.",
        )
