"""Captions of a batch: embeddings or token ids, cached or computed in every step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

from lorasmith.core.batch_rng import BatchRng
from lorasmith.core.device import gather_to_device, to_device_async
from lorasmith.data.caption_augmentation import drop_caption, shuffle_caption
from lorasmith.models.text.encode import Conditioning, TokenIds, encode_tokens
from lorasmith.models.text.long_prompts import tokenize_in_chunks

if TYPE_CHECKING:
    from lorasmith.models.model import Model

_MAX_RESIDENT_BYTES = 2 * 2**30
"""Embeddings up to this size stay on the training device."""
_CAPTION_STREAM = 0x63617074
"""Random stream of caption dropout and shuffling."""

TokenMaskFn = Callable[[Sequence[str], torch.Tensor], torch.Tensor]
"""Marks the tokens of B captions, int64 ``[B, L]``: bool ``[B, M, L]``, as in
``Batch.token_mask``."""


class TextBatch(NamedTuple):
    """The text fields of a ``Batch``; those that are not needed are None."""

    context: torch.Tensor | None = None
    pooled: torch.Tensor | None = None
    input_ids: torch.Tensor | None = None
    input_ids_2: torch.Tensor | None = None
    token_mask: torch.Tensor | None = None


class TextSource(Protocol):
    """Where the texts of a batch come from."""

    def gather(self, indices: torch.Tensor, rng: BatchRng) -> TextBatch:
        """Return the texts of images.

        Args:
            indices: which images, int64 ``[B]`` on the CPU.
            rng: random numbers for these images of the batch.
        """


@dataclass(frozen=True)
class CaptionEncoder:
    """Turns captions into tokens, embeddings and token masks."""

    model: "Model"
    """Its tokenizers, and its text encoders on their device."""
    dtype: torch.dtype
    """The U-Net's dtype."""
    device: torch.device
    """Device of the batches."""
    token_mask_fn: TokenMaskFn | None = None
    """Marks the tokens that LoRAs may write to; None for all."""
    num_chunks: int = 1
    """Chunks of 77 tokens of each caption; see `tokenize_in_chunks`."""

    def tokenize(self, texts: Sequence[str]) -> TokenIds:
        return tokenize_in_chunks(self.model, texts, self.num_chunks)

    @torch.no_grad()
    def embed(self, tokens: TokenIds) -> Conditioning:
        """Return embeddings on the text encoders' device, in their dtype."""
        return encode_tokens(
            self.model, tokens_to_device(tokens, self.model.text_encoders[0].device)
        )

    def cast(self, embeddings: Conditioning, device: torch.device) -> Conditioning:
        """Return embeddings on a device in the U-Net's dtype."""
        context, pooled = embeddings
        return Conditioning(
            context.to(device, self.dtype),
            None if pooled is None else pooled.to(device, self.dtype),
        )

    def token_mask(
        self, texts: Sequence[str], tokens: TokenIds, device: torch.device
    ) -> torch.Tensor | None:
        """Return the tokens of captions that LoRAs may write to; None without a token gate.

        SDXL's tokenizers differ only in their padding, behind the end token.
        """
        if self.token_mask_fn is None:
            return None
        return to_device_async(self.token_mask_fn(texts, tokens.ids), device)


def tokens_to_device(tokens: TokenIds, device: torch.device) -> TokenIds:
    ids_2 = None if tokens.ids_2 is None else to_device_async(tokens.ids_2, device)
    return TokenIds(to_device_async(tokens.ids, device), ids_2)


class CachedCaptions:
    """Distinct captions that were encoded or tokenized before training."""

    def __init__(
        self,
        table: TextBatch,
        table_rows: Sequence[int],
        dropout_rate: float,
        device: torch.device,
    ) -> None:
        """Wrap a table of captions; ``encode_captions`` and ``tokenize_captions`` make it.

        Args:
            table: a row for each distinct caption; with dropout the last one is the empty caption.
            table_rows: each image's row.
            dropout_rate: share of the captions that the empty one replaces.
            device: device of the batches. The table stays there unless it is very large.
        """
        num_bytes = sum(part.nbytes for part in table if part is not None)
        table_device = device if num_bytes <= _MAX_RESIDENT_BYTES else torch.device("cpu")
        self._table = TextBatch(
            *(None if part is None else part.to(table_device) for part in table)
        )
        self._table_rows = torch.tensor(table_rows, device=table_device)
        self._dropout_rate = dropout_rate
        self._device = device
        # On the device even where the table is not: the device decides which captions to drop.
        self._empty = TextBatch(*(None if part is None else part[-1:].to(device) for part in table))

    def gather(self, indices: torch.Tensor, rng: BatchRng) -> TextBatch:
        """Return embeddings or tokens; see ``TextSource``."""
        rows = self._table_rows[to_device_async(indices, self._table_rows.device)]
        parts = [
            None if part is None else gather_to_device(part, rows, self._device)
            for part in self._table
        ]
        if self._dropout_rate:
            is_dropped = to_device_async(rng.uniform(), self._device) < self._dropout_rate
            parts = [
                None if part is None or empty is None else _replace_rows(part, empty, is_dropped)
                for part, empty in zip(parts, self._empty, strict=True)
            ]
        return TextBatch(*parts)


def _replace_rows(
    rows: torch.Tensor, replacement: torch.Tensor, where: torch.Tensor
) -> torch.Tensor:
    """Return rows ``[B, ...]``, replaced by ``[1, ...]`` where bool ``[B]`` says so."""
    return torch.where(where.view(-1, *[1] * (rows.ndim - 1)), replacement, rows)


class OnlineCaptions:
    """Captions that are shuffled in every step, where they also go through the text encoder."""

    def __init__(
        self,
        encoder: CaptionEncoder,
        captions: Sequence[str],
        dropout_rate: float,
        keep_tokens: int,
        as_ids: bool,
    ) -> None:
        """Wrap captions.

        Args:
            encoder: encodes them.
            captions: one per image.
            dropout_rate: share of the captions that are replaced by an empty one.
            keep_tokens: how many comma-separated parts at the start stay in place.
            as_ids: return token ids instead of embeddings.
        """
        self._encoder = encoder
        self._captions = captions
        self._dropout_rate = dropout_rate
        self._keep_tokens = keep_tokens
        self._as_ids = as_ids

    def gather(self, indices: torch.Tensor, rng: BatchRng) -> TextBatch:
        """Return embeddings or tokens of newly shuffled captions; see ``TextSource``."""
        encoder, device = self._encoder, self._encoder.device
        generators = rng.per_image_generators(_CAPTION_STREAM)
        texts = [
            self._augment(self._captions[index], generator)
            for index, generator in zip(indices.tolist(), generators, strict=True)
        ]
        tokens = encoder.tokenize(texts)
        token_mask = encoder.token_mask(texts, tokens, device)
        if self._as_ids:
            return TextBatch(None, None, *tokens_to_device(tokens, device), token_mask)
        embeddings = encoder.cast(encoder.embed(tokens), device)
        return TextBatch(*embeddings, token_mask=token_mask)

    def _augment(self, caption: str, generator: torch.Generator) -> str:
        caption = drop_caption(caption, self._dropout_rate, generator)
        return shuffle_caption(caption, self._keep_tokens, generator)
