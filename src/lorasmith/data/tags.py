"""Tags in captions: the words that a LoRA is called by."""

import re
from collections import Counter
from collections.abc import Iterable


def contains_tag(text: str, tag: str) -> bool:
    """Tell whether a tag stands in a text as whole words, in any case (CLIP reads lower case)."""
    return re.search(_pattern(tag), text, re.IGNORECASE) is not None


def count_tags(captions: Iterable[str]) -> dict[str, int]:
    """Count the comma-separated parts of captions, the most frequent first."""
    parts = Counter(part.strip() for caption in captions for part in caption.split(","))
    return {part: count for part, count in parts.most_common() if part}


def remove_tag(text: str, tag: str, class_word: str = "") -> str:
    """Return a caption of the same picture that does not name the tag.

    The tag is replaced by the class word, or removed where that stands beside it already
    ("a curlyqx person" for the class person becomes "a person") or is empty. Parts between commas
    that are left empty go with it.
    """
    sought = _pattern(tag)
    beside = _pattern(class_word) if class_word.split() else None
    if beside is not None:
        text = re.sub(rf"{sought}(?=\s+{beside})", " ", text, flags=re.IGNORECASE)
        text = re.sub(rf"({beside})\s+{sought}", r"\1", text, flags=re.IGNORECASE)
    text = re.sub(sought, lambda _: f" {class_word} ", text, flags=re.IGNORECASE)
    parts = (" ".join(part.split()) for part in text.split(","))
    return ", ".join(part for part in parts if part)


def add_tag(text: str, tag: str, other: str) -> str:
    """Return a caption that names another tag right behind its own, or at its end."""
    found = re.search(_pattern(tag), text, re.IGNORECASE)
    if found is None:
        return ", ".join(part for part in (text, other) if part)
    return f"{text[: found.end()]} {other}{text[found.end() :]}"


def _pattern(words: str) -> str:
    inner = r"\s+".join(re.escape(word) for word in words.split())
    return rf"(?<!\w){inner}(?!\w)"
