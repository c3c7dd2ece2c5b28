"""The preflight of several features: each by itself, and side by side."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lorasmith.adapters.gating.trigger_tokens import has_tag
from lorasmith.config.features import FeaturesConfig
from lorasmith.config.train_config import TrainConfig
from lorasmith.data.rules.facts import Finding
from lorasmith.data.rules.feature_overlap import FeatureCaptions, check_features_overlap
from lorasmith.data.scan.scan import ProgressBarFactory
from lorasmith.evaluation.dataset_check import DatasetReport, check_dataset
from lorasmith.models.load import load_tokenizer, resolve_model_path

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

_END_OF_WORD = "</w>"


@dataclass(frozen=True)
class FeaturesReport:
    """All that is known about the pictures of several features."""

    reports: Mapping[str, DatasetReport]
    """What there is to say about each by itself, by its tag."""
    tokens: Mapping[str, tuple[str, ...]]
    """What the tokenizer makes of each tag; ``</w>`` ends a word."""
    findings: Sequence[Finding]
    """What there is to say about them side by side."""

    @property
    def errors(self) -> list[str]:
        """The rules that stop training."""
        every = [*self.findings, *(one for r in self.reports.values() for one in r.findings)]
        return list(dict.fromkeys(one.rule for one in every if one.severity == "error"))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as values that JSON can hold."""
        return {
            "ok": not self.errors,
            "features": {
                tag: {**report.to_dict(), "tokens": self.tokens[tag]}
                for tag, report in self.reports.items()
            },
            "findings": [asdict(finding) for finding in self.findings],
        }


def check_features(run: FeaturesConfig, bar: ProgressBarFactory) -> FeaturesReport:
    """Check the pictures of all features as training with these settings would use them.

    Raises:
        DataError: a feature's folder is missing, or has nothing that looks like pictures.
        ConfigError: the resolution does not suit the model.
        WeightsError: no such model.
    """
    model, runs = run.model.path, run.train_configs()
    reports = {one.data.tag: check_dataset(one.data, False, model, None, bar) for one in runs}
    tokenizer = load_tokenizer(resolve_model_path(model))
    tags = list(reports)
    featured = [
        FeatureCaptions(run.tag, run.class_word, reports[run.tag].facts.scan.rows)
        for run in (one.data for one in runs)
    ]
    findings = [
        *check_features_overlap(featured, run.train.mode == "joint"),
        *check_tags(tokenizer, tags),
        *check_caption_dropout(runs),
    ]
    return FeaturesReport(reports, {tag: tokenize_tag(tokenizer, tag) for tag in tags}, findings)


def tokenize_tag(tokenizer: "CLIPTokenizer", tag: str) -> tuple[str, ...]:
    """Return a tag's tokens as the vocabulary spells them."""
    return tuple(tokenizer.tokenize(tag))


def check_tags(tokenizer: "CLIPTokenizer", tags: Sequence[str]) -> Iterator[Finding]:
    """Tell tags that the model may know already, or that begin like others."""
    for tag in tags:
        tokens = tokenize_tag(tokenizer, tag)
        if all(token.endswith(_END_OF_WORD) for token in tokens):
            yield Finding(
                "tag-ordinary", "warning",
                f"the tag {tag!r} is {_words(len(tokens))} that the tokenizer knows: it means "
                "something already, prompts that mean only that would switch the feature on, and "
                "the old meaning mixes with the new; take a made-up word",
            )  # fmt: skip
    for tag in tags:
        for other in tags:
            if other != tag and has_tag(tokenizer, tag, other):
                yield Finding(
                    "tag-inside", "error",
                    f"the tokens of the tag {tag!r} stand inside those of {other!r}, which would "
                    "switch both on; choose others",
                )  # fmt: skip
            elif other != tag and other.casefold().startswith(tag.casefold()):
                yield Finding(
                    "tag-prefix", "warning",
                    f"the tag {other!r} begins with the tag {tag!r}: to the text encoder they may "
                    "look alike, and a slip of the pen takes one for the other; choose tags that "
                    "begin differently",
                )  # fmt: skip


def check_caption_dropout(runs: Sequence[TrainConfig]) -> Iterator[Finding]:
    """Tell captions that are dropped, which teaches the feature where its tag is not."""
    tags = [repr(run.data.tag) for run in runs if run.data.caption_dropout_rate]
    if tags:
        yield Finding(
            "caption-dropout", "warning",
            f"data.caption_dropout_rate of {', '.join(tags)}: pictures under an empty caption teach the "
            "feature to come without its tag; set it to 0",
        )  # fmt: skip


def _words(count: int) -> str:
    return "a word" if count == 1 else f"{count} words"
