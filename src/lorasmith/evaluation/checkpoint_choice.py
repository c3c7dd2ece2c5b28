"""Choosing the best of several files of a concept: lowest validation loss, limited leak."""

from collections.abc import Sequence
from pathlib import Path

from lorasmith.evaluation.concept_predictions import ConceptPredictions
from lorasmith.evaluation.results import Candidate, CheckpointChoice


def choose_checkpoint(
    predictions: ConceptPredictions,
    tag: str,
    files: Sequence[tuple[Path, int | None]],
    max_leak: float | None,
) -> CheckpointChoice:
    """Measure files on the same images, noise levels and noise, and choose the best.

    Args:
        predictions: for the concept's real images.
        tag: its trigger word.
        files: at least one, each with the training step at which it was saved.
        max_leak: the largest leak ratio; None for any.

    Raises:
        WeightsError: a file does not fit the model.
    """
    candidates = [
        Candidate(file, step, predictions.paired_loss(file), predictions.leak(file).ratio)
        for file, step in files
    ]
    best = choose_best(candidates, max_leak)
    return CheckpointChoice(tag, candidates, best.file, _is_within_limit(best, max_leak))


def choose_best(candidates: Sequence[Candidate], max_leak: float | None) -> Candidate:
    """Return the candidate of the lowest paired loss whose leak ratio is within the limit.

    If none is, the candidate with the least leak. An unknown leak ratio is not within any limit.

    Args:
        candidates: at least one.
        max_leak: the largest leak ratio; None for any.
    """
    within_limit = [c for c in candidates if _is_within_limit(c, max_leak)]
    if within_limit:
        return min(within_limit, key=lambda candidate: candidate.loss.difference)
    return min(candidates, key=_leak_or_infinity)


def _is_within_limit(candidate: Candidate, max_leak: float | None) -> bool:
    return max_leak is None or _leak_or_infinity(candidate) <= max_leak


def _leak_or_infinity(candidate: Candidate) -> float:
    return float("inf") if candidate.leak is None else candidate.leak
