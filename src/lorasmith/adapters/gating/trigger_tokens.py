"""The tokens of a trigger word (tag) in a prompt.

Where a tag is, `lorasmith.core.text.trigger_word` says, by the text; its tokens are those that read
characters of it. A token may also read what stands beside the tag: CLIP has a token for ``),``,
which is the last one of the tag ``ganyu (genshin)`` before a comma.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from lorasmith.core.errors import ConfigError
from lorasmith.core.text.trigger_word import contains_tag, find_tag, split_tag
from lorasmith.models.text.chunks import chunk_capacity, mark_tokens
from lorasmith.models.text.prompt_spans import WeightedPrompt, section_texts

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


def check_tag_tokens(tokenizer: "CLIPTokenizer", tag: str) -> None:
    """Refuse a tag that a model cannot read.

    Raises:
        ConfigError: the tag has no tokens, one that the vocabulary lacks, or more than the model
            reads at once.
    """
    encoded = tokenizer(tag, add_special_tokens=False, truncation=False, verbose=False)
    ids, special = encoded["input_ids"], set(tokenizer.all_special_ids)
    if not split_tag(tag) or not ids:
        raise ConfigError(f"tag {tag!r}: the tokenizer reads nothing there; use a word")
    if not special.isdisjoint(ids):
        raise ConfigError(f"tag {tag!r}: the model's vocabulary has no tokens for it; use a word")
    if len(ids) > chunk_capacity(tokenizer):
        raise ConfigError(
            f"tag {tag!r}: it has {len(ids)} tokens and the model reads "
            f"{chunk_capacity(tokenizer)} at once; use a word or two"
        )


def has_tag(prompt: WeightedPrompt, tag: str) -> bool:
    """Return whether a tag occurs in a prompt, even in what is cut off for the model.

    A BREAK within the tag separates its words.
    """
    return any(contains_tag(text, tag) for text in section_texts(prompt))


def mark_tag_tokens(
    tokenizer: "CLIPTokenizer", tag: str, prompts: Sequence[WeightedPrompt], num_chunks: int
) -> torch.Tensor:
    """Return a mask of the tokens of every occurrence of a tag.

    An occurrence that starts in one chunk of 77 tokens and ends in the next is marked too.

    Args:
        tokenizer: of the model.
        tag: one or more words.
        prompts: captions or prompts.
        num_chunks: into which each is cut or padded; see `mark_tokens`.

    Returns:
        bool ``[len(prompts), 77 * num_chunks]`` on the CPU.
    """
    find_places = partial(find_tag, tag=tag)
    masks = [mark_tokens(tokenizer, prompt, find_places, num_chunks) for prompt in prompts]
    return torch.stack(masks)


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
