"""Checking a dataset before training: everything that needs no model weights."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorasmith.config.train_data import DataConfig
from lorasmith.core.errors import ConfigError
from lorasmith.data.images.buckets import Bucket, choose_bucket_step, make_buckets
from lorasmith.data.rules.facts import DatasetFacts, DatasetRule, Finding
from lorasmith.data.rules.images import cropped_share, scale_factor
from lorasmith.data.rules.trigger_word import find_common_words
from lorasmith.data.scan.scan import ProgressBarFactory, read_options, scan_dataset
from lorasmith.evaluation.metrics.diversity import Diversity, measure_diversity
from lorasmith.models.image_sizes import ImageSizes
from lorasmith.registries import DATASET_RULES


@dataclass(frozen=True)
class BucketUse:
    """The images of one bucket."""

    width: int
    height: int
    images: int
    per_epoch: int
    """How many an epoch shows, counting repeats."""
    cropped: float
    """Mean share of an image that is cropped away."""
    enlarged: int
    """How many are scaled up."""


@dataclass(frozen=True)
class TagUse:
    """Which captions have the tag (trigger word)."""

    tag: str
    captions: int
    """How many captions have it."""
    missing: tuple[str, ...]
    """Images whose captions do not have it."""
    constant_words: tuple[str, ...]
    """Words in every caption that has it."""


@dataclass(frozen=True)
class DatasetReport:
    """The result of a check."""

    path: Path
    facts: DatasetFacts
    resolution: int
    """Side of the square bucket."""
    diversity: Diversity | None
    """How different the images are; None for very few."""
    findings: Sequence[Finding]
    """Of all rules, errors first."""

    @property
    def errors(self) -> list[Finding]:
        """The findings that stop training."""
        return [finding for finding in self.findings if finding.severity == "error"]

    @property
    def sizes(self) -> list[tuple[tuple[int, int], int]]:
        """The sizes of the images and how many have each, the most frequent first."""
        counts = Counter(image.size for image in self.facts.images)
        return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))

    @property
    def buckets(self) -> list[BucketUse]:
        """The buckets in use, those with most images first."""
        uses = [_measure_bucket(self.facts, bucket) for bucket in self.facts.buckets]
        return sorted((use for use in uses if use.images), key=lambda use: -use.images)

    @property
    def tag(self) -> TagUse | None:
        """Which captions have the tag; None if it is not checked."""
        if self.facts.tag is None:
            return None
        tagged = self.facts.tagged_rows
        missing = tuple(row.key for row in self.facts.untagged_rows)
        constant_words = tuple(find_common_words(tagged, self.facts.tag))
        return TagUse(self.facts.tag, len(tagged), missing, constant_words)

    @property
    def common_words(self) -> list[str]:
        """Words in every caption; the tag should be among them."""
        return find_common_words(self.facts.scan.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        scan = self.facts.scan
        return {
            "path": str(self.path),
            "ok": not self.errors,
            "pictures": scan.image_count,
            "usable": len(scan.rows),
            "per_epoch": sum(row.repeats for row in scan.rows),
            "masks": sum(row.mask_path is not None for row in scan.rows),
            "resolution": self.resolution,
            "sizes": [{"width": w, "height": h, "pictures": n} for (w, h), n in self.sizes],
            "buckets": [_rename_key(asdict(use), "images", "pictures") for use in self.buckets],
            "captions": len({row.caption for row in scan.rows}),
            "common_words": self.common_words,
            "tag": None
            if self.tag is None
            else _rename_key(asdict(self.tag), "constant_words", "company"),
            "variety": None
            if self.diversity is None
            else _rename_key(asdict(self.diversity), "images", "pictures"),
            "findings": [asdict(finding) for finding in self.findings],
            "problems": [asdict(problem) for problem in scan.problems],
        }


def _rename_key(values: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    """Return the values with a key that keeps its name in the JSON output."""
    return {new if key == old else key: value for key, value in values.items()}


def check_dataset(
    data: DataConfig,
    tagless: bool,
    model: Path | None,
    caption: str | None,
    bar: ProgressBarFactory,
) -> DatasetReport:
    """Check a dataset as training with these settings would use it.

    Args:
        data: the settings; repeats, caption augmentation and the cache are not used.
        tagless: do not check the tag.
        model: the base model, which determines the image sizes; None is the embedded one.
        caption: for images that have none; without it they are errors.
        bar: shows progress.

    Raises:
        DataError: the folder is missing, or has no images.
        ConfigError: the resolution does not fit the model.
        WeightsError: there is no such model.
    """
    sizes = ImageSizes.read(model)
    side = _resolve_side(data.resolution, sizes)
    options = read_options(data, caption)
    scan = scan_dataset(data.path, data.filters, data.background_rgb, bar, options)
    tag = None if tagless else data.tag
    facts = DatasetFacts(
        scan, tag, _make_buckets(data, side, sizes), data.class_word, data.max_chunks
    )
    rules: Mapping[str, DatasetRule] = DATASET_RULES.load_all()
    findings = [item for name, rule in rules.items() for item in _apply_rule(name, rule, facts)]
    diversity = measure_diversity(facts.scan.rows, data.background_rgb)
    if diversity is not None and diversity.is_uniform:
        findings.append(_report_uniform_images(diversity))
    order = {"error": 0, "warning": 1, "advice": 2}
    findings.sort(key=lambda finding: order[finding.severity])
    return DatasetReport(data.path, facts, side, diversity, findings)


def _apply_rule(name: str, rule: DatasetRule, facts: DatasetFacts) -> list[Finding]:
    findings = list(rule(facts))
    for finding in findings:
        if not isinstance(finding, Finding):
            raise ConfigError(
                f"the dataset rule {name!r} returned {finding!r}; a rule returns objects of "
                "lorasmith.data.rules.facts.Finding"
            )
    return findings


def _resolve_side(resolution: int | None, sizes: ImageSizes) -> int:
    side = resolution or sizes.default
    if side % sizes.multiple:
        nearest = max(sizes.multiple, round(side / sizes.multiple) * sizes.multiple)
        raise ConfigError(
            f"resolution: {side} is not a multiple of {sizes.multiple}; use {nearest}"
        )
    return side


def _make_buckets(data: DataConfig, side: int, sizes: ImageSizes) -> tuple[Bucket, ...]:
    if not data.buckets:
        return (Bucket(side, side),)
    return make_buckets(
        side,
        choose_bucket_step(side, data.bucket_reso_steps, sizes.multiple),
        data.max_aspect_ratio,
    )


def _measure_bucket(facts: DatasetFacts, bucket: Bucket) -> BucketUse:
    pairs = zip(facts.images, facts.assignments, strict=True)
    inside = [(image, assignment) for image, assignment in pairs if assignment.bucket == bucket]
    cropped = [cropped_share(assignment) for _, assignment in inside]
    return BucketUse(
        width=bucket.width,
        height=bucket.height,
        images=len(inside),
        per_epoch=sum(image.row.repeats for image, _ in inside),
        cropped=sum(cropped) / len(cropped) if cropped else 0.0,
        enlarged=sum(scale_factor(assignment) > 1.0 for _, assignment in inside),
    )


def _report_uniform_images(diversity: Diversity) -> Finding:
    return Finding(
        "all-alike", "advice",
        f"the {diversity.images} pictures are all alike (mean distance {diversity.distance:.2f}, "
        f"varied sets have more than {diversity.threshold:.2f}): the LoRA will repeat them; add "
        "other views, backgrounds and things",
    )  # fmt: skip
