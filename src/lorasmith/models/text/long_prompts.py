"""Prompts of any length, with emphasis, encoded in chunks.

The chunks of a text (`lorasmith.models.text.chunks`) are encoded separately and concatenated for
cross-attention.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lorasmith.core.errors import LorasmithWarning
from lorasmith.models.families.family import detect_family
from lorasmith.models.read_json import read_json
from lorasmith.models.text.chunks import (
    MAX_COMMA_DISTANCE,
    Chunk,
    WeightedToken,
    chunk_capacity,
    pad_or_cut,
    split_prompt,
    split_section,
)
from lorasmith.models.text.encode import (
    Conditioning,
    TokenIds,
    encode_tokens,
    tokenize_texts,
    truncated_text,
)
from lorasmith.models.text.prompt_spans import (
    EMPTY_PROMPT,
    WeightedPrompt,
    unweighted_prompt,
)

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

    from lorasmith.models.model import Model

_ROWS_AT_ONCE = 32
_WARNING_TOKENS = 6
"""How many tokens of the second chunk a warning shows."""


@dataclass(frozen=True)
class _ChunkBatch:
    """Chunks for one text encoder."""

    ids: torch.Tensor
    """int64 ``[R, 77]``."""
    weights: torch.Tensor
    """float32 ``[R, 77]``."""


def count_chunks(tokenizer: "CLIPTokenizer", prompt: WeightedPrompt) -> int:
    """Return how many chunks a prompt has, at least 1."""
    return len(split_prompt(tokenizer, prompt))


def tokenize_in_chunks(model: "Model", texts: Sequence[str], chunks: int) -> TokenIds:
    """Return the tokens of texts without emphasis on the CPU, each in exactly ``chunks`` chunks.

    Longer texts are truncated, shorter ones padded with empty chunks as in inference. One chunk
    gives the result of `tokenize_texts`.

    Args:
        model: its tokenizers are used.
        texts: without prompt syntax.
        chunks: at least 1.

    Returns:
        int64 ``[len(texts), 77 * chunks]``, for the second encoder of SDXL likewise.
    """
    if chunks == 1:
        return tokenize_texts(model, texts, warn=False)

    def rows(tokenizer: "CLIPTokenizer") -> torch.Tensor:
        chunked = [
            pad_or_cut(split_prompt(tokenizer, unweighted_prompt(text)), chunks) for text in texts
        ]
        batch = _pack_chunks(tokenizer, [chunk for text in chunked for chunk in text])
        return batch.ids.view(len(texts), -1)

    ids = rows(model.main_tokenizer)
    if model.tokenizer is None or model.tokenizer_2 is None:
        return TokenIds(ids)
    return TokenIds(ids, rows(model.tokenizer_2))


def max_chunks_when_shuffled(tokenizer: "CLIPTokenizer", text: str) -> int:
    """Return the most chunks that a text can have when its comma-separated parts are shuffled.

    Each chunk but the last may give up tokens to end after a comma. (Words of more tokens than that
    may need one more chunk.)
    """
    chunks = split_prompt(tokenizer, unweighted_prompt(text))
    capacity, count = chunk_capacity(tokenizer), sum(map(len, chunks))
    if count <= capacity:
        return 1
    return max(len(chunks), -(-(count - capacity) // (capacity - MAX_COMMA_DISTANCE + 1)) + 1)


def text_beyond_chunks(tokenizer: "CLIPTokenizer", text: str, chunks: int) -> str:
    """Return the end of a text that does not fit into ``chunks`` chunks, or ``""``."""
    if chunks == 1:
        return truncated_text(tokenizer, text)
    remaining = split_prompt(tokenizer, unweighted_prompt(text))[chunks:]
    return str(tokenizer.decode([token.token_id for chunk in remaining for token in chunk])).strip()


def prompt_token_ids(tokenizer: "CLIPTokenizer", prompt: WeightedPrompt) -> torch.Tensor:
    """Return a prompt's tokens with the special ones of each chunk, int64 ``[77 * chunks]``."""
    return _pack_chunks(tokenizer, split_prompt(tokenizer, prompt)).ids.flatten()


def warn_if_too_long(tokenizer: "CLIPTokenizer", prompt: WeightedPrompt, name: str) -> None:
    """Warn if a section of a prompt is longer than what the model reads at once.

    Chunks that the user began with BREAK do not count.

    Args:
        tokenizer: of the model.
        prompt: the prompt.
        name: ``prompt`` or ``negative prompt``.
    """
    for section in prompt:
        chunks = split_section(tokenizer, section)
        if len(chunks) > 1:
            count = sum(map(len, chunks))
            second_ids = [token.token_id for token in chunks[1][:_WARNING_TOKENS]]
            second_text = str(tokenizer.decode(second_ids)).strip()
            warnings.warn(
                f"the {name} has {count} tokens, more than the {chunk_capacity(tokenizer)} that "
                f"the model reads at once; it is read in {len(chunks)} chunks, the second from "
                f"{second_text!r} on",
                LorasmithWarning,
                stacklevel=2,
            )


