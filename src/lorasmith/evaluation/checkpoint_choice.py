"""Which of several files of one tag is the best: lowest loss on held-out pictures, little leak."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorasmith.evaluation.prediction_change import ConceptPredictions, PairedLoss


@dataclass(frozen=True)
class Candidate:
    """A file of a tag."""

    file: Path
    step: int | None
    """After so many steps of training; None where the file does not say it."""
    loss: PairedLoss
    """On the feature's real pictures."""
    leak: float | None
    """Its leak ratio in predictions; None where it changes nothing with its tag."""


@dataclass(frozen=True)
class BestCandidate:
    """The best of some candidates."""

    best: Candidate
    is_within_limit: bool
    """Whether it keeps to the leak that was asked for; where none does, it is the least leaky."""


def measure_candidates(
    asked: ConceptPredictions, files: Sequence[tuple[Path, int | None]]
) -> list[Candidate]:
    """Measure files of one tag on the same pictures, noise levels and noise.

    Args:
        asked: the tag's real pictures.
        files: the files, and after how many steps of training each was written.

    Raises:
        WeightsError: a file does not fit the model.
    """
    return [
        Candidate(file, step, asked.paired_loss(file), asked.leak(file).ratio)
        for file, step in files
    ]


def choose_best(candidates: Sequence[Candidate], max_leak: float | None) -> BestCandidate:
    """Return the candidate of the lowest paired loss among those that leak no more than asked.

    A candidate whose leak ratio cannot be told does not keep to any bound.

    Args:
        candidates: at least one.
        max_leak: the largest leak ratio; None for any.
    """
    fitting = [
        one
        for one in candidates
        if max_leak is None or (one.leak is not None and one.leak <= max_leak)
    ]
    if fitting:
        return BestCandidate(min(fitting, key=lambda one: one.loss.difference), True)
    return BestCandidate(min(candidates, key=_leak), False)


def _leak(one: Candidate) -> float:
    return float("inf") if one.leak is None else one.leak
