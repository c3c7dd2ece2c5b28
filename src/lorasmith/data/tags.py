"""Trigger words (tags) in captions."""

import re
from collections import Counter
from collections.abc import Iterable


def contains_tag(text: str, tag: str) -> bool:
    """Whether a text contains a tag as full words, in any case (CLIP reads lower case)."""
    return re.search(_pattern(tag), text, re.IGNORECASE) is not None


def count_tags(captions: Iterable[str]) -> dict[str, int]:
    """Count the comma-separated parts of captions, the most frequent first."""
    parts = Counter(part.strip() for caption in captions for part in caption.split(","))
    return {part: count for part, count in parts.most_common() if part}


def remove_tag(text: str, tag: str, class_word: str = "") -> str:
    """Return a caption of the same image without the tag.

    The class word replaces the tag, unless it already stands next to it ("a curlyqx person" with
    the class word person becomes "a person") or is empty. Empty parts between commas are removed.
    """
    tag_pattern = _pattern(tag)
    class_pattern = _pattern(class_word) if class_word.split() else None
    if class_pattern is not None:
        text = re.sub(rf"{tag_pattern}(?=\s+{class_pattern})", " ", text, flags=re.IGNORECASE)
        text = re.sub(rf"({class_pattern})\s+{tag_pattern}", r"\1", text, flags=re.IGNORECASE)
    text = re.sub(tag_pattern, lambda _: f" {class_word} ", text, flags=re.IGNORECASE)
    parts = (" ".join(part.split()) for part in text.split(","))
    return ", ".join(part for part in parts if part)


def add_tag(text: str, tag: str, other: str) -> str:
    """Insert another tag right after the caption's own tag, or at the end."""
    match = re.search(_pattern(tag), text, re.IGNORECASE)
    if match is None:
        return ", ".join(part for part in (text, other) if part)
    return f"{text[: match.end()]} {other}{text[match.end() :]}"


def _pattern(words: str) -> str:
    inner = r"\s+".join(re.escape(word) for word in words.split())
    return rf"(?<!\w){inner}(?!\w)"
