"""Measuring trigger words: each alone, and what several do to each other."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import torch
from PIL import Image

from lorasmith.data.caption_tags import add_tag
from lorasmith.evaluation.concept import PROMPT_KINDS, EvalConcept, joint_prompts
from lorasmith.evaluation.concept_predictions import ConceptPredictions, leak_from_changes
from lorasmith.evaluation.feature_extractor import FeatureExtractor, normalize
from lorasmith.evaluation.image_generator import GeneratedImages, ImageGenerator
from lorasmith.evaluation.metrics import triggers
from lorasmith.evaluation.metrics.distances import cmmd, fid, kid
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

_Change = tuple[GeneratedImages, GeneratedImages]
"""Images with a LoRA and from the base model, with the same prompts and seeds."""


class Evaluator:
    """Generates images of concepts with one model, and measures them."""

    def __init__(
        self, generator: ImageGenerator, extractor: FeatureExtractor, seeds: Sequence[int]
    ) -> None:
        self.generator = generator
        self.extractor = extractor
        self.seeds = list(seeds)
        # Keyed by id; the object is stored too, so that its id is not used again.
        self._predictions: dict[int, tuple[EvalConcept, ConceptPredictions]] = {}
        self._features: dict[int, tuple[Sequence[Image.Image], torch.Tensor]] = {}

    def measure(self, concepts: Sequence[EvalConcept]) -> EvaluationResults:
        """Measure all metrics of some concepts.

        Raises:
            WeightsError: a file does not fit the model.
        """
        has_several = len(concepts) > 1
        has_gates = has_several and any(concept.gate != "none" for concept in concepts)
        return EvaluationResults(
            features=[self.measure_concept(concept) for concept in concepts],
            gated=self.measure_joint(concepts, gate=True) if has_gates else None,
            plain=self.measure_joint(concepts, gate=False) if has_several else None,
            pairs=[self.measure_pair(a, b) for a, b in combinations(concepts, 2)],
        )

    # --- one concept ------------------------------------------------------------------------------

    def measure_concept(self, concept: EvalConcept) -> ConceptResult:
        """Measure one concept alone."""
        prompts = concept.prompts_with_tag(len(self.seeds))
        base, lora = self.generate(prompts), self.generate(prompts, [concept], gate=True)
        real_features = self._extract(concept.images)
        base_features, lora_features = self._extract(base.images), self._extract(lora.images)
        return ConceptResult(
            tag=concept.tag,
            class_word=concept.class_word,
            file=concept.file.name,
            gate=concept.gate,
            references=len(concept.images),
            held_out=concept.held_out,
            fidelity=measure_fidelity(
                normalize(lora_features), normalize(base_features), normalize(real_features)
            ),
            text=self.text_alignment(concept, lora, base),
            distribution=measure_distance(real_features, lora_features),
            distribution_base=measure_distance(real_features, base_features),
            gated=None if concept.gate == "none" else self.measure_leak(concept, gate=True),
            plain=self.measure_leak(concept, gate=False),
        )

    def text_alignment(
        self, concept: EvalConcept, lora: GeneratedImages, base: GeneratedImages
    ) -> TextAlignment | None:
        """Return the CLIP scores of images of the prompts of `EvalConcept.prompts_with_tag`."""
        prompts = concept.prompts_with_tag(len(self.seeds))
        prompt_features = self._extract_text(concept, prompts)
        caption_features = self._extract_text(concept, concept.captions)
        if prompt_features is None or caption_features is None:
            return None
        return TextAlignment(
            lora=self._clip_score(lora.images, prompt_features),
            base=self._clip_score(base.images, prompt_features),
            real=self._clip_score(concept.images, caption_features),
        )

    def _extract_text(self, concept: EvalConcept, texts: Sequence[str]) -> torch.Tensor | None:
        return self.extractor.text_features([concept.remove_tag(text) for text in texts])

    def _clip_score(self, images: Sequence[Image.Image], text_features: torch.Tensor) -> float:
        return triggers.text_alignment(self._embed(images), normalize(text_features))

    def measure_leak(self, concept: EvalConcept, gate: bool) -> Leak:
        """Measure what a LoRA changes without its trigger word.

        Args:
            concept: its LoRA is loaded alone.
            gate: whether its trigger gating is applied.
        """
        count = len(self.seeds)
        prompts = concept.prompts_with_tag(count)
        base = self.generate(prompts)
        present = self.generate(prompts, [concept], gate), base
        # Another batch size, so that the difference is rounding alone.
        repeated = self.generator.generate(prompts, self.seeds, batch_size=max(1, count // 2))
        absent: dict[str, _Change] = {}
        for kind in PROMPT_KINDS:
            prompts = concept.prompts_without_tag(kind, count)
            absent[kind] = self.generate(prompts, [concept], gate), self.generate(prompts)
        exact = all(torch.equal(lora.latents, base.latents) for lora, base in absent.values())
        return Leak(
            latent=self._space_leak(present, absent, (repeated, base), "latent"),
            image=self._space_leak(present, absent, (repeated, base), "image"),
            prediction=None if gate else self.predictions(concept).leak(concept.file),
            exact=exact,
        )

    def _space_leak(
        self, present: _Change, absent: dict[str, _Change], floor: _Change, space: triggers.Space
    ) -> SpaceLeak:
        return leak_from_changes(
            self._changes(*present, space),
            {kind: self._changes(*change, space) for kind, change in absent.items()},
            self._changes(*floor, space),
        )

    # --- several concepts -------------------------------------------------------------------------

    def measure_joint(self, concepts: Sequence[EvalConcept], gate: bool) -> JointResult:
        """Measure what the LoRAs do to each other while all are loaded."""
        prompts = [concept.prompts_with_tag(len(self.seeds)) for concept in concepts]
        real = [self._embed(concept.images) for concept in concepts]
        base = [self._embed(self.generate(texts).images) for texts in prompts]
        loaded = [self._embed(self.generate(texts, concepts, gate).images) for texts in prompts]
        matrix = triggers.bleeding(loaded, base, real)
        forgetting = []
        for i, concept in enumerate(concepts):
            alone = self._embed(self.generate(prompts[i], [concept], gate).images)
            base_score, alone_score, loaded_score = (
                triggers.fidelity(images, real[i]) for images in (base[i], alone, loaded[i])
            )
            lost = triggers.forgetting(alone_score, loaded_score, base_score)
            forgetting.append(ForgettingResult(concept.tag, alone_score, loaded_score, lost))
        tags = [concept.tag for concept in concepts]
        bleeding = Bleeding(tags, matrix.tolist(), triggers.bleeding_share(matrix))
        return JointResult(bleeding, forgetting)

    def measure_pair(self, first: EvalConcept, second: EvalConcept) -> PairResult:
        """Measure two trigger words in one prompt, which opens both gates."""
        prompts = joint_prompts(first, second, len(self.seeds))
        loras: list[list[EvalConcept]] = [[first, second], [first], [second], []]
        images = [self.generate(prompts, concepts, gate=False) for concepts in loras]
        predictions = self.predictions(first)
        captions = [add_tag(text, first.tag, second.tag) for text in predictions.captions]
        predicted = [predictions.predict(captions, _distinct_files(concepts)) for concepts in loras]
        interaction = {
            "latent": triggers.interaction(*(generated.latents for generated in images)),
            "prediction": triggers.interaction(*predicted),
        }
        both, base = self._embed(images[0].images), self._embed(images[3].images)
        fidelity = {
            concept.tag: measure_fidelity(both, base, self._embed(concept.images))
            for concept in (first, second)
        }
        return PairResult(first.tag, second.tag, interaction, fidelity)

    def generate(
        self, prompts: Sequence[str], loras: Sequence[EvalConcept] = (), gate: bool = True
    ) -> GeneratedImages:
        """Generate images of the prompts from the seeds of this evaluation."""
        return self.generator.generate(prompts, self.seeds, _distinct_files(loras), gate)

    def predictions(self, concept: EvalConcept) -> ConceptPredictions:
        """Return the predictions for a concept's real images, cached by the list of images."""
        key = id(concept.images)
        if key not in self._predictions:
            self._predictions[key] = concept, ConceptPredictions(self.generator, concept)
        return self._predictions[key][1]

    def _extract(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return features, ``[N, D]``, cached by the list of images."""
        if id(images) not in self._features:
            self._features[id(images)] = images, self.extractor.image_features(images)
        return self._features[id(images)][1]

    def _embed(self, images: Sequence[Image.Image]) -> torch.Tensor:
        return normalize(self._extract(images))

    def _changes(
        self, lora: GeneratedImages, base: GeneratedImages, space: triggers.Space
    ) -> torch.Tensor:
        if space == "latent":
            return triggers.changes(lora.latents, base.latents, space)
        return triggers.changes(self._embed(lora.images), self._embed(base.images), space)


def _distinct_files(concepts: Sequence[EvalConcept]) -> list[Path]:
    return list(dict.fromkeys(concept.file for concept in concepts))


def measure_fidelity(lora: torch.Tensor, base: torch.Tensor, real: torch.Tensor) -> Fidelity:
    """Return the fidelity of a LoRA's images beside the base model's.

    Args:
        lora: unit-length embeddings of the LoRA's images, ``[N, D]``.
        base: of the base model's images, ``[N, D]``.
        real: of the real images, ``[M, D]``.
    """
    ceiling = triggers.ceiling(real)
    lora_score, base_score = triggers.fidelity(lora, real), triggers.fidelity(base, real)
    gain = triggers.gain(lora_score, base_score, ceiling)
    return Fidelity(lora_score, base_score, ceiling, gain)


def measure_distance(real: torch.Tensor, generated: torch.Tensor) -> DistributionDistance:
    """Return how far apart two sets of images are, by features ``[N, D]`` of any length.

    KID takes features scaled to length sqrt(D), about the length of Inception's; CMMD takes them at
    length 1, and FID as they are.
    """
    scale = real.shape[1] ** 0.5
    return DistributionDistance(
        kid(scale * normalize(real), scale * normalize(generated)),
        cmmd(normalize(real), normalize(generated)),
        fid(real, generated),
    )
