"""Texts as pieces with weights: what emphasis in a prompt comes to."""

from typing import NamedTuple


class Words(NamedTuple):
    """A piece of a text."""

    text: str
    """What is read."""
    weight: float = 1.0
    """What its tokens' embeddings are multiplied by."""


Section = tuple[Words, ...]
"""What a chunk begins with; pieces follow each other as separate words."""
Passage = tuple[Section, ...]
"""A text: sections, each of which begins a chunk."""


def plain_passage(text: str) -> Passage:
    """Return a text without any emphasis, as it stands."""
    return ((Words(text),),)


EMPTY = plain_passage("")
"""The text without words."""
