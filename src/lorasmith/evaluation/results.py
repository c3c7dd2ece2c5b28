"""The results of an evaluation, with the keys of ``evaluation.json``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image

from lorasmith.evaluation.metrics.distances import Estimate


@dataclass(frozen=True)
class Fidelity:
    """How similar generated images of a concept are to real ones."""

    lora: float
    """Mean similarity of the LoRA's images to the nearest real one."""
    base: float
    """The same for the base model, with the same prompts and seeds."""
    ceiling: float
    """Mean similarity of each real image to the nearest other one."""
    gain: float | None
    """Share of the way from base to ceiling; None if the base model is at the ceiling."""


@dataclass(frozen=True)
class TextAlignment:
    """How well images show their prompts (CLIP score), with the class word in place of the tag."""

    lora: float
    base: float
    real: float
    """The real images with their own captions."""


@dataclass(frozen=True)
class DistributionDistance:
    """How far generated images are from the real ones, as sets."""

    kid: Estimate | None
    """None for fewer than three images on either side."""
    cmmd: Estimate | None
    """None for fewer than three images on either side."""
    fid: float | None
    """None unless there are more than 2,000 images on either side."""


@dataclass(frozen=True)
class SpaceLeak:
    """What a LoRA changes with and without its trigger word, measured in one space."""

    present: float
    """Mean change under prompts with the trigger word."""
    absent: dict[str, float]
    """Mean change under prompts without it, by kind of prompt."""
    ratio: float | None
    """Mean of all changes without over that with it; None if nothing changes with it."""
    floor: float
    """Mean change from running the base model twice: rounding."""


@dataclass(frozen=True)
class Leak:
    """What a LoRA changes where its trigger word is absent."""

    latent: SpaceLeak
    image: SpaceLeak
    prediction: SpaceLeak | None
    """None with gating, which only concerns generation."""
    exact: bool
    """Whether everything without the trigger word is the base model's, bit for bit."""


@dataclass(frozen=True)
class ConceptResult:
    """The results of one concept."""

    tag: str
    class_word: str
    file: str
    gate: str
    """The file's kind of gate; ``none`` is an ordinary file."""
    references: int
    """Real images that it is compared with."""
    held_out: bool
    """Whether it was not trained on them."""
    fidelity: Fidelity
    text: TextAlignment | None
    """None if the feature extractor has no text encoder."""
    distribution: DistributionDistance
    distribution_base: DistributionDistance
    """The same for the base model's images."""
    gated: Leak | None
    """With trigger gating; None for a file without a gate."""
    plain: Leak
    """Without gating, as in other programs."""


@dataclass(frozen=True)
class PairResult:
    """Two trigger words in one prompt."""

    first: str
    second: str
    interaction: dict[str, float | None]
    """By space; 0 if the effects add up."""
    likeness: dict[str, Fidelity]
    """Images with both, compared with the real images of each."""


@dataclass(frozen=True)
class Bleeding:
    """How much each trigger word shows of the other concepts, with all LoRAs loaded."""

    tags: list[str]
    matrix: list[list[float]]
    """Row: the trigger word in the prompt. Column: the concept of the real images."""
    share: float | None
    """Largest off-diagonal value over its column's diagonal value."""


@dataclass(frozen=True)
class ForgettingResult:
    """A concept's fidelity alone and with the other LoRAs loaded."""

    tag: str
    alone: float
    loaded: float
    forgetting: float | None
    """Share of the gain over the base model that is lost."""


@dataclass(frozen=True)
class JointResult:
    """Several LoRAs loaded together."""

    bleeding: Bleeding
    forgetting: list[ForgettingResult]


@dataclass(frozen=True)
class EvaluationResults:
    """All metrics."""

    features: list[ConceptResult]
    gated: JointResult | None
    """With trigger gating; None for a single concept, or if no file has a gate."""
    plain: JointResult | None
    """Without gating, as in other programs; None for a single concept."""
    pairs: list[PairResult]


# --- what was evaluated, and how --------------------------------------------------------------


@dataclass(frozen=True)
class PairedLoss:
    """A LoRA's loss minus the base model's, on the same images, noise levels and noise."""

    difference: float
    """Mean over the images; below zero is better than the base model."""
    error: float | None
    """Standard error of that mean; None for a single image."""
    base: float
    """The base model's own loss."""


@dataclass(frozen=True)
class Candidate:
    """One of several files of a concept."""

    file: Path
    step: int | None
    """The training step at which it was saved; None if the file does not say."""
    loss: PairedLoss
    """On the concept's real images."""
    leak: float | None
    """Its leak ratio in predictions; None if it changes nothing with its trigger word."""


@dataclass(frozen=True)
class CheckpointChoice:
    """The files of a concept, the best of which was evaluated."""

    tag: str
    candidates: Sequence[Candidate]
    best: Path
    is_within_limit: bool
    """Whether the best file's leak ratio is within the limit."""


@dataclass(frozen=True)
class ImageRow:
    """Images side by side."""

    label: str
    images: Sequence[Image.Image]


@dataclass(frozen=True)
class ImageTable:
    """Generated images; every column has one seed."""

    title: str
    columns: Sequence[str]
    """The prompt of each column."""
    rows: Sequence[ImageRow]


@dataclass(frozen=True)
class EvaluationContext:
    """How it was measured."""

    name: str
    """Title of the page."""
    model: str
    feature_extractor: str
    device: str
    seeds: Sequence[int]
    sampling: Mapping[str, Any]
    """Steps, guidance scale, size and sampler."""
    max_leak: float | None = None
    date: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC")


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation, with everything that its page shows."""

    context: EvaluationContext
    results: EvaluationResults
    choices: Sequence[CheckpointChoice]
    """For concepts with several files."""
    image_tables: Sequence[ImageTable]
