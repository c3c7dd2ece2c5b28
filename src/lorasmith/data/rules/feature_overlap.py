"""Rules about several features together: do their captions keep them apart?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lorasmith.core.text.trigger_word import contains_tag
from lorasmith.data.reading.row import Row
from lorasmith.data.rules.facts import Finding, captions_have
from lorasmith.data.rules.trigger_word import (
    COOCCURRENCE_SHARE,
    MIN_CAPTIONS,
    find_common_words,
    split_words,
)


@dataclass(frozen=True)
class FeatureCaptions:
    """The captions of one feature."""

    tag: str
    """Its trigger word."""
    class_word: str
    """What its images show without the tag; may be empty."""
    rows: Sequence[Row]


def check_features_overlap(features: Sequence[FeatureCaptions], joint: bool) -> Iterator[Finding]:
    """Find captions that mix features.

    Args:
        features: all of a run.
        joint: whether they train together, each image for its own feature only.
    """
    for feature in features:
        for other in features:
            if other is not feature:
                yield from _find_other_tag(feature, other, joint)
                yield from _find_other_words(feature, other, features)


def _find_other_tag(
    feature: FeatureCaptions, other: FeatureCaptions, joint: bool
) -> Iterator[Finding]:
    keys = tuple(row.key for row in feature.rows if contains_tag(row.caption, other.tag))
    if not keys:
        return
    mix = f"{captions_have(len(keys))} the tag {other.tag!r} besides {feature.tag!r}"
    if joint:
        yield Finding(
            "other-tag", "error",
            f"{mix}: in joint training such an image trains one LoRA on what belongs to the "
            "other; take the tag out of the caption, leave the image out, or use "
            "train.mode = staged",
            keys,
        )  # fmt: skip
    else:
        yield Finding(
            "other-tag", "warning",
            f"{mix}: the feature that trains first learns both from them; take the tag out "
            "of the caption, or give these images to the later feature only",
            keys,
        )  # fmt: skip


def _find_other_words(
    feature: FeatureCaptions, other: FeatureCaptions, features: Sequence[FeatureCaptions]
) -> Iterator[Finding]:
    """Find captions with the words that describe another feature."""
    classes = {word for each in features for word in split_words(each.class_word)}
    for word in _description(other):
        keys = tuple(row.key for row in feature.rows if word in split_words(row.caption))
        if keys and word not in classes and word not in split_words(feature.tag):
            yield Finding(
                "other-words", "warning",
                f"{captions_have(len(keys))} {word!r} beside {feature.tag!r}, which occurs in "
                f"nearly every caption of {other.tag!r} and will mean that feature; use "
                "another word",
                keys,
            )  # fmt: skip


def _description(feature: FeatureCaptions) -> list[str]:
    """Return the words of nearly all captions of a feature, and those of its tag."""
    tag_words = split_words(feature.tag) if len(feature.tag.split()) > 1 else []
    if len(feature.rows) < MIN_CAPTIONS:
        return tag_words
    common_words = find_common_words(feature.rows, exclude=feature.tag, share=COOCCURRENCE_SHARE)
    return list(dict.fromkeys([*tag_words, *common_words]))
