"""Finding a trigger word (tag) among the tokens of a text.

A tag occurs where its token sequence is part of the text's, starting at the start of a word. Two
texts are therefore equal if the tokenizer makes them equal: CLIP's reads lower case, and any white
space as one space. CLIP reads digits one at a time, each as a word: ``ink1`` occurs in ``ink12``.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from lorasmith.core.errors import ConfigError

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

_END_OF_WORD = "</w>"
"""The mark of a word's last token in CLIP's vocabulary."""


def tokenize_tag(tokenizer: "CLIPTokenizer", tag: str) -> list[int]:
    """Return the tokens of a tag, at least one.

    Raises:
        ConfigError: the tag has no tokens, such as white space.
    """
    ids = _tokenize(tokenizer, tag)
    if not ids:
        raise ConfigError(f"tag {tag!r}: the tokenizer reads nothing there; use a word")
    return ids


def find_tag_spans(tokenizer: "CLIPTokenizer", tag: str, text: str) -> list[range]:
    """Return where a tag occurs in a text, as ranges of positions among its tokens.

    All of the text is searched, however long it is; special tokens do not count.

    Raises:
        ConfigError: the tag has no tokens.
    """
    tag_ids = tokenize_tag(tokenizer, tag)
    starts = _find_starts(tokenizer, tag_ids, _tokenize(tokenizer, text))
    return [range(start, start + len(tag_ids)) for start in starts]


def has_tag(tokenizer: "CLIPTokenizer", tag: str, text: str) -> bool:
    """Return whether a tag occurs in a text, even in what is cut off for the model.

    Raises:
        ConfigError: the tag has no tokens.
    """
    return bool(find_tag_spans(tokenizer, tag, text))


def mark_tag_tokens(tokenizer: "CLIPTokenizer", tag: str, ids: torch.Tensor) -> torch.Tensor:
    """Return a mask of the tokens of every occurrence of a tag.

    An occurrence that starts in one window of 77 tokens and ends in the next is marked too.

    Args:
        tokenizer: the tokenizer that made ``ids``.
        tag: one or more words.
        ids: int64 ``[B, L]``, with special tokens.

    Returns:
        bool ``[B, L]`` on the device of ``ids``.

    Raises:
        ConfigError: the tag has no tokens.
    """
    tag_ids = tokenize_tag(tokenizer, tag)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    is_end = mark_end_tokens(tokenizer, ids).tolist()
    for row_mask, row, row_ends in zip(mask, ids.tolist(), is_end, strict=True):
        positions = [
            position
            for position, token in enumerate(row)
            if token not in special and not row_ends[position]
        ]
        text_ids = [row[position] for position in positions]
        for start in _find_starts(tokenizer, tag_ids, text_ids):
            row_mask[positions[start : start + len(tag_ids)]] = True
    return mask.to(ids.device)


def mark_end_tokens(tokenizer: "CLIPTokenizer", ids: torch.Tensor) -> torch.Tensor:
    """Return a mask of the end token and the padding after it, in each window of 77 tokens.

    CLIP is causal: only these positions, and those after a tag, depend on the full text.

    Args:
        tokenizer: the tokenizer that made ``ids``.
        ids: int64 ``[B, L]``; an L that is no multiple of the window counts as one window.

    Returns:
        bool ``[B, L]`` on the device of ``ids``.
    """
    rows, length = ids.shape
    window = int(tokenizer.model_max_length)
    windows = length // window if length % window == 0 else 1
    is_end = (ids == int(tokenizer.eos_token_id)).view(rows, windows, -1)
    return (is_end.cumsum(dim=-1) > 0).view(rows, length)


def _tokenize(tokenizer: "CLIPTokenizer", text: str) -> list[int]:
    """Return the tokens of a text without special tokens."""
    encoded = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)
    return [int(token) for token in encoded["input_ids"]]


def _find_starts(
    tokenizer: "CLIPTokenizer", tag_ids: Sequence[int], text_ids: Sequence[int]
) -> Iterator[int]:
    """Yield where a token sequence occurs in another one and does not start inside of a word.

    A sequence that ends a word is also the end of longer words: ``cat`` of ``wildcat``.
    """
    length = len(tag_ids)
    for start in range(len(text_ids) - length + 1):
        if list(text_ids[start : start + length]) != list(tag_ids):
            continue
        if start == 0 or _ends_word(tokenizer, text_ids[start - 1]):
            yield start


def _ends_word(tokenizer: "CLIPTokenizer", token: int) -> bool:
    if token in tokenizer.all_special_ids:
        return True
    return str(tokenizer.convert_ids_to_tokens(token)).endswith(_END_OF_WORD)
