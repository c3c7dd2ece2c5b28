"""How many chunks of tokens the captions of a dataset need."""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lorasmith.config.train_config import DataConfig
from lorasmith.core.errors import LorasmithWarning
from lorasmith.data.caption_tags import remove_tag
from lorasmith.models.text.long_prompts import (
    count_chunks,
    max_chunks_when_shuffled,
    text_beyond_chunks,
)
from lorasmith.models.text.prompt_spans import unweighted_prompt
from lorasmith.training.data.split import DatasetSplit

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

    from lorasmith.models.model import Model

_MAX_LISTED_CAPTIONS = 3
"""Captions that a warning names at most."""
_SHOWN_WORDS = 4
"""Words of the cut-off text that it shows."""


def count_caption_chunks(
    model: "Model", data: DataConfig, split: DatasetSplit, includes_untagged: bool = False
) -> int:
    """Return the chunks that every caption of a dataset gets, so that batches have one shape.

    That is what the longest caption needs, up to ``data.max_token_length``; a warning names longer
    captions.

    Args:
        model: its tokenizer counts.
        data: settings of the images.
        split: the images, validation images included.
        includes_untagged: whether captions without the tag are encoded as well.
    """
    tokenizer, shuffle = model.main_tokenizer, data.shuffle_caption
    rows = [*split.train_rows, *split.class_rows, *split.validation_rows]
    chunks = {row.caption: _count_chunks(tokenizer, row.caption, shuffle) for row in rows}
    longest = max(chunks.values(), default=1)
    if longest > data.max_chunks:
        too_long = {row.key: row.caption for row in rows if chunks[row.caption] > data.max_chunks}
        _warn_about_cut_captions(tokenizer, data.max_token_length, data.max_chunks, too_long)
    if includes_untagged:
        untagged = {remove_tag(row.caption, data.tag, data.class_word) for row in rows}
        longest = max(longest, *(_count_chunks(tokenizer, text, shuffle) for text in untagged))
    return min(longest, data.max_chunks)


def _count_chunks(tokenizer: "CLIPTokenizer", caption: str, shuffle: bool) -> int:
    if shuffle:
        return max_chunks_when_shuffled(tokenizer, caption)
    return count_chunks(tokenizer, unweighted_prompt(caption))


def _warn_about_cut_captions(
    tokenizer: "CLIPTokenizer", max_tokens: int, max_chunks: int, captions: Mapping[str, str]
) -> None:
    """Name the captions that are cut off, by their images."""
    listed = []
    for key, caption in list(captions.items())[:_MAX_LISTED_CAPTIONS]:
        cut_words = text_beyond_chunks(tokenizer, caption, max_chunks).split()
        listed.append(f"{key} from {' '.join(cut_words[:_SHOWN_WORDS])!r} on")
    hidden = len(captions) - len(listed)
    count = "1 caption is" if len(captions) == 1 else f"{len(captions)} captions are"
    warnings.warn(
        f"{count} longer than data.max_token_length = {max_tokens} tokens, and the end is not "
        f"read: {', '.join(listed)}{f' and {hidden} more' if hidden else ''}; shorten them or "
        "raise it",
        LorasmithWarning,
        stacklevel=3,
    )
