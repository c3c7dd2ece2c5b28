"""Measuring tags: one at a time, and what they do to each other."""

from collections.abc import Sequence
from itertools import combinations

import torch
from PIL import Image

from lorasmith.data.tags import add_tag
from lorasmith.evaluation.concept import PROMPT_KINDS, EvalConcept, joint_prompts
from lorasmith.evaluation.feature_extractor import FeatureExtractor, normalize
from lorasmith.evaluation.image_generator import GeneratedImages, ImageGenerator
from lorasmith.evaluation.metrics import triggers
from lorasmith.evaluation.metrics.distances import cmmd, fid, kid
from lorasmith.evaluation.prediction_change import ConceptPredictions, leak_from_changes
from lorasmith.evaluation.results import (
    Bleeding,
    ConceptResult,
    DistributionDistance,
    EvaluationResults,
    Fidelity,
    ForgettingResult,
    JointResult,
    Leak,
    PairResult,
    SpaceLeak,
    TextAlignment,
)


class Evaluator:
    """Draws and measures features with one model and one judge."""

    def __init__(
        self, studio: ImageGenerator, judge: FeatureExtractor, seeds: Sequence[int]
    ) -> None:
        self.generator = studio
        self.extractor = judge
        self.seeds = list(seeds)
        self._asked: dict[int, tuple[EvalConcept, ConceptPredictions]] = {}
        self._looked_at: dict[int, tuple[Sequence[Image.Image], torch.Tensor]] = {}

    def measure(self, features: Sequence[EvalConcept]) -> EvaluationResults:
        """Measure everything about some features.

        Raises:
            WeightsError: a file does not fit the model.
        """
        several = len(features) > 1
        gated = several and any(one.gate != "none" for one in features)
        return EvaluationResults(
            features=[self.measure_concept(one) for one in features],
            gated=self.measure_joint(features, gate=True) if gated else None,
            plain=self.measure_joint(features, gate=False) if several else None,
            pairs=[self.measure_pair(a, b) for a, b in combinations(features, 2)],
        )

    # --- one tag ----------------------------------------------------------------------------------

    def measure_concept(self, one: EvalConcept) -> ConceptResult:
        """Measure one tag by itself."""
        prompts = one.prompts_with_tag(len(self.seeds))
        base, ours = self.generate(prompts), self.generate(prompts, [one], gate=True)
        real = self._features(one.images)
        of_base, of_ours = (self._features(drawn.images) for drawn in (base, ours))
        return ConceptResult(
            tag=one.tag,
            class_word=one.class_word,
            file=one.file.name,
            gate=one.gate,
            references=len(one.images),
            held_out=one.held_out,
            fidelity=measure_fidelity(normalize(of_ours), normalize(of_base), normalize(real)),
            text=self.text_alignment(one, ours, base),
            distribution=measure_distance(real, of_ours),
            distribution_base=measure_distance(real, of_base),
            gated=None if one.gate == "none" else self.measure_leak(one, gate=True),
            plain=self.measure_leak(one, gate=False),
        )

    def text_alignment(
        self, one: EvalConcept, ours: GeneratedImages, base: GeneratedImages
    ) -> TextAlignment | None:
        """Return the CLIP scores of pictures for the prompts of `Feature.tagged`."""
        prompts = [one.remove_tag(prompt) for prompt in one.prompts_with_tag(len(self.seeds))]
        said = self.extractor.text_features(prompts)
        told = self.extractor.text_features([one.remove_tag(caption) for caption in one.captions])
        if said is None or told is None:
            return None
        scores = [
            triggers.text_alignment(normalize(self._features(pictures)), normalize(texts))
            for pictures, texts in (
                (ours.images, said), (base.images, said), (one.images, told),
            )
        ]  # fmt: skip
        return TextAlignment(*scores)

    def measure_leak(self, one: EvalConcept, gate: bool) -> Leak:
        """Measure what a LoRA does without its tag.

        Args:
            one: the feature; its LoRA is loaded alone.
            gate: whether its gate is obeyed.
        """
        count = len(self.seeds)
        with_tag = one.prompts_with_tag(count)
        present = self.generate(with_tag, [one], gate), self.generate(with_tag)
        again = self.generator.generate(with_tag, self.seeds, batch_size=max(1, count // 2))
        prompts = {kind: one.prompts_without_tag(kind, count) for kind in PROMPT_KINDS}
        absent = {
            kind: (self.generate(texts, [one], gate), self.generate(texts))
            for kind, texts in prompts.items()
        }

        def within(space: triggers.Space) -> SpaceLeak:
            return leak_from_changes(
                self._changes(*present, space),
                {kind: self._changes(*both, space) for kind, both in absent.items()},
                self._changes(again, present[1], space),
            )

        return Leak(
            latent=within("latent"),
            image=within("image"),
            prediction=None if gate else self.predictions(one).leak(one.file),
            exact=all(torch.equal(ours.latents, base.latents) for ours, base in absent.values()),
        )

    # --- several tags -----------------------------------------------------------------------------

    def measure_joint(self, features: Sequence[EvalConcept], gate: bool) -> JointResult:
        """Measure what the tags do to each other while all LoRAs are loaded."""
        prompts = [one.prompts_with_tag(len(self.seeds)) for one in features]
        real = [self._seen(one.images) for one in features]
        base = [self._seen(self.generate(texts).images) for texts in prompts]
        loaded = [self._seen(self.generate(texts, features, gate).images) for texts in prompts]
        matrix = triggers.bleeding(loaded, base, real)
        kept = []
        for number, one in enumerate(features):
            alone = self._seen(self.generate(prompts[number], [one], gate).images)
            start, before, after = (
                triggers.fidelity(pictures, real[number])
                for pictures in (base[number], alone, loaded[number])
            )
            lost = triggers.forgetting(before, after, start)
            kept.append(ForgettingResult(one.tag, before, after, lost))
        tags = [one.tag for one in features]
        share = triggers.bleeding_share(matrix)
        return JointResult(Bleeding(tags, matrix.tolist(), share), kept)

    def measure_pair(self, first: EvalConcept, second: EvalConcept) -> PairResult:
        """Measure two tags in one prompt. Gates do not matter: both tags are there."""
        prompts = joint_prompts(first, second, len(self.seeds))
        sets: list[list[EvalConcept]] = [[first, second], [first], [second], []]
        drawn = [self.generate(prompts, some, gate=False) for some in sets]
        asked = self.predictions(first)
        texts = [add_tag(caption, first.tag, second.tag) for caption in asked.captions]
        predicted = [
            asked.predict(texts, list(dict.fromkeys(one.file for one in some))) for some in sets
        ]
        found: dict[str, float | None] = {
            "latent": triggers.interaction(*(one.latents for one in drawn)),
            "prediction": triggers.interaction(*predicted),
        }
        both, base = self._seen(drawn[0].images), self._seen(drawn[3].images)
        like = {
            one.tag: measure_fidelity(both, base, self._seen(one.images)) for one in (first, second)
        }
        return PairResult(first.tag, second.tag, found, like)

    def generate(
        self, prompts: Sequence[str], loras: Sequence[EvalConcept] = (), gate: bool = True
    ) -> GeneratedImages:
        """Draw prompts from the seeds of this evaluation."""
        files = list(dict.fromkeys(one.file for one in loras))  # one may serve several tags
        return self.generator.generate(prompts, self.seeds, files, gate)

    def predictions(self, one: EvalConcept) -> ConceptPredictions:
        """Return a feature's real pictures as questions to the network."""
        known = self._asked.get(id(one.images))
        if known is None:  # with the feature its pictures are kept, so that their id stays theirs
            known = self._asked[id(one.images)] = one, ConceptPredictions(self.generator, one)
        return known[1]

    def _features(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Return the judge's features, ``[N, D]``; the same list is looked at once only."""
        known = self._looked_at.get(id(pictures))
        if known is None:  # the list is kept too, so that its id stays its own
            known = self._looked_at[id(pictures)] = (
                pictures,
                self.extractor.image_features(pictures),
            )
        return known[1]

    def _seen(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        return normalize(self._features(pictures))

    def _changes(
        self, ours: GeneratedImages, base: GeneratedImages, space: triggers.Space
    ) -> torch.Tensor:
        if space == "latent":
            return triggers.changes(ours.latents, base.latents, space)
        return triggers.changes(self._seen(ours.images), self._seen(base.images), space)


def measure_fidelity(ours: torch.Tensor, base: torch.Tensor, real: torch.Tensor) -> Fidelity:
    """Return how like pictures are to real ones, beside the base's; unit embeddings ``[., D]``."""
    best = triggers.ceiling(real)
    value, plain = triggers.fidelity(ours, real), triggers.fidelity(base, real)
    return Fidelity(value, plain, best, triggers.gain(value, plain, best))


def measure_distance(real: torch.Tensor, drawn: torch.Tensor) -> DistributionDistance:
    """Return how far two sets are apart, by a judge's features ``[., D]``.

    KID takes features at the length sqrt(D), which those of Inception have about by themselves and
    unit-length embeddings do not; CMMD takes them at length 1; FID as they are.
    """
    length = real.shape[1] ** 0.5
    return DistributionDistance(
        kid(length * normalize(real), length * normalize(drawn)),
        cmmd(normalize(real), normalize(drawn)),
        fid(real, drawn),
    )
