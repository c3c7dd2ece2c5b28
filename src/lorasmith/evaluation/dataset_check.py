"""The preflight of a dataset: everything that can be said before a model is opened."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorasmith.config.train_data import DataConfig
from lorasmith.core.errors import ConfigError
from lorasmith.data.images.buckets import Bucket, choose_bucket_step, make_buckets
from lorasmith.data.rules.facts import DatasetFacts, Finding
from lorasmith.data.rules.images import cropped_share, scale_factor
from lorasmith.data.rules.tag import find_common_words
from lorasmith.data.scan.scan import ProgressBarFactory, scan_dataset
from lorasmith.evaluation.metrics.diversity import Diversity, measure_diversity
from lorasmith.models.image_sizes import ImageSizes
from lorasmith.registries import DATASET_RULES


@dataclass(frozen=True)
class BucketUse:
    """What comes to one size."""

    width: int
    height: int
    pictures: int
    """How many pictures."""
    per_epoch: int
    """How many of them an epoch shows, repeats counted."""
    cropped: float
    """Mean share that is cropped away."""
    enlarged: int
    """How many are scaled up."""


@dataclass(frozen=True)
class TagUse:
    """Where the tag stands."""

    tag: str
    captions: int
    """In how many captions."""
    missing: tuple[str, ...]
    """The pictures whose captions do not have it."""
    company: tuple[str, ...]
    """Words that stand in every caption that has it."""


@dataclass(frozen=True)
class DatasetReport:
    """All that is known about a dataset."""

    path: Path
    facts: DatasetFacts
    resolution: int
    """Side of the square bucket."""
    diversity: Diversity | None
    """How different the pictures are; None for very few."""
    findings: Sequence[Finding]
    """What the rules say, errors first."""

    @property
    def errors(self) -> list[Finding]:
        """The findings that stop training."""
        return [finding for finding in self.findings if finding.severity == "error"]

    @property
    def sizes(self) -> list[tuple[tuple[int, int], int]]:
        """The sizes of the pictures and how many have each, the most frequent first."""
        counts = Counter(look.size for look in self.facts.images)
        return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))

    @property
    def buckets(self) -> list[BucketUse]:
        """The sizes that result, those of most pictures first."""
        uses = [_bucket_use(self.facts, bucket) for bucket in self.facts.buckets]
        return sorted((use for use in uses if use.pictures), key=lambda use: -use.pictures)

    @property
    def tag(self) -> TagUse | None:
        """Where the tag stands; None when there is none."""
        if self.facts.tag is None:
            return None
        tagged = self.facts.tagged_rows
        missing = tuple(row.key for row in self.facts.untagged_rows)
        company = tuple(find_common_words(tagged, self.facts.tag))
        return TagUse(self.facts.tag, len(tagged), missing, company)

    @property
    def common_words(self) -> list[str]:
        """Words of every caption: the tag is among them, or is missing."""
        return find_common_words(self.facts.scan.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as values that JSON can hold."""
        found = self.facts.scan
        return {
            "path": str(self.path),
            "ok": not self.errors,
            "pictures": found.image_count,
            "usable": len(found.rows),
            "per_epoch": sum(row.repeats for row in found.rows),
            "masks": sum(row.mask_path is not None for row in found.rows),
            "resolution": self.resolution,
            "sizes": [{"width": w, "height": h, "pictures": n} for (w, h), n in self.sizes],
            "buckets": [asdict(use) for use in self.buckets],
            "captions": len({row.caption for row in found.rows}),
            "common_words": self.common_words,
            "tag": None if self.tag is None else asdict(self.tag),
            "variety": None if self.diversity is None else _diversity_facts(self.diversity),
            "findings": [asdict(finding) for finding in self.findings],
            "problems": [asdict(problem) for problem in found.problems],
        }


def _diversity_facts(diversity: Diversity) -> dict[str, float]:
    return {
        "pictures": diversity.images,
        "distance": diversity.distance,
        "threshold": diversity.threshold,
    }


def check_dataset(
    data: DataConfig,
    tagless: bool,
    model: Path | None,
    caption: str | None,
    bar: ProgressBarFactory,
) -> DatasetReport:
    """Check a dataset as training with these settings would use it.

    Args:
        data: the settings; repeats, captions' changes and the cache do not matter.
        tagless: leave the tag of the settings out.
        model: the diffusers folder whose sizes count; the embedded model by default.
        caption: for pictures that have none; without it they are errors.
        bar: shows progress.

    Raises:
        DataError: nothing there, or nothing that looks like pictures.
        ConfigError: the resolution does not suit the model.
        WeightsError: no such model.
    """
    sizes = ImageSizes.read(model)
    side = _side(data, sizes)
    found = scan_dataset(
        data.path, data.filters, caption, data.background_rgb, bar, data.caption_source
    )
    tag = None if tagless else data.tag
    facts = DatasetFacts(found, tag, _buckets(data, side, sizes), data.class_word, data.max_chunks)
    findings = [finding for rule in DATASET_RULES.items().values() for finding in rule(facts)]
    variety = measure_diversity(facts.scan.rows, data.background_rgb)
    if variety is not None and variety.is_uniform:
        findings.append(_all_alike(variety))
    order = {"error": 0, "warning": 1, "advice": 2}
    findings.sort(key=lambda finding: order[finding.severity])
    return DatasetReport(data.path, facts, side, variety, findings)


def _side(data: DataConfig, sizes: ImageSizes) -> int:
    side = data.resolution or sizes.default
    if side % sizes.multiple:
        near = max(sizes.multiple, round(side / sizes.multiple) * sizes.multiple)
        raise ConfigError(f"resolution: {side} is not a multiple of {sizes.multiple}; use {near}")
    return side


def _buckets(data: DataConfig, side: int, sizes: ImageSizes) -> tuple[Bucket, ...]:
    if not data.buckets:
        return (Bucket(side, side),)
    return make_buckets(
        side,
        choose_bucket_step(side, data.bucket_reso_steps, sizes.multiple),
        data.max_aspect_ratio,
    )


def _bucket_use(facts: DatasetFacts, bucket: Bucket) -> BucketUse:
    pairs = zip(facts.images, facts.assignments, strict=True)
    inside = [(look, placed) for look, placed in pairs if placed.bucket == bucket]
    cuts = [cropped_share(placed) for _, placed in inside]
    return BucketUse(
        width=bucket.width,
        height=bucket.height,
        pictures=len(inside),
        per_epoch=sum(look.row.repeats for look, _ in inside),
        cropped=sum(cuts) / len(cuts) if cuts else 0.0,
        enlarged=sum(scale_factor(placed) > 1.0 for _, placed in inside),
    )


def _all_alike(variety: Diversity) -> Finding:
    return Finding(
        "all-alike", "advice",
        f"the {variety.images} pictures are all alike (mean distance {variety.distance:.2f}, "
        f"varied sets have more than {variety.threshold:.2f}): the LoRA will repeat them; add "
        "other views, backgrounds and things",
    )  # fmt: skip
