"""Texts of any length as chunks of tokens, each token with the characters that it reads.

A CLIP text encoder reads 77 tokens: a start, 75 of text, an end. A longer text becomes several
chunks of that shape. A chunk ends after a comma if one is near, and never within a word that fits
into a chunk.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from lorasmith.models.text.prompt_spans import (
    PromptSection,
    WeightedPrompt,
    join_spans,
)

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

MAX_COMMA_DISTANCE = 20
"""Tokens that a chunk may give up to end after a comma."""
_COMMA, _END_OF_WORD = ",</w>", "</w>"


class WeightedToken(NamedTuple):
    """A token of a prompt."""

    token_id: int
    weight: float
    first: int = 0
    """The first character of its section's text that it reads."""
    stop: int = 0
    """The one behind the last."""


Chunk = list[WeightedToken]


def chunk_capacity(tokenizer: "CLIPTokenizer") -> int:
    """Return how many tokens of text a chunk holds."""
    return int(tokenizer.model_max_length) - 2  # the start and the end token


def split_prompt(tokenizer: "CLIPTokenizer", prompt: WeightedPrompt) -> list[Chunk]:
    """Return the chunks of a prompt, at least one."""
    return [chunk for section in prompt for chunk in split_section(tokenizer, section)]


def split_section(tokenizer: "CLIPTokenizer", section: PromptSection) -> list[Chunk]:
    """Return the chunks of a section, at least one."""
    tokens = _tokenize(tokenizer, section)
    chunks, capacity = [], chunk_capacity(tokenizer)
    while len(tokens) > capacity:
        names = tokenizer.convert_ids_to_tokens([token.token_id for token in tokens[:capacity]])
        end = _find_chunk_end(names)
        chunks.append(tokens[:end])
        tokens = tokens[end:]
    return [*chunks, tokens]


def pad_or_cut(chunks: list[Chunk], count: int) -> list[Chunk]:
    """Return exactly ``count`` chunks, the last ones empty if need be."""
    return [*chunks[:count], *([[]] * (count - len(chunks)))]


def mark_tokens(
    tokenizer: "CLIPTokenizer",
    prompt: WeightedPrompt,
    find_places: Callable[[str], Sequence[range]],
    num_chunks: int,
) -> torch.Tensor:
    """Mark the tokens of a prompt that read characters at certain places.

    The tokens are those of `tokenize_in_chunks` and, where all chunks of the prompt are wanted, of
    `prompt_token_ids`. A token that reads such a character and others too counts; special tokens
    never do.

    Args:
        tokenizer: of the model.
        prompt: a caption or a prompt.
        find_places: returns the places in the text of a section, as ranges of characters.
        num_chunks: longer prompts are cut, shorter ones padded with empty chunks.

    Returns:
        bool ``[77 * num_chunks]`` on the CPU.
    """
    length, special = int(tokenizer.model_max_length), set(tokenizer.all_special_ids)
    mask = torch.zeros(num_chunks, length, dtype=torch.bool)
    row = 0
    for section in prompt:
        text, _ = join_spans([span.text for span in section])
        marked = {index for place in find_places(text) for index in place}
        chunks = split_section(tokenizer, section)
        if num_chunks == 1:  # the tokenizer's own truncation, which does not look for commas
            chunks = [_tokenize(tokenizer, section)[: chunk_capacity(tokenizer)]]
        for chunk in chunks[: num_chunks - row]:
            for position, token in enumerate(chunk, start=1):
                reads_place = not marked.isdisjoint(range(token.first, token.stop))
                mask[row, position] = reads_place and token.token_id not in special
            row += 1
    return mask.flatten()


def _tokenize(tokenizer: "CLIPTokenizer", section: PromptSection) -> Chunk:
    """Return all tokens of a section, without special ones."""
    tokens: Chunk = []
    _, offsets = join_spans([span.text for span in section])
    for span, offset in zip(section, offsets, strict=True):
        encoded = tokenizer(
            span.text,
            add_special_tokens=False,
            truncation=False,
            verbose=False,
            return_offsets_mapping=True,
        )
        tokens += [
            WeightedToken(int(token_id), span.weight, offset + first, offset + stop)
            for token_id, (first, stop) in zip(
                encoded["input_ids"], encoded["offset_mapping"], strict=True
            )
        ]
    return tokens


def _find_chunk_end(names: Sequence[str]) -> int:
    """Return where a full chunk ends, at least after one token."""
    capacity = len(names)
    for end in range(capacity, capacity - MAX_COMMA_DISTANCE, -1):
        if names[end - 1] == _COMMA:
            return end
    ends = [end for end in range(1, capacity + 1) if names[end - 1].endswith(_END_OF_WORD)]
    return ends[-1] if ends else capacity
