"""Texts of any length, with emphasis: cut into chunks, each encoded as a text of its own.

A CLIP tower reads 77 tokens: a start, 75 of text, an end. A longer text becomes several chunks of
that shape, which cross-attention reads one after the other. A chunk ends behind a comma where one
is near, and never within a word that fits into a chunk.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from lorasmith.core.errors import LorasmithWarning
from lorasmith.models.family import detect_family
from lorasmith.models.files.source import read_json
from lorasmith.models.text.encode import (
    Conditioning,
    TokenIds,
    encode_tokens,
    tokenize_texts,
    truncated_text,
)
from lorasmith.models.text.prompt_spans import (
    EMPTY_PROMPT,
    PromptSection,
    WeightedPrompt,
    unweighted_prompt,
)

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

    from lorasmith.models.load import Model

_ROWS_AT_ONCE = 32
_LOOK_BACK = 20
"""Tokens of a chunk that are given up at most to let it end behind a comma."""
_SHOWN = 6
"""Tokens of the second chunk that a warning shows."""
_COMMA, _END_OF_WORD = ",</w>", "</w>"


class _Token(NamedTuple):
    number: int
    weight: float


_Chunk = list[_Token]


@dataclass(frozen=True)
class _Rows:
    """Chunks as one text encoder reads them."""

    ids: torch.Tensor
    """int64 ``[R, 77]``."""
    weights: torch.Tensor
    """float32 ``[R, 77]``."""


def count_chunks(tokenizer: "CLIPTokenizer", passage: WeightedPrompt) -> int:
    """Return how many chunks a text has; the empty one has one."""
    return len(_chunks(tokenizer, passage))


def tokenize_in_chunks(model: "Model", texts: Sequence[str], chunks: int) -> TokenIds:
    """Return texts without emphasis as tokens on the CPU, each in exactly so many chunks.

    What does not fit is left out; behind shorter texts there are empty chunks, as when drawing. In
    one chunk they are what `token_ids` gives.

    Args:
        model: its tokenizers are used.
        texts: as they stand.
        chunks: at least 1.

    Returns:
        int64 ``[len(texts), 77 * chunks]``, for the second encoder of SDXL likewise.
    """
    if chunks == 1:
        return tokenize_texts(model, texts, warn=False)

    def rows(tokenizer: "CLIPTokenizer") -> torch.Tensor:
        cut = [_to_length(_chunks(tokenizer, unweighted_prompt(text)), chunks) for text in texts]
        return _rows(tokenizer, [one for text in cut for one in text]).ids.view(len(texts), -1)

    first = rows(model.main_tokenizer)
    if model.tokenizer is None or model.tokenizer_2 is None:
        return TokenIds(first)
    return TokenIds(first, rows(model.tokenizer_2))


def max_chunks_when_shuffled(tokenizer: "CLIPTokenizer", text: str) -> int:
    """Return how many chunks a text has at most when its parts between commas change places.

    A chunk other than the last gives up some tokens at most, to end behind a comma. (Words of more
    than that many tokens may need one chunk more.)
    """
    chunks = _chunks(tokenizer, unweighted_prompt(text))
    room, count = _room(tokenizer), sum(map(len, chunks))
    if count <= room:
        return 1
    return max(len(chunks), -(-(count - room) // (room - _LOOK_BACK + 1)) + 1)


def text_beyond_chunks(tokenizer: "CLIPTokenizer", text: str, chunks: int) -> str:
    """Return the end of a text that so many chunks have no room for, or ``""``."""
    if chunks == 1:
        return truncated_text(tokenizer, text)
    lost = _chunks(tokenizer, unweighted_prompt(text))[chunks:]
    return str(tokenizer.decode([token.number for chunk in lost for token in chunk])).strip()


def prompt_token_ids(tokenizer: "CLIPTokenizer", passage: WeightedPrompt) -> torch.Tensor:
    """Return a text's tokens, start, end and padding of each chunk too, int64 ``[77 * chunks]``."""
    return _rows(tokenizer, _chunks(tokenizer, passage)).ids.flatten()


