"""Several features side by side: do their captions keep them apart?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lorasmith.data.reading.row import Row
from lorasmith.data.rules.facts import Finding, captions_have
from lorasmith.data.rules.tag import (
    COOCCURRENCE_SHARE,
    MIN_CAPTIONS,
    find_common_words,
    split_words,
)
from lorasmith.data.tags import contains_tag


@dataclass(frozen=True)
class FeatureCaptions:
    """What the captions of one feature say."""

    tag: str
    """The words that call it."""
    class_word: str
    """What its pictures show without the tag; may be empty."""
    rows: Sequence[Row]
    """Its pictures."""


def check_features_overlap(features: Sequence[FeatureCaptions], joint: bool) -> Iterator[Finding]:
    """Tell what drags features into each other.

    Args:
        features: all of a run.
        joint: whether they are learned at once, every picture by its own feature alone.
    """
    for one in features:
        for other in features:
            if other is not one:
                yield from _other_tag(one, other, joint)
                yield from _other_words(one, other, features)


def _other_tag(one: FeatureCaptions, other: FeatureCaptions, joint: bool) -> Iterator[Finding]:
    """Tell captions that have another feature's tag."""
    keys = tuple(row.key for row in one.rows if contains_tag(row.caption, other.tag))
    if not keys:
        return
    found = f"{captions_have(len(keys))} the tag {other.tag!r} besides {one.tag!r}"
    if joint:
        yield Finding(
            "other-tag", "error",
            f"{found}: learned at once, such a picture would teach one what belongs to the other; "
            "take the tag out of the caption, leave the picture out, or use train.mode = staged",
            keys,
        )  # fmt: skip
    else:
        yield Finding(
            "other-tag", "warning",
            f"{found}: whichever is learned first learns both from them; take the tag out of the "
            "caption, or let these pictures be those of the later feature only",
            keys,
        )  # fmt: skip


def _other_words(
    one: FeatureCaptions, other: FeatureCaptions, features: Sequence[FeatureCaptions]
) -> Iterator[Finding]:
    """Tell captions that have the words that describe another feature."""
    classes = {word for feature in features for word in split_words(feature.class_word)}
    for word in _description(other):
        keys = tuple(row.key for row in one.rows if word in split_words(row.caption))
        if keys and word not in classes and word not in split_words(one.tag):
            yield Finding(
                "other-words", "warning",
                f"{captions_have(len(keys))} {word!r} beside {one.tag!r}, which stands in nearly "
                f"every caption of {other.tag!r} and will mean that feature; use another word",
                keys,
            )  # fmt: skip


def _description(feature: FeatureCaptions) -> list[str]:
    """Return the words that nearly all captions of a feature have, with those of its tag."""
    several = split_words(feature.tag) if len(feature.tag.split()) > 1 else []
    if len(feature.rows) < MIN_CAPTIONS:
        return several
    company = find_common_words(feature.rows, exclude=feature.tag, share=COOCCURRENCE_SHARE)
    return list(dict.fromkeys([*several, *company]))
