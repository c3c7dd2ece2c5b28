"""Measuring tags: one at a time, and what they do to each other."""

from collections.abc import Sequence
from itertools import combinations

import torch
from PIL import Image

from lorasmith.data.tags import with_another
from lorasmith.evaluation.concept import KINDS, Feature, joined
from lorasmith.evaluation.feature_extractor import Judge, unit
from lorasmith.evaluation.image_generator import Drawn, Studio
from lorasmith.evaluation.metrics import triggers
from lorasmith.evaluation.metrics.distances import cmmd, fid, kid
from lorasmith.evaluation.prediction_change import Predicted, space_leak
from lorasmith.evaluation.results import (
    Alignment,
    Bleeding,
    Distribution,
    FeatureFigures,
    Figures,
    Kept,
    Leak,
    Likeness,
    SetFigures,
    SpaceLeak,
    Together,
)


class Evaluator:
    """Draws and measures features with one model and one judge."""

    def __init__(self, studio: Studio, judge: Judge, seeds: Sequence[int]) -> None:
        self.studio = studio
        self.judge = judge
        self.seeds = list(seeds)
        self._asked: dict[int, tuple[Feature, Predicted]] = {}
        self._looked_at: dict[int, tuple[Sequence[Image.Image], torch.Tensor]] = {}

    def measure(self, features: Sequence[Feature]) -> Figures:
        """Measure everything about some features.

        Raises:
            WeightsError: a file does not fit the model.
        """
        several = len(features) > 1
        gated = several and any(one.gate != "none" for one in features)
        return Figures(
            features=[self.feature(one) for one in features],
            gated=self.together(features, gate=True) if gated else None,
            plain=self.together(features, gate=False) if several else None,
            pairs=[self.pair(a, b) for a, b in combinations(features, 2)],
        )

    # --- one tag ----------------------------------------------------------------------------------

    def feature(self, one: Feature) -> FeatureFigures:
        """Measure one tag by itself."""
        prompts = one.tagged(len(self.seeds))
        base, ours = self.draw(prompts), self.draw(prompts, [one], gate=True)
        real = self._features(one.pictures)
        of_base, of_ours = (self._features(drawn.pictures) for drawn in (base, ours))
        return FeatureFigures(
            tag=one.tag,
            class_word=one.class_word,
            file=one.file.name,
            gate=one.gate,
            references=len(one.pictures),
            held_out=one.held_out,
            fidelity=likeness(unit(of_ours), unit(of_base), unit(real)),
            text=self.alignment(one, ours, base),
            distribution=distribution(real, of_ours),
            distribution_base=distribution(real, of_base),
            gated=None if one.gate == "none" else self.leak(one, gate=True),
            plain=self.leak(one, gate=False),
        )

    def alignment(self, one: Feature, ours: Drawn, base: Drawn) -> Alignment | None:
        """Return the CLIP scores of pictures for the prompts of `Feature.tagged`."""
        prompts = [one.plain(prompt) for prompt in one.tagged(len(self.seeds))]
        said = self.judge.texts(prompts)
        told = self.judge.texts([one.plain(caption) for caption in one.captions])
        if said is None or told is None:
            return None
        scores = [
            triggers.text_alignment(unit(self._features(pictures)), unit(texts))
            for pictures, texts in (
                (ours.pictures, said), (base.pictures, said), (one.pictures, told),
            )
        ]  # fmt: skip
        return Alignment(*scores)

    def leak(self, one: Feature, gate: bool) -> Leak:
        """Measure what a LoRA does without its tag.

        Args:
            one: the feature; its LoRA is loaded alone.
            gate: whether its gate is obeyed.
        """
        count = len(self.seeds)
        with_tag = one.tagged(count)
        present = self.draw(with_tag, [one], gate), self.draw(with_tag)
        again = self.studio.draw(with_tag, self.seeds, batch_size=max(1, count // 2))
        prompts = {kind: one.untagged(kind, count) for kind in KINDS}
        absent = {
            kind: (self.draw(texts, [one], gate), self.draw(texts))
            for kind, texts in prompts.items()
        }

        def within(space: triggers.Space) -> SpaceLeak:
            return space_leak(
                self._changes(*present, space),
                {kind: self._changes(*both, space) for kind, both in absent.items()},
                self._changes(again, present[1], space),
            )

        return Leak(
            latent=within("latent"),
            image=within("image"),
            prediction=None if gate else self.asked(one).leak(one.file),
            exact=all(torch.equal(ours.latents, base.latents) for ours, base in absent.values()),
        )

    # --- several tags -----------------------------------------------------------------------------

    def together(self, features: Sequence[Feature], gate: bool) -> SetFigures:
        """Measure what the tags do to each other while all LoRAs are loaded."""
        prompts = [one.tagged(len(self.seeds)) for one in features]
        real = [self._seen(one.pictures) for one in features]
        base = [self._seen(self.draw(texts).pictures) for texts in prompts]
        loaded = [self._seen(self.draw(texts, features, gate).pictures) for texts in prompts]
        matrix = triggers.bleeding(loaded, base, real)
        kept = []
        for number, one in enumerate(features):
            alone = self._seen(self.draw(prompts[number], [one], gate).pictures)
            start, before, after = (
                triggers.fidelity(pictures, real[number])
                for pictures in (base[number], alone, loaded[number])
            )
            lost = triggers.forgetting(before, after, start)
            kept.append(Kept(one.tag, before, after, lost))
        tags = [one.tag for one in features]
        share = triggers.bleeding_share(matrix)
        return SetFigures(Bleeding(tags, matrix.tolist(), share), kept)

    def pair(self, first: Feature, second: Feature) -> Together:
        """Measure two tags in one prompt. Gates do not matter: both tags are there."""
        prompts = joined(first, second, len(self.seeds))
        sets: list[list[Feature]] = [[first, second], [first], [second], []]
        drawn = [self.draw(prompts, some, gate=False) for some in sets]
        asked = self.asked(first)
        texts = [with_another(caption, first.tag, second.tag) for caption in asked.captions]
        predicted = [
            asked.predict(texts, list(dict.fromkeys(one.file for one in some))) for some in sets
        ]
        found: dict[str, float | None] = {
            "latent": triggers.interaction(*(one.latents for one in drawn)),
            "prediction": triggers.interaction(*predicted),
        }
        both, base = self._seen(drawn[0].pictures), self._seen(drawn[3].pictures)
        like = {one.tag: likeness(both, base, self._seen(one.pictures)) for one in (first, second)}
        return Together(first.tag, second.tag, found, like)

    def draw(
        self, prompts: Sequence[str], loras: Sequence[Feature] = (), gate: bool = True
    ) -> Drawn:
        """Draw prompts from the seeds of this evaluation."""
        files = list(dict.fromkeys(one.file for one in loras))  # one may serve several tags
        return self.studio.draw(prompts, self.seeds, files, gate)

    def asked(self, one: Feature) -> Predicted:
        """Return a feature's real pictures as questions to the network."""
        known = self._asked.get(id(one.pictures))
        if known is None:  # with the feature its pictures are kept, so that their id stays theirs
            known = self._asked[id(one.pictures)] = one, Predicted(self.studio, one)
        return known[1]

    def _features(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Return the judge's features, ``[N, D]``; the same list is looked at once only."""
        known = self._looked_at.get(id(pictures))
        if known is None:  # the list is kept too, so that its id stays its own
            known = self._looked_at[id(pictures)] = pictures, self.judge.features(pictures)
        return known[1]

    def _seen(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        return unit(self._features(pictures))

    def _changes(self, ours: Drawn, base: Drawn, space: triggers.Space) -> torch.Tensor:
        if space == "latent":
            return triggers.changes(ours.latents, base.latents, space)
        return triggers.changes(self._seen(ours.pictures), self._seen(base.pictures), space)


def likeness(ours: torch.Tensor, base: torch.Tensor, real: torch.Tensor) -> Likeness:
    """Return how like pictures are to real ones, beside the base's; unit embeddings ``[., D]``."""
    best = triggers.ceiling(real)
    value, plain = triggers.fidelity(ours, real), triggers.fidelity(base, real)
    return Likeness(value, plain, best, triggers.gain(value, plain, best))


def distribution(real: torch.Tensor, drawn: torch.Tensor) -> Distribution:
    """Return how far two sets are apart, by a judge's features ``[., D]``.

    KID takes features at the length sqrt(D), which those of Inception have about by themselves and
    unit-length embeddings do not; CMMD takes them at length 1; FID as they are.
    """
    length = real.shape[1] ** 0.5
    return Distribution(
        kid(length * unit(real), length * unit(drawn)),
        cmmd(unit(real), unit(drawn)),
        fid(real, drawn),
    )