def warn_if_too_long(tokenizer: "CLIPTokenizer", passage: WeightedPrompt, name: str) -> None:
    """Warn where a text is longer than what the model was taught to read at once.

    Chunks that the user began with BREAK are no reason.

    Args:
        tokenizer: of the model.
        passage: the text.
        name: what it is called: ``prompt`` or ``negative prompt``.
    """
    for section in passage:
        chunks = _section_chunks(tokenizer, section)
        if len(chunks) > 1:
            count = sum(map(len, chunks))
            second = [token.number for token in chunks[1][:_SHOWN]]
            rest = str(tokenizer.decode(second)).strip()
            warnings.warn(
                f"the {name} has {count} tokens, more than the {_room(tokenizer)} that the model "
                f"reads at once; it is read in {len(chunks)} chunks, the second from {rest!r} on",
                LorasmithWarning,
                stacklevel=2,
            )


@torch.no_grad()
def encode_prompts(
    model: "Model", passages: Sequence[WeightedPrompt], clip_skip: int = 1
) -> list[Conditioning]:
    """Return each text's conditioning: context ``[77 * chunks, width]``, pooled ``[P]`` or None.

    The pooled summary is the first chunk's, without emphasis. Everything is on the text encoders'
    device, in their dtype. A text of one chunk without emphasis has what `encode_captions` gives.

    Raises:
        ConfigError: ``clip_skip`` names a layer that does not exist.
    """
    tokenizer = model.main_tokenizer
    first = [_chunks(tokenizer, one) for one in passages]
    counts = [len(chunks) for chunks in first]
    rows = _rows(tokenizer, [chunk for chunks in first for chunk in chunks])
    other = None
    if model.tokenizer_2 is not None and model.tokenizer is not None:
        # Both have one vocabulary. Should they cut a text otherwise, the first one's count holds.
        second = [_chunks(model.tokenizer_2, one) for one in passages]
        fitted = [_to_length(some, count) for some, count in zip(second, counts, strict=True)]
        other = _rows(model.tokenizer_2, [chunk for chunks in fitted for chunk in chunks])
    parts = list(_encoded(model, rows, other, clip_skip))
    context = torch.cat([part.context for part in parts])
    summaries = [part.pooled for part in parts if part.pooled is not None]
    pooled = torch.cat(summaries) if summaries else None
    found, start = [], 0
    for count in counts:
        own = context[start : start + count].flatten(0, 1)
        found.append(Conditioning(own, None if pooled is None else pooled[start]))
        start += count
    return found


def encode_to_equal_length(model: "Model", texts: Sequence[str]) -> list[Conditioning]:
    """Return what texts without emphasis say, all in as many chunks as the longest one needs.

    Context ``[77 * chunks, width]``, pooled ``[P]`` or None; see `encode_prompts`.
    """
    found = encode_prompts(model, [unweighted_prompt(text) for text in texts])
    longest = max((len(one.context) for one in found), default=0)
    if all(len(one.context) == longest for one in found):
        return found
    (empty,) = encode_prompts(model, [EMPTY_PROMPT])
    return [pad_conditioning(one, empty, longest) for one in found]


def zeroes_empty_prompt(model: "Model") -> bool:
    """Tell whether an empty negative prompt stands for zeros, as SDXL's base model was taught.

    Its refiner was not. A folder may say otherwise in its ``model_index.json``
    (``force_zeros_for_empty_prompt``).
    """
    family = detect_family(model)
    if not family.uses_size_conditioning:
        return False
    index, usual = model.folder / "model_index.json", family.zeroes_empty_prompt
    if not index.is_file():
        return usual
    return bool(read_json(model.folder, index.name).get("force_zeros_for_empty_prompt", usual))


def pad_conditioning(text: Conditioning, empty: Conditioning, tokens: int) -> Conditioning:
    """Return a text's conditioning with empty chunks behind it.

    Args:
        text: context ``[77 * chunks, width]``.
        empty: of the empty text, ``[77, width]``.
        tokens: length that is wanted, a multiple of 77 and not less than there is.
    """
    missing = (tokens - len(text.context)) // len(empty.context)
    return Conditioning(torch.cat([text.context, *[empty.context] * missing]), text.pooled)


