"""What came of a sweep's LoRAs: their figures, which is best, and how sure that is."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lorasmith.config.sweep import SweepConfig, Variant, variant_names
from lorasmith.reports.advice import best_step, relative_validation_loss
from lorasmith.reports.curves import Floats, downsample, extract_curve, smooth
from lorasmith.runs.paths import RunPaths
from lorasmith.runs.run_folder import RunFolder, read_run_folder
from lorasmith.runs.sweep_paths import SweepPaths

_SEED = "train.seed"
_GIVEN_UP = "given up: "


@dataclass(frozen=True)
class SweepResult:
    """What came of one LoRA of a sweep."""

    name: str
    """What differs, as in its file's name."""
    settings: Mapping[str, Any]
    """The varied settings by their dotted names, with this LoRA's values."""
    file: Path | None
    """The LoRA; None where it is not there."""
    folder: Path
    """The folder of its log, previews and report."""
    gain: float | None
    """By which share of the base model's its lowest held-out loss is lower, both on the same
    pictures, noise levels and noise; None without held-out pictures."""
    best_step: int | None
    """Where that was."""
    validation_loss: float | None
    """That loss."""
    training_loss: float | None
    """The smoothed training loss at the end."""
    steps: int
    """Optimizer steps taken."""
    seconds: float | None
    """Time from start to end, which LoRAs that are trained at the same time have in common."""
    state: str
    """Why it ended, in words."""

    @property
    def failure(self) -> str:
        """Why it was given up; empty where it was not."""
        return self.state.removeprefix(_GIVEN_UP) if self.state.startswith(_GIVEN_UP) else ""


def read_sweep_results(run: SweepConfig, paths: SweepPaths) -> list[SweepResult]:
    """Read what a sweep's LoRAs have left so far; the best first, in so far as that is known.

    Raises:
        DataError: a file is damaged.
        ConfigError: the settings of one are damaged or of another version.
    """
    results = [
        _result(variant, place) for variant, place in zip(run.variants(), paths.loras, strict=True)
    ]
    return sorted(results, key=_rank)


def _rank(result: SweepResult) -> tuple[bool, float]:
    """Return what results are sorted by; those that were given up come last."""
    return bool(result.failure), math.inf if result.gain is None else -result.gain


def _result(variant: Variant, place: RunPaths) -> SweepResult:
    if not place.settings.is_file():
        return SweepResult(variant.name, variant.settings, None, place.folder, None, None, None,
                           None, 0, None, "not begun")  # fmt: skip
    folder = read_run_folder(place.folder)
    log, summary = folder.log, folder.summary
    share, losses = relative_validation_loss(log), downsample(extract_curve(log, "loss"))
    held_out = extract_curve(log, "held_out").values
    measured = len(share) > 0
    return SweepResult(
        name=variant.name,
        settings=variant.settings,
        file=place.lora if place.lora.is_file() else None,
        folder=place.folder,
        gain=1.0 - float(share.values.min()) if measured else None,
        best_step=best_step(share),
        validation_loss=float(held_out.min()) if measured else None,
        training_loss=float(smooth(losses).values[-1]) if len(losses) else None,
        steps=summary.steps if summary else int(max((line["step"] for line in log), default=0)),
        seconds=summary.seconds if summary else None,
        state=_state(folder, place),
    )


def _state(folder: RunFolder, place: RunPaths) -> str:
    if place.failure.is_file():
        return f"{_GIVEN_UP}{place.failure.read_text(encoding='utf-8').strip()}"
    return folder.summary.stop_reason if folder.summary else "not finished"


# --- how sure that is -------------------------------------------------------------------------


@dataclass(frozen=True)
class Note:
    """Something to know when reading the results."""

    kind: str
    """``fine``, ``unclear`` or ``bad``."""
    title: str
    """In a few words."""
    text: str
    """In a sentence or two."""


def make_notes(run: SweepConfig, results: Sequence[SweepResult]) -> list[Note]:
    """Say which differences between the results count for something."""
    notes = [
        Note("bad", f"{one.name} was given up", f"{one.failure[:1].upper()}{one.failure[1:]}.")
        for one in results
        if one.failure
    ]
    known = [one for one in results if one.gain is not None and not one.failure]
    return [*notes, _ranking(run, known), *_losses_apart(run)]


