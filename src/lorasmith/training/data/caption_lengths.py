"""In how many chunks the captions of a training set are read."""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lorasmith.config.train_config import DataConfig
from lorasmith.core.errors import LorasmithWarning
from lorasmith.data.tags import remove_tag
from lorasmith.models.text.long_prompts import (
    count_chunks,
    max_chunks_when_shuffled,
    text_beyond_chunks,
)
from lorasmith.models.text.prompt_spans import unweighted_prompt
from lorasmith.training.data.split import DatasetSplit

if TYPE_CHECKING:
    from lorasmith.models.load import Model

_NAMED = 3
"""Captions that a warning names at most."""
_SHOWN = 4
"""Words that it shows of what is cut off."""


def count_caption_chunks(
    model: "Model", data: DataConfig, chosen: DatasetSplit, plain: bool = False
) -> int:
    """Return the chunks that every caption of a set gets, so that batches have one shape.

    That is what the longest one needs, and ``data.max_token_length`` allows; longer
    captions are warned about.

    Args:
        model: its tokenizer counts.
        data: settings of the pictures.
        chosen: the pictures, held-out ones included.
        plain: whether captions without the tag are read as well.
    """
    rows = [*chosen.train_rows, *chosen.class_rows, *chosen.validation_rows]
    needed = {row.caption: _needed(model, data, row.caption) for row in rows}
    most = max(needed.values(), default=1)
    if most > data.max_chunks:
        names = {row.key: row.caption for row in rows if needed[row.caption] > data.max_chunks}
        _warn(model, data, names)
    if plain:
        others = {remove_tag(row.caption, data.tag, data.class_word) for row in rows}
        most = max(most, *(_needed(model, data, text) for text in others))
    return min(most, data.max_chunks)


def _needed(model: "Model", data: DataConfig, caption: str) -> int:
    tokenizer = model.main_tokenizer
    if data.shuffle_caption:
        return max_chunks_when_shuffled(tokenizer, caption)
    return count_chunks(tokenizer, unweighted_prompt(caption))


def _warn(model: "Model", data: DataConfig, captions: Mapping[str, str]) -> None:
    """Name the captions that are cut off, by their pictures."""
    lost = [
        text_beyond_chunks(model.main_tokenizer, text, data.max_chunks)
        for text in captions.values()
    ]
    told = [
        f"{name} from {' '.join(end.split()[:_SHOWN])!r} on"
        for name, end in zip(captions, lost, strict=True)
    ][:_NAMED]
    more = len(captions) - len(told)
    count = "1 caption is" if len(captions) == 1 else f"{len(captions)} captions are"
    warnings.warn(
        f"{count} longer than data.max_token_length = {data.max_token_length} tokens, and the end "
        f"is not read: {', '.join(told)}{f' and {more} more' if more else ''}; shorten them or raise it",
        LorasmithWarning,
        stacklevel=2,
    )
