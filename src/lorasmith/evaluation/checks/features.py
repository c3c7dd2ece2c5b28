"""Checking the datasets of several features: each alone, and all together."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lorasmith.config.features import FeaturesConfig
from lorasmith.config.train_config import TrainConfig
from lorasmith.data.rules.facts import Finding
from lorasmith.data.rules.feature_overlap import FeatureCaptions, check_features_overlap
from lorasmith.data.scan.scan import ProgressBarFactory
from lorasmith.evaluation.checks.dataset import DatasetReport, check_dataset
from lorasmith.models.files.open import resolve_model_path
from lorasmith.models.load import load_tokenizer

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

_END_OF_WORD = "</w>"


@dataclass(frozen=True)
class FeaturesReport:
    """The result of a check."""

    reports: Mapping[str, DatasetReport]
    """The report on each dataset, by its tag."""
    tokens: Mapping[str, tuple[str, ...]]
    """The tokens of each tag; ``</w>`` ends a word."""
    findings: Sequence[Finding]
    """About all datasets together."""

    @property
    def errors(self) -> list[str]:
        """The rules that stop training."""
        reports = self.reports.values()
        findings = [*self.findings, *(finding for r in reports for finding in r.findings)]
        return list(dict.fromkeys(f.rule for f in findings if f.severity == "error"))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "ok": not self.errors,
            "features": {
                tag: {**report.to_dict(), "tokens": self.tokens[tag]}
                for tag, report in self.reports.items()
            },
            "findings": [asdict(finding) for finding in self.findings],
        }


def check_features(config: FeaturesConfig, bar: ProgressBarFactory) -> FeaturesReport:
    """Check the datasets of all features as training with these settings would use them.

    Raises:
        DataError: a feature's folder is missing, or has no images.
        ConfigError: the resolution does not fit the model.
        WeightsError: there is no such model.
    """
    model, train_configs = config.model.path, config.train_configs()
    datasets = [train_config.data for train_config in train_configs]
    reports = {data.tag: check_dataset(data, False, model, None, bar) for data in datasets}
    tokenizer = load_tokenizer(resolve_model_path(model))
    tags = list(reports)
    captions = [
        FeatureCaptions(data.tag, data.class_word, reports[data.tag].facts.scan.rows)
        for data in datasets
    ]
    findings = [
        *check_features_overlap(captions, config.train.mode == "joint"),
        *check_tags(tokenizer, tags),
        *check_caption_dropout(train_configs),
    ]
    return FeaturesReport(reports, {tag: tokenize_tag(tokenizer, tag) for tag in tags}, findings)


def tokenize_tag(tokenizer: "CLIPTokenizer", tag: str) -> tuple[str, ...]:
    """Return a tag's tokens as they are in the vocabulary."""
    return tuple(tokenizer.tokenize(tag))


def check_tags(tokenizer: "CLIPTokenizer", tags: Sequence[str]) -> Iterator[Finding]:
    """Find tags that are ordinary words, or that begin alike; settings refuse tags in others."""
    for tag in tags:
        tokens = tokenize_tag(tokenizer, tag)
        if all(token.endswith(_END_OF_WORD) for token in tokens):
            yield Finding(
                "tag-ordinary", "warning",
                f"the tag {tag!r} is {_words(len(tokens))} that the tokenizer knows: it means "
                "something already, prompts with that meaning would activate the LoRA, and the old "
                "meaning mixes with the new; use a made-up word",
            )  # fmt: skip
    for tag in tags:
        for other in tags:
            if other != tag and other.casefold().startswith(tag.casefold()):
                yield Finding(
                    "tag-prefix", "warning",
                    f"the tag {other!r} begins with the tag {tag!r}: they may be similar "
                    "to the text encoder and are easily confused; choose tags that begin "
                    "differently",
                )  # fmt: skip


def check_caption_dropout(runs: Sequence[TrainConfig]) -> Iterator[Finding]:
    """Find caption dropout, which trains the LoRA on prompts without its tag."""
    tags = [repr(run.data.tag) for run in runs if run.data.caption_dropout_rate]
    if tags:
        yield Finding(
            "caption-dropout", "warning",
            f"data.caption_dropout_rate of {', '.join(tags)}: images with an empty caption train "
            "the LoRA to be active without its tag; set it to 0",
        )  # fmt: skip


def _words(count: int) -> str:
    return "a word" if count == 1 else f"{count} words"
