"""Captions with other trigger words (tags), and counting the parts of captions."""

import re
from collections import Counter
from collections.abc import Iterable

from lorasmith.core.text.trigger_word import find_tag


def count_tags(captions: Iterable[str]) -> dict[str, int]:
    """Count the comma-separated parts of captions, the most frequent first."""
    parts = Counter(part.strip() for caption in captions for part in caption.split(","))
    return {part: count for part, count in parts.most_common() if part}


def remove_tag(text: str, tag: str, class_word: str = "") -> str:
    """Return a caption of the same image without the tag.

    The class word replaces the tag, unless it already stands next to it ("a curlyqx person" with
    the class word person becomes "a person") or is empty. Empty parts between commas are removed.
    """
    class_places = find_tag(text, class_word)
    pieces, end = [], 0
    for place in find_tag(text, tag):
        if place.start < end:
            continue  # overlaps with the occurrence before
        needs_class = not any(_stand_together(text, place, other) for other in class_places)
        pieces += [text[end : place.start], f" {class_word} " if needs_class else " "]
        end = place.stop
    plain = "".join([*pieces, text[end:]])
    parts = (" ".join(part.split()) for part in plain.split(","))
    return ", ".join(part for part in parts if part)


def add_tag(text: str, tag: str, other: str) -> str:
    """Insert another tag right after the caption's own tag, or at the end."""
    places = find_tag(text, tag)
    if not places:
        return ", ".join(part for part in (text, other) if part)
    before, behind = text[: places[0].stop], text[places[0].stop :]
    space = " " if re.match(r"\w", behind) else ""  # a tag that ends in a bracket may touch a word
    return f"{before} {other}{space}{behind}"


def _stand_together(text: str, place: range, other: range) -> bool:
    """Return whether only white space, and some of it, separates two places of a text."""
    first, second = sorted((place, other), key=lambda each: each.start)
    return text[first.stop : second.start].isspace()
