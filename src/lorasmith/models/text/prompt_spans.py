"""Prompts as spans of text with weights."""

from collections.abc import Sequence
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


def join_spans(texts: Sequence[str]) -> tuple[str, list[int]]:
    """Return the text of spans as the tokenizer reads them, and where each begins.

    Spans are separate words: a space comes where two would become one.
    """
    parts: list[str] = []
    starts, length = [], 0
    for text in texts:
        if parts and text and not parts[-1][-1].isspace() and not text[0].isspace():
            parts.append(" ")
            length += 1
        starts.append(length)
        if text:
            parts.append(text)
            length += len(text)
    return "".join(parts), starts


def section_texts(prompt: WeightedPrompt) -> list[str]:
    """Return the text of each section of a prompt, without weights."""
    return [join_spans([span.text for span in section])[0] for section in prompt]
