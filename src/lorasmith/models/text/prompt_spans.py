"""Texts as pieces with weights: what emphasis in a prompt comes to."""

from typing import NamedTuple


class PromptSpan(NamedTuple):
    """A piece of a text."""

    text: str
    """What is read."""
    weight: float = 1.0
    """What its tokens' embeddings are multiplied by."""


PromptSection = tuple[PromptSpan, ...]
"""What a chunk begins with; pieces follow each other as separate words."""
WeightedPrompt = tuple[PromptSection, ...]
"""A text: sections, each of which begins a chunk."""


def unweighted_prompt(text: str) -> WeightedPrompt:
    """Return a text without any emphasis, as it stands."""
    return ((PromptSpan(text),),)


EMPTY_PROMPT = unweighted_prompt("")
"""The text without words."""
