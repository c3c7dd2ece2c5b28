"""Finding a tag among the tokens of a text.

A tag occurs where its token sequence stands in the text's, beginning at the start of a word. What
counts as equal is therefore what the tokenizer makes equal: CLIP's reads lower case and any white
space as one space. CLIP reads digits one by one, each as a word: ``ink1`` occurs in ``ink12``.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from lorasmith.core.errors import ConfigError

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

_END_OF_WORD = "</w>"
"""What CLIP's vocabulary marks the last token of a word with."""


def tokenize_tag(tokenizer: "CLIPTokenizer", tag: str) -> list[int]:
    """Return the tokens of a tag, at least one.

    Raises:
        ConfigError: the tag is nothing to the tokenizer, such as white space.
    """
    ids = _plain_ids(tokenizer, tag)
    if not ids:
        raise ConfigError(f"tag {tag!r}: the tokenizer reads nothing there; use a word")
    return ids


def find_tag_spans(tokenizer: "CLIPTokenizer", tag: str, text: str) -> list[range]:
    """Return where a tag occurs in a text, as ranges of positions among all of its tokens.

    The whole text counts, however long; special tokens do not.

    Raises:
        ConfigError: the tag has no tokens.
    """
    sought = tokenize_tag(tokenizer, tag)
    starts = _starts(tokenizer, sought, _plain_ids(tokenizer, text))
    return [range(start, start + len(sought)) for start in starts]


def has_tag(tokenizer: "CLIPTokenizer", tag: str, text: str) -> bool:
    """Tell whether a tag occurs anywhere in a text, also in what is cut off for the model.

    Raises:
        ConfigError: the tag has no tokens.
    """
    return bool(find_tag_spans(tokenizer, tag, text))


def mark_tag_tokens(tokenizer: "CLIPTokenizer", tag: str, ids: torch.Tensor) -> torch.Tensor:
    """Mark the tokens of every occurrence of a tag.

    One that begins in one of the model's windows of 77 tokens and ends in the next is marked too.

    Args:
        tokenizer: the one that made the tokens.
        tag: one word or several.
        ids: int64 ``[B, L]``, special tokens included.

    Returns:
        bool ``[B, L]`` on the device of ``ids``.

    Raises:
        ConfigError: the tag has no tokens.
    """
    sought = tokenize_tag(tokenizer, tag)
    found = torch.zeros(ids.shape, dtype=torch.bool)
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    is_end = mark_end_tokens(tokenizer, ids).tolist()
    for row, tokens, ends in zip(found, ids.tolist(), is_end, strict=True):
        text = [
            place for place, token in enumerate(tokens) if token not in special and not ends[place]
        ]
        for start in _starts(tokenizer, sought, [tokens[place] for place in text]):
            row[text[start : start + len(sought)]] = True
    return found.to(ids.device)


def mark_end_tokens(tokenizer: "CLIPTokenizer", ids: torch.Tensor) -> torch.Tensor:
    """Mark the end token and the padding behind it, in each of the model's windows of 77 tokens.

    CLIP is causal: only these positions, and those behind a tag, know of the whole text.

    Args:
        tokenizer: the one that made the tokens.
        ids: int64 ``[B, L]``; an L that is no multiple of the window counts as one window.

    Returns:
        bool ``[B, L]`` on the device of ``ids``.
    """
    rows, length = ids.shape
    window = int(tokenizer.model_max_length)
    windows = length // window if length % window == 0 else 1
    is_end = (ids == int(tokenizer.eos_token_id)).view(rows, windows, -1)
    return (is_end.cumsum(dim=-1) > 0).view(rows, length)


def _plain_ids(tokenizer: "CLIPTokenizer", text: str) -> list[int]:
    encoded = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)
    return [int(one) for one in encoded["input_ids"]]


def _starts(
    tokenizer: "CLIPTokenizer", sought: Sequence[int], tokens: Sequence[int]
) -> Iterator[int]:
    """Yield where a token sequence stands in another, and not in the middle of a word.

    A sequence that ends a word is also the end of longer ones: ``cat`` of ``wildcat``.
    """
    size, wanted = len(sought), list(sought)
    for start in range(len(tokens) - size + 1):
        if list(tokens[start : start + size]) != wanted:
            continue
        if start == 0 or _ends_word(tokenizer, tokens[start - 1]):
            yield start


def _ends_word(tokenizer: "CLIPTokenizer", token: int) -> bool:
    if token in tokenizer.all_special_ids:
        return True
    return str(tokenizer.convert_ids_to_tokens(token)).endswith(_END_OF_WORD)
