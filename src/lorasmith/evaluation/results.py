"""The figures of an evaluation, as `evaluation.json` has them."""

from dataclasses import dataclass

from lorasmith.evaluation.metrics.distances import Estimate


@dataclass(frozen=True)
class Fidelity:
    """How like pictures of a tag are to what it stands for."""

    lora: float
    """Mean similarity of the tag's pictures to the nearest real one."""
    base: float
    """That of the base model's, same prompts and seeds."""
    ceiling: float
    """That of each real one to the nearest other."""
    gain: float | None
    """Share of the way from base to ceiling."""


@dataclass(frozen=True)
class TextAlignment:
    """How well pictures show their prompts (CLIP score), the class word in the tag's place."""

    lora: float
    base: float
    real: float
    """The real pictures with their own captions."""


@dataclass(frozen=True)
class DistributionDistance:
    """How far the tag's pictures are from the real ones as a set."""

    kid: Estimate | None
    """None for fewer than three pictures on either side."""
    cmmd: Estimate | None
    fid: float | None
    """None unless there are more than 2,000 pictures on either side."""


@dataclass(frozen=True)
class SpaceLeak:
    """What a LoRA changes without and with its tag, measured in one space."""

    present: float
    """Mean change under prompts with the tag."""
    absent: dict[str, float]
    """Mean change under prompts without it, by kind."""
    ratio: float | None
    """Mean of all without over that with it; None where nothing changes with it."""
    floor: float
    """Mean change from one drawing of the base to another of the same: rounding."""


@dataclass(frozen=True)
class Leak:
    """What a LoRA does where its tag is absent."""

    latent: SpaceLeak
    image: SpaceLeak
    prediction: SpaceLeak | None
    """None under a gate, which is about drawing."""
    exact: bool
    """Whether everything without the tag is the base model's, bit for bit."""


@dataclass(frozen=True)
class ConceptResult:
    """One tag."""

    tag: str
    class_word: str
    file: str
    gate: str
    """What the file says; ``none`` is an ordinary file."""
    references: int
    """Real pictures that it is compared with."""
    held_out: bool
    """Whether it was not trained on them."""
    fidelity: Fidelity
    text: TextAlignment | None
    """None where the judge cannot read."""
    distribution: DistributionDistance
    distribution_base: DistributionDistance
    """The base model's pictures, likewise."""
    gated: Leak | None
    """As lorasmith draws; None for a file without a gate."""
    plain: Leak
    """As programs draw that know no gates."""


@dataclass(frozen=True)
class PairResult:
    """Two tags in one prompt."""

    first: str
    second: str
    interaction: dict[str, float | None]
    """By space, 0 where the effects add up."""
    likeness: dict[str, Fidelity]
    """Pictures with both, to the real ones of each."""


@dataclass(frozen=True)
class Bleeding:
    """What each tag brings of the others' features, all LoRAs loaded."""

    tags: list[str]
    matrix: list[list[float]]
    """Row: the tag in the prompt. Column: the feature that is looked for."""
    share: float | None
    """Largest off-diagonal value over its column's diagonal one."""


@dataclass(frozen=True)
class ForgettingResult:
    """A tag's fidelity by itself and with the other LoRAs loaded."""

    tag: str
    alone: float
    loaded: float
    forgetting: float | None
    """Lost share of the gain over the base."""


@dataclass(frozen=True)
class JointResult:
    """Several tags together."""

    bleeding: Bleeding
    forgetting: list[ForgettingResult]


@dataclass(frozen=True)
class EvaluationResults:
    """Everything."""

    features: list[ConceptResult]
    gated: JointResult | None
    """As lorasmith draws; None for a single tag."""
    plain: JointResult | None
    """As programs draw that know no gates."""
    pairs: list[PairResult]
