"""Token ids of all captions of a dataset, and sampling one caption per image."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lorasmith.core.batch_rng import BatchRng
from lorasmith.data.reading.row import Row
from lorasmith.models.text.encode import tokenize

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


class CaptionTable:
    """Tokenized captions of all rows on the device; batches are sampled without leaving it."""

    def __init__(
        self, tokenizer: "CLIPTokenizer", rows: Sequence[Row], device: torch.device
    ) -> None:
        captions = [caption for row in rows for caption in row.captions]
        truncated = [row.caption.split(",")[0] for row in rows]
        input_ids = tokenize(tokenizer, [*captions, *truncated, ""], warn=False)
        counts = torch.tensor([len(row.captions) for row in rows])
        self._input_ids = input_ids.to(device)
        self._counts = counts.to(device)
        self._starts = (counts.cumsum(0) - counts).to(device)
        self._truncated_start = len(captions)
        self._empty = len(captions) + len(truncated)
        self._device = device

    def sample(
        self,
        indices: torch.Tensor,
        rng: BatchRng,
        dropout_rate: float = 0.0,
        truncation_rate: float = 0.0,
        use_all_captions: bool = True,
    ) -> torch.Tensor:
        """Return token ids, int64 ``[B, 77]``, of one caption per row.

        Args:
            indices: row indices, int64 ``[B]``.
            rng: source of the random numbers.
            dropout_rate: share of captions replaced by the empty one.
            truncation_rate: share of captions cut at their first comma.
            use_all_captions: sample among all captions of a row instead of taking its first.
        """
        indices = indices.to(self._device)
        pick, chance = rng.uniform(2)
        counts = self._counts[indices]
        offset = (pick * counts).long() if use_all_captions else torch.zeros_like(indices)
        texts = self._starts[indices] + offset.minimum(counts - 1)
        is_truncated = chance < dropout_rate + truncation_rate
        texts = torch.where(is_truncated, self._truncated_start + indices, texts)
        texts = torch.where(chance < dropout_rate, self._empty, texts)
        return self._input_ids[texts]
