"""Captions of the training pictures as the network needs them: embeddings, or token ids."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

from lorasmith.config.train_config import DataConfig
from lorasmith.core.batch_rng import BatchRng
from lorasmith.core.device import gather_to_device, to_device_async
from lorasmith.core.errors import DataError
from lorasmith.data.cache.tensor_cache import Entry, TensorCache, cache_key
from lorasmith.data.caption_augmentation import drop_caption, shuffle_caption
from lorasmith.loops.progress import progress_bar
from lorasmith.models.text.encode import Conditioning, TokenIds, encode_tokens
from lorasmith.models.text.long_prompts import tokenize_in_chunks

if TYPE_CHECKING:
    from lorasmith.models.load import Model

_TEXTS_AT_ONCE = 32
_RESIDENT_BYTES = 2 * 2**30
"""Embeddings up to this size stay on the training device."""
_CAPTION = 0x63617074
"""The stream of what is decided on the host about a caption."""


class TextBatch(NamedTuple):
    """The captions' share of a batch, as in ``Batch``; what is not wanted is None."""

    context: torch.Tensor | None = None
    pooled: torch.Tensor | None = None
    input_ids: torch.Tensor | None = None
    input_ids_2: torch.Tensor | None = None
    token_mask: torch.Tensor | None = None


TokenMaskFn = Callable[[torch.Tensor], torch.Tensor]
"""Marks tokens: int64 ``[B, L]`` to bool ``[B, M, L]``, as in ``Batch.places``."""


class TextSource(Protocol):
    """Where the texts of a batch come from."""

    def gather(self, numbers: torch.Tensor, draws: BatchRng) -> TextBatch:
        """Return the texts of some pictures.

        Args:
            numbers: which pictures, int64 ``[B]`` on the CPU.
            draws: this part's share of the batch's random numbers.
        """


class CachedCaptions:
    """Distinct captions that were encoded or cut into tokens before the training."""

    def __init__(
        self, table: TextBatch, which: Sequence[int], dropout: float, device: torch.device
    ) -> None:
        """Take what ``fixed_words`` made.

        Args:
            table: rows are distinct captions; with dropout the last one is the empty caption.
            which: each picture's row.
            dropout: share of the captions that are replaced by the empty one.
            device: where batches are wanted. The table stays there unless it is very large.
        """
        total = sum(part.nbytes for part in table if part is not None)
        home = device if total <= _RESIDENT_BYTES else torch.device("cpu")
        self._table = TextBatch(*(None if part is None else part.to(home) for part in table))
        self._which = torch.tensor(which, device=home)
        self._dropout = dropout
        self._device = device
        # Of the table on the CPU it is not asked which captions the device drops.
        self._empty = TextBatch(*(None if part is None else part[-1:].to(device) for part in table))

    def gather(self, numbers: torch.Tensor, draws: BatchRng) -> TextBatch:
        """Return the embeddings or tokens of some pictures; see ``Words``."""
        which = self._which[to_device_async(numbers, self._which.device)]
        found = [
            None if part is None else gather_to_device(part, which, self._device)
            for part in self._table
        ]
        if self._dropout:
            drop = to_device_async(draws.uniform(), self._device) < self._dropout
            found = [
                None if part is None or empty is None else _replaced(part, empty, drop)
                for part, empty in zip(found, self._empty, strict=True)
            ]
        return TextBatch(*found)