def apply_emphasis(states: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Multiply the embeddings of tokens, and bring each chunk back to its strength.

    y_i = c w_i x_i with c = sqrt(sum |x_i|^2 / sum |w_i x_i|^2) over the chunk's tokens: the
    emphasis is between the chunk's words and does not make all of it stronger. A1111 keeps the mean
    instead, which for CLIP ViT-L differs little; other towers have a mean near 0, where that
    factor has no bounds.

    Args:
        states: hidden states of one tower, ``[R, 77, width]``.
        weights: float32 ``[R, 77]``. Rows whose weights are all 1 stay as they are, bit for bit.
    """
    rows = (weights != 1.0).any(dim=1)
    if not rows.any():
        return states
    before = states[rows].float()
    after = before * weights[rows].unsqueeze(-1)
    strength = after.square().sum(dim=(1, 2), keepdim=True).sqrt()
    factor = before.square().sum(dim=(1, 2), keepdim=True).sqrt() / strength.clamp(min=1e-12)
    changed = states.clone()
    changed[rows] = (after * factor).to(states.dtype)
    return changed


def _encoded(
    model: "Model", rows: _Rows, other: _Rows | None, clip_skip: int
) -> Iterator[Conditioning]:
    """Yield the conditioning of rows, some at a time: context ``[R, 77, width]``."""
    encoders = model.text_encoders
    device = encoders[0].device
    widths = [int(encoder.config.hidden_size) for encoder in encoders]
    for start in range(0, len(rows.ids), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        second = None if other is None else other.ids[part].to(device)
        found = encode_tokens(model, TokenIds(rows.ids[part].to(device), second), clip_skip)
        weights = [one.weights[part].to(device) for one in (rows, other) if one is not None]
        states = torch.split(found.context, widths, dim=-1)
        towers = [apply_emphasis(*pair) for pair in zip(states, weights, strict=True)]
        yield Conditioning(torch.cat(towers, dim=-1), found.pooled)


def _room(tokenizer: "CLIPTokenizer") -> int:
    """Return how many tokens of text a chunk holds."""
    return int(tokenizer.model_max_length) - 2  # the start and the end token


def _rows(tokenizer: "CLIPTokenizer", chunks: Sequence[_Chunk]) -> _Rows:
    start, end = _special(tokenizer.bos_token_id), _special(tokenizer.eos_token_id)
    pad, length = _special(tokenizer.pad_token_id), int(tokenizer.model_max_length)
    full = [[start, *chunk, end, *[pad] * (length - 2 - len(chunk))] for chunk in chunks]
    ids = torch.tensor([[token.number for token in row] for row in full])
    return _Rows(ids, torch.tensor([[token.weight for token in row] for row in full]))


def _special(number: Any) -> _Token:
    return _Token(int(number), 1.0)


def _chunks(tokenizer: "CLIPTokenizer", passage: WeightedPrompt) -> list[_Chunk]:
    return [chunk for section in passage for chunk in _section_chunks(tokenizer, section)]


def _section_chunks(tokenizer: "CLIPTokenizer", section: PromptSection) -> list[_Chunk]:
    tokens: _Chunk = []
    for words in section:
        encoded = tokenizer(words.text, add_special_tokens=False, truncation=False, verbose=False)
        tokens += [_Token(int(number), words.weight) for number in encoded["input_ids"]]
    chunks, room = [], _room(tokenizer)
    while len(tokens) > room:
        names = tokenizer.convert_ids_to_tokens([token.number for token in tokens[:room]])
        end = _end_of_chunk(names)
        chunks.append(tokens[:end])
        tokens = tokens[end:]
    return [*chunks, tokens]


def _end_of_chunk(names: Sequence[str]) -> int:
    """Return how many of a full chunk's tokens stay in it, at least one."""
    room = len(names)
    for place in range(room, room - _LOOK_BACK, -1):
        if names[place - 1] == _COMMA:
            return place
    ends = [place for place in range(1, room + 1) if names[place - 1].endswith(_END_OF_WORD)]
    return ends[-1] if ends else room


def _to_length(chunks: list[_Chunk], count: int) -> list[_Chunk]:
    return [*chunks[:count], *([[]] * (count - len(chunks)))]
