"""Token ids of every phrasing of every caption, and drawing one per picture."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lorasmith.core.batch_rng import BatchRng
from lorasmith.data.reading.row import Row
from lorasmith.models.text.encode import tokenize

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


class CaptionTable:
    """Phrasings of all rows on the device; batches are drawn without leaving it."""

    def __init__(
        self, tokenizer: "CLIPTokenizer", rows: Sequence[Row], device: torch.device
    ) -> None:
        texts = [text for row in rows for text in row.captions]
        short = [row.caption.split(",")[0] for row in rows]
        ids = tokenize(tokenizer, [*texts, *short, ""], warn=False)
        counts = torch.tensor([len(row.captions) for row in rows])
        self._ids = ids.to(device)
        self._counts = counts.to(device)
        self._starts = (counts.cumsum(0) - counts).to(device)
        self._short_start = len(texts)
        self._empty = len(texts) + len(short)
        self._device = device

    def draw(
        self,
        numbers: torch.Tensor,
        draws: BatchRng,
        empty: float = 0.0,
        short: float = 0.0,
        phrasings: bool = True,
    ) -> torch.Tensor:
        """Return token ids, int64 ``[B, 77]``, of one phrasing per row.

        Args:
            numbers: row numbers, int64 ``[B]``.
            draws: where the choices come from.
            empty: share of captions replaced by the empty one.
            short: share of captions cut at their first comma.
            phrasings: draw among all phrasings instead of taking the main one.
        """
        numbers = numbers.to(self._device)
        pick, luck = draws.uniform(2)
        which = (pick * self._counts[numbers]).long() if phrasings else torch.zeros_like(numbers)
        chosen = self._starts[numbers] + which.minimum(self._counts[numbers] - 1)
        chosen = torch.where(luck < empty + short, self._short_start + numbers, chosen)
        chosen = torch.where(luck < empty, self._empty, chosen)
        return self._ids[chosen]