def _replaced(rows: torch.Tensor, by: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Return rows ``[B, ...]``, some of them replaced by another one, ``[1, ...]``."""
    return torch.where(where.view(-1, *[1] * (rows.ndim - 1)), by, rows)


class OnlineCaptions:
    """Captions that are shuffled anew every time, and go through the text encoder in the step."""

    def __init__(
        self,
        model: "Model",
        captions: Sequence[str],
        data: DataConfig,
        dtype: torch.dtype,
        device: torch.device,
        as_ids: bool,
        marker: TokenMaskFn | None = None,
        chunks: int = 1,
    ) -> None:
        self._model = model
        self._captions = captions
        self._data = data
        self._dtype = dtype
        self._device = device
        self._as_ids = as_ids
        self._marker = marker
        self._chunks = chunks

    def gather(self, numbers: torch.Tensor, draws: BatchRng) -> TextBatch:
        """Return the embeddings or tokens of newly shuffled captions; see ``Words``."""
        texts = [
            self._changed(self._captions[number], own)
            for number, own in zip(
                numbers.tolist(), draws.per_image_generators(_CAPTION), strict=True
            )
        ]
        tokens = tokenize_in_chunks(self._model, texts, self._chunks)
        places = _places(tokens, self._marker, self._device)
        if self._as_ids:
            return TextBatch(None, None, *_on(tokens, self._device), places)
        found = _cast(_embed(self._model, tokens), self._dtype, self._device)
        return TextBatch(*found, token_mask=places)

    def _changed(self, caption: str, draws: torch.Generator) -> str:
        kept = drop_caption(caption, self._data.caption_dropout_rate, draws)
        return shuffle_caption(kept, self._data.keep_tokens, draws)


@dataclass(frozen=True)
class UniqueCaptions:
    """The distinct captions of some pictures."""

    texts: list[str]
    which: list[int]
    """Which of them each picture has."""

    @classmethod
    def of(cls, captions: Sequence[str], dropout: float) -> "UniqueCaptions":
        """Find the distinct ones; with dropout the empty caption is the last."""
        texts = [text for text in dict.fromkeys(captions) if text or not dropout]
        if dropout:
            texts.append("")
        places = {text: place for place, text in enumerate(texts)}
        return cls(texts, [places[caption] for caption in captions])


def tokenize_captions(
    model: "Model",
    captions: Sequence[str],
    dropout: float,
    device: torch.device,
    marker: TokenMaskFn | None = None,
    chunks: int = 1,
) -> CachedCaptions:
    """Cut every distinct caption into tokens once, for a text encoder that is trained.

    Args:
        model: its tokenizers are used.
        captions: one per picture.
        dropout: share of the captions that are replaced by the empty one.
        device: where batches are wanted.
        marker: marks the tokens that may be written to; None for all.
        chunks: how many each caption has; see `tokenize_in_chunks`.
    """
    distinct = UniqueCaptions.of(captions, dropout)
    tokens = tokenize_in_chunks(model, distinct.texts, chunks)
    table = TextBatch(None, None, *_on(tokens, device), _places(tokens, marker, device))
    return CachedCaptions(table, distinct.which, dropout, device)


def encode_captions(
    model: "Model",
    identities: Sequence[str],
    captions: Sequence[str],
    dropout: float,
    dtype: torch.dtype,
    cache: TensorCache,
    device: torch.device,
    marker: TokenMaskFn | None = None,
    chunks: int = 1,
) -> CachedCaptions:
    """Encode every distinct caption once.

    Args:
        model: its text encoders on the device where they shall run.
        identities: the text encoders' hashes.
        captions: one per picture.
        dropout: share of the captions that are replaced by the empty one.
        dtype: the U-Net's number format.
        cache: where embeddings are looked up and kept.
        device: where batches are wanted.
        marker: marks the tokens that may be written to; None for all.
        chunks: how many each caption has; see `tokenize_in_chunks`.

    Raises:
        DataError: an embedding is not finite; the caption is named.
    """
    distinct = UniqueCaptions.of(captions, dropout)
    tokens = tokenize_in_chunks(model, distinct.texts, chunks)
    found = _cached(model, identities, distinct.texts, tokens, cache)
    cast = _cast(found, dtype, torch.device("cpu"))
    table = TextBatch(*cast, token_mask=_places(tokens, marker, torch.device("cpu")))
    return CachedCaptions(table, distinct.which, dropout, device)


def _cached(
    model: "Model",
    identities: Sequence[str],
    texts: Sequence[str],
    tokens: TokenIds,
    cache: TensorCache,
) -> Conditioning:
    """Return the texts' conditioning. An entry is a chunk: all short texts share the empty one."""
    layout = _layout(model)
    width = layout["context"][1][0]
    rows = [part.view(-1, width) for part in tokens if part is not None]
    chunks = len(rows[0]) // len(texts)
    keys = []
    for place in range(len(rows[0])):
        ids = [part[place].tolist() for part in rows]
        keys.append(cache_key({"what": "text", "ids": ids, "encoders": list(identities)}))

    def compute(places: list[int]) -> Iterator[Entry]:
        missing = TokenIds(*(part[places] for part in rows))
        return _encoded(model, missing, [texts[place // chunks] for place in places])

    with progress_bar("encoding captions", len(keys)) as advance:
        entries = cache.get_or_compute(keys, [layout] * len(keys), compute, advance)
    context = torch.stack([one["context"] for one in entries])
    context = context.view(len(texts), chunks * width, -1)
    if "pooled" not in layout:
        return Conditioning(context)
    return Conditioning(context, torch.stack([one["pooled"] for one in entries[::chunks]]))


@torch.no_grad()
def _encoded(model: "Model", tokens: TokenIds, texts: Sequence[str]) -> Iterator[Entry]:
    """Yield the entries of chunks; the texts are those that they are of."""
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        part = slice(start, start + _TEXTS_AT_ONCE)
        second = None if tokens.ids_2 is None else tokens.ids_2[part]
        context, pooled = _embed(model, TokenIds(tokens.ids[part], second))
        for place, text in enumerate(texts[part]):
            entry = {"context": context[place].float().cpu()}
            if pooled is not None:
                entry["pooled"] = pooled[place].float().cpu()
            if not all(bool(part.isfinite().all()) for part in entry.values()):
                raise DataError(
                    f"the text encoder turns the caption {text!r} into values that are not finite"
                )
            yield entry


def _layout(model: "Model") -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    length, width = (
        int(model.main_tokenizer.model_max_length),
        int(model.unet.config.cross_attention_dim),
    )
    layout: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "context": (torch.float32, (length, width))
    }
    if model.text_encoder_2 is not None:
        layout["pooled"] = (torch.float32, (int(model.text_encoder_2.config.projection_dim),))
    return layout


@torch.no_grad()
def _embed(model: "Model", tokens: TokenIds) -> Conditioning:
    """Return the texts' conditioning on the text encoders' device, in their number format."""
    return encode_tokens(model, _on(tokens, model.text_encoders[0].device))


def _on(tokens: TokenIds, device: torch.device) -> TokenIds:
    second = None if tokens.ids_2 is None else to_device_async(tokens.ids_2, device)
    return TokenIds(to_device_async(tokens.ids, device), second)


def _places(
    tokens: TokenIds, marker: TokenMaskFn | None, device: torch.device
) -> torch.Tensor | None:
    """Return which tokens may be written to; none is asked for where no gate chooses tokens.

    SDXL's tokenizers differ in their padding only, which stands where the end does.
    """
    return None if marker is None else to_device_async(marker(tokens.ids), device)


def _cast(found: Conditioning, dtype: torch.dtype, device: torch.device) -> Conditioning:
    context, pooled = found
    return Conditioning(
        context.to(device, dtype), None if pooled is None else pooled.to(device, dtype)
    )