@torch.no_grad()
def encode_prompts(
    model: "Model", prompts: Sequence[WeightedPrompt], clip_skip: int = 1
) -> list[Conditioning]:
    """Return each prompt's conditioning: context ``[77 * chunks, width]``, pooled ``[P]`` or None.

    The pooled embedding is the first chunk's, without emphasis. All tensors are on the text
    encoders' device, in their dtype. One chunk without emphasis gives the result of
    `encode_captions`.

    Raises:
        ConfigError: ``clip_skip`` names a layer that does not exist.
    """
    tokenizer = model.main_tokenizer
    chunks_by_prompt = [split_prompt(tokenizer, prompt) for prompt in prompts]
    counts = [len(chunks) for chunks in chunks_by_prompt]
    rows = _pack_chunks(tokenizer, [chunk for chunks in chunks_by_prompt for chunk in chunks])
    rows_2 = None
    if model.tokenizer_2 is not None and model.tokenizer is not None:
        # Both have the same vocabulary; should their chunks differ, the first one's count holds.
        chunks_2 = [split_prompt(model.tokenizer_2, prompt) for prompt in prompts]
        padded = [
            pad_or_cut(prompt_chunks, count)
            for prompt_chunks, count in zip(chunks_2, counts, strict=True)
        ]
        rows_2 = _pack_chunks(model.tokenizer_2, [chunk for chunks in padded for chunk in chunks])
    batches = list(_encode_batches(model, rows, rows_2, clip_skip))
    context = torch.cat([batch.context for batch in batches])
    summaries = [batch.pooled for batch in batches if batch.pooled is not None]
    pooled = torch.cat(summaries) if summaries else None
    results, start = [], 0
    for count in counts:
        prompt_context = context[start : start + count].flatten(0, 1)
        results.append(Conditioning(prompt_context, None if pooled is None else pooled[start]))
        start += count
    return results


def encode_to_equal_length(model: "Model", texts: Sequence[str]) -> list[Conditioning]:
    """Encode texts without emphasis, all in as many chunks as the longest one needs.

    Context ``[77 * chunks, width]``, pooled ``[P]`` or None; see `encode_prompts`.
    """
    results = encode_prompts(model, [unweighted_prompt(text) for text in texts])
    longest = max((len(result.context) for result in results), default=0)
    if all(len(result.context) == longest for result in results):
        return results
    (empty,) = encode_prompts(model, [EMPTY_PROMPT])
    return [pad_conditioning(result, empty, longest) for result in results]


def zeroes_empty_prompt(model: "Model") -> bool:
    """Tell whether an empty negative prompt means zeros, as for SDXL's base model.

    A folder may override its family in ``model_index.json`` (``force_zeros_for_empty_prompt``).
    """
    family = detect_family(model)
    if not family.uses_size_conditioning:
        return False
    index, default = model.path / "model_index.json", family.zeroes_empty_prompt
    if not index.is_file():
        return default
    return bool(read_json(model.path, index.name).get("force_zeros_for_empty_prompt", default))


def pad_conditioning(text: Conditioning, empty: Conditioning, tokens: int) -> Conditioning:
    """Pad a text's conditioning with empty chunks.

    Args:
        text: context ``[77 * chunks, width]``.
        empty: of the empty text, ``[77, width]``.
        tokens: the new length, a multiple of 77 and not less than the current one.
    """
    missing = (tokens - len(text.context)) // len(empty.context)
    return Conditioning(torch.cat([text.context, *[empty.context] * missing]), text.pooled)


def apply_emphasis(states: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Multiply the embeddings of tokens and restore each chunk's norm.

    y_i = c w_i x_i with c = sqrt(sum |x_i|^2 / sum |w_i x_i|^2) over the chunk's tokens: emphasis
    is relative to the chunk's other words. A1111 restores the mean instead, which differs little
    for CLIP ViT-L; other encoders have a mean near 0, where that factor is unbounded.

    Args:
        states: hidden states of one text encoder, ``[R, 77, width]``.
        weights: float32 ``[R, 77]``. Rows whose weights are all 1 stay the same, bit for bit.
    """
    rows = (weights != 1.0).any(dim=1)
    if not rows.any():
        return states
    original = states[rows].float()
    weighted = original * weights[rows].unsqueeze(-1)
    norm = weighted.square().sum(dim=(1, 2), keepdim=True).sqrt()
    factor = original.square().sum(dim=(1, 2), keepdim=True).sqrt() / norm.clamp(min=1e-12)
    result = states.clone()
    result[rows] = (weighted * factor).to(states.dtype)
    return result


def _encode_batches(
    model: "Model", rows: _ChunkBatch, rows_2: _ChunkBatch | None, clip_skip: int
) -> Iterator[Conditioning]:
    """Yield the conditioning of rows in batches: context ``[R, 77, width]``."""
    encoders = model.text_encoders
    device = encoders[0].device
    widths = [int(encoder.config.hidden_size) for encoder in encoders]
    for start in range(0, len(rows.ids), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        ids_2 = None if rows_2 is None else rows_2.ids[part].to(device)
        encoded = encode_tokens(model, TokenIds(rows.ids[part].to(device), ids_2), clip_skip)
        weights = [
            encoder_rows.weights[part].to(device)
            for encoder_rows in (rows, rows_2)
            if encoder_rows is not None
        ]
        states = torch.split(encoded.context, widths, dim=-1)
        weighted = [apply_emphasis(*pair) for pair in zip(states, weights, strict=True)]
        yield Conditioning(torch.cat(weighted, dim=-1), encoded.pooled)


def _pack_chunks(tokenizer: "CLIPTokenizer", chunks: Sequence[Chunk]) -> _ChunkBatch:
    start, end = _special_token(tokenizer.bos_token_id), _special_token(tokenizer.eos_token_id)
    pad, length = _special_token(tokenizer.pad_token_id), int(tokenizer.model_max_length)
    full = [[start, *chunk, end, *[pad] * (length - 2 - len(chunk))] for chunk in chunks]
    ids = torch.tensor([[token.token_id for token in row] for row in full])
    return _ChunkBatch(ids, torch.tensor([[token.weight for token in row] for row in full]))


def _special_token(token_id: Any) -> WeightedToken:
    return WeightedToken(int(token_id), 1.0)