def _ranking(run: SweepConfig, known: Sequence[SweepResult]) -> Note:
    if not known:
        what = (
            "validation.every_n_steps is 0, so nothing was measured"
            if run.validation.every_n_steps == 0
            else "No pictures were kept out of training"
        )
        return Note(
            "unclear",
            "The LoRAs are not ranked",
            f"{what}, and training losses do not tell which LoRA is better. Set data.validation_split = "
            "0.1 or so, with validation.every_n_steps above 0, or judge by the pictures.",
        )
    names, gains, left_out = group_by_settings(known)
    settings, seeds = gains.shape
    if seeds < 2:
        return Note(
            "unclear",
            "How much of the differences is chance is not known",
            "No settings were trained with several seeds. Vary train.seed too, as in "
            "train.seed=0,1,2, to see how far gains differ by themselves.",
        )
    if settings == 0:
        return Note(
            "unclear",
            "How much of the differences is chance is not known",
            "No settings have results under all seeds.",
        )
    if settings == 1:
        return Note(
            "unclear",
            "Only the seed differs",
            f"The gain is {_percent(float(gains.mean()))} and varies by "
            f"{_percent(float(gains.std(ddof=1)))} (standard deviation): that much is chance.",
        )
    note = _compared(names, gains)
    if not left_out:
        return note
    return replace(note, text=f"{note.text} Not compared, for want of a seed: {_list(left_out)}.")


def _compared(names: Sequence[str], gains: Floats) -> Note:
    """Compare the best settings, on average over the seeds, with the others."""
    means, spread = gains.mean(axis=1), seed_spread(gains)
    best = int(means.argmax())
    limit = significance_limit(spread, gains.shape[1])
    behind = means[best] - means
    close = [name for number, name in enumerate(names) if number != best and behind[number] < limit]
    told = (
        f"The difference between two settings varies by {_percent(spread)} from seed to seed "
        f"(standard deviation), so that averages over {gains.shape[1]} seeds less than "
        f"{_percent(limit)} apart say nothing."
    )
    average = f"{names[best]} gains {_percent(float(means[best]))} on average over the seeds"
    if not close:
        return Note("fine", f"{names[best]} is the best", f"{told} {average}, others clearly less.")
    if len(close) == len(names) - 1:
        return Note(
            "unclear",
            "None is certainly better than the others",
            f"{told} {average}, and none of the others is that far behind.",
        )
    return Note(
        "unclear",
        f"{names[best]} is among the best",
        f"{told} {average}; not that far behind: {_list(close)}.",
    )


def seed_spread(gains: Floats) -> float:
    """Return by how much the difference between two settings varies from seed to seed.

    What a seed does to all alike, such as the order of the pictures, is taken out: the residuals
    of a two-way layout have (S - 1)(K - 1) degrees of freedom, and the difference of two of them
    twice their variance.

    Args:
        gains: of S settings under K seeds, float64 ``[S, K]``, both at least 2.
    """
    settings, seeds = gains.shape
    left = gains - gains.mean(axis=1, keepdims=True) - gains.mean(axis=0, keepdims=True)
    squares = float(np.square(left + gains.mean()).sum())
    return math.sqrt(2.0 * squares / ((settings - 1) * (seeds - 1)))


def significance_limit(spread: float, seeds: int) -> float:
    """Return the difference of two averages below which settings are not told apart.

    That is the spread over the seeds or, of few seeds, two standard errors.
    """
    return spread * max(1.0, 2.0 / math.sqrt(seeds))


def group_by_settings(known: Sequence[SweepResult]) -> tuple[list[str], Floats, list[str]]:
    """Return the names of settings, their seeds apart, and their gains, float64 ``[S, K]``; and
    the names of settings that lack a seed which others have, and are left out."""
    settings = [{k: v for k, v in one.settings.items() if k != _SEED} for one in known]
    distinct = [own for number, own in enumerate(settings) if own not in settings[:number]]
    gains = [
        {one.settings.get(_SEED): one.gain for one, its in zip(known, settings, strict=True)
         if its == own}
        for own in distinct
    ]  # fmt: skip
    seeds = list(dict.fromkeys(seed for own in gains for seed in own))
    whole = [
        (name, [own[seed] for seed in seeds])
        for name, own in zip(variant_names(distinct), gains, strict=True)
        if len(own) == len(seeds)
    ]
    table = np.array([row for _, row in whole], dtype=np.float64).reshape(-1, len(seeds))
    names = [name for name, _ in whole]
    return names, table, [name for name in variant_names(distinct) if name not in names]


def _losses_apart(run: SweepConfig) -> Iterator[Note]:
    weighed = [name for name in run.vary if name.startswith("train.loss.")]
    if weighed:
        yield Note(
            "unclear",
            "Training losses are not to be compared",
            f"{' and '.join(weighed)} changes what they measure. Held-out losses leave it out.",
        )


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)


def _percent(share: float) -> str:
    return f"{share:.2%}" if abs(share) < 0.1 else f"{share:.1%}"
