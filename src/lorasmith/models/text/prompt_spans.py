"""Prompts as spans of text with weights."""

from typing import NamedTuple


class PromptSpan(NamedTuple):
    """A span of a prompt."""

    text: str
    weight: float = 1.0
    """Factor on the embeddings of its tokens."""


PromptSection = tuple[PromptSpan, ...]
"""Spans that begin a chunk; they follow each other as separate words."""
WeightedPrompt = tuple[PromptSection, ...]
"""A prompt: sections, each of which begins a chunk (BREAK)."""


def unweighted_prompt(text: str) -> WeightedPrompt:
    """Return a text as a prompt without emphasis."""
    return ((PromptSpan(text),),)


EMPTY_PROMPT = unweighted_prompt("")
"""The empty prompt."""
