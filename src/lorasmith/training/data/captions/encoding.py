"""Encoding or tokenizing every distinct caption once, before training."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lorasmith.core.errors import DataError
from lorasmith.data.cache.tensor_cache import Entry, TensorCache, cache_key
from lorasmith.loops.progress import progress_bar
from lorasmith.models.text.encode import Conditioning, TokenIds
from lorasmith.training.data.captions.captions import (
    CachedCaptions,
    CaptionEncoder,
    TextBatch,
    tokens_to_device,
)

if TYPE_CHECKING:
    from lorasmith.models.model import Model

_TEXTS_PER_BATCH = 32


@dataclass(frozen=True)
class UniqueCaptions:
    """The distinct captions of a list of captions."""

    texts: list[str]
    rows: list[int]
    """Position in ``texts`` of each caption in the list."""

    @classmethod
    def of(cls, captions: Sequence[str], dropout_rate: float) -> "UniqueCaptions":
        """Find the distinct captions; with dropout the empty caption is the last."""
        texts = [text for text in dict.fromkeys(captions) if text or not dropout_rate]
        if dropout_rate:
            texts.append("")
        rows = {text: row for row, text in enumerate(texts)}
        return cls(texts, [rows[caption] for caption in captions])


def tokenize_captions(
    encoder: CaptionEncoder, captions: Sequence[str], dropout_rate: float
) -> CachedCaptions:
    """Tokenize every distinct caption once, for a text encoder that trains.

    Args:
        encoder: tokenizes.
        captions: one per image.
        dropout_rate: share of the captions that the empty one replaces.
    """
    unique, device = UniqueCaptions.of(captions, dropout_rate), encoder.device
    tokens = encoder.tokenize(unique.texts)
    ids = tokens_to_device(tokens, device)
    token_mask = encoder.token_mask(unique.texts, tokens, device)
    return CachedCaptions(
        TextBatch(None, None, *ids, token_mask), unique.rows, dropout_rate, device
    )


def encode_captions(
    encoder: CaptionEncoder,
    captions: Sequence[str],
    dropout_rate: float,
    encoder_hashes: Sequence[str],
    cache: TensorCache,
) -> CachedCaptions:
    """Encode every distinct caption once.

    Args:
        encoder: tokenizes and encodes.
        captions: one per image.
        dropout_rate: share of the captions that the empty one replaces.
        encoder_hashes: the text encoders' hashes, for the cache's keys.
        cache: holds embeddings of earlier runs.

    Raises:
        DataError: an embedding is not finite; the message names the caption.
    """
    unique, cpu = UniqueCaptions.of(captions, dropout_rate), torch.device("cpu")
    tokens = encoder.tokenize(unique.texts)
    embeddings = _embed_with_cache(encoder, encoder_hashes, unique.texts, tokens, cache)
    token_mask = encoder.token_mask(unique.texts, tokens, cpu)
    table = TextBatch(*encoder.cast(embeddings, cpu), token_mask=token_mask)
    return CachedCaptions(table, unique.rows, dropout_rate, encoder.device)


def _embed_with_cache(
    encoder: CaptionEncoder,
    encoder_hashes: Sequence[str],
    texts: Sequence[str],
    tokens: TokenIds,
    cache: TensorCache,
) -> Conditioning:
    """Return the texts' embeddings. A cache entry is a chunk: short texts share the empty one."""
    layout = _entry_layout(encoder.model)
    length = layout["context"][1][0]
    chunk_ids = [ids.view(-1, length) for ids in tokens if ids is not None]
    num_chunks = len(chunk_ids[0])
    chunks_per_text = num_chunks // len(texts)
    keys = []
    for chunk in range(num_chunks):
        ids = [part[chunk].tolist() for part in chunk_ids]
        keys.append(cache_key({"what": "text", "ids": ids, "encoders": list(encoder_hashes)}))

    def compute(missing: list[int]) -> Iterator[Entry]:
        missing_ids = TokenIds(*(part[missing] for part in chunk_ids))
        missing_texts = [texts[chunk // chunks_per_text] for chunk in missing]
        return _embed_chunks(encoder, missing_ids, missing_texts)

    with progress_bar("encoding captions", num_chunks) as advance:
        entries = cache.get_or_compute(keys, [layout] * num_chunks, compute, advance)
    context = torch.stack([entry["context"] for entry in entries])
    context = context.view(len(texts), chunks_per_text * length, -1)
    if "pooled" not in layout:
        return Conditioning(context)
    first_chunks = entries[::chunks_per_text]
    return Conditioning(context, torch.stack([entry["pooled"] for entry in first_chunks]))


@torch.no_grad()
def _embed_chunks(
    encoder: CaptionEncoder, tokens: TokenIds, texts: Sequence[str]
) -> Iterator[Entry]:
    """Yield a cache entry for each chunk; ``texts`` are the captions of the chunks."""
    for start in range(0, len(texts), _TEXTS_PER_BATCH):
        batch = slice(start, start + _TEXTS_PER_BATCH)
        ids_2 = None if tokens.ids_2 is None else tokens.ids_2[batch]
        context, pooled = encoder.embed(TokenIds(tokens.ids[batch], ids_2))
        for row, text in enumerate(texts[batch]):
            entry = {"context": context[row].float().cpu()}
            if pooled is not None:
                entry["pooled"] = pooled[row].float().cpu()
            if not all(bool(tensor.isfinite().all()) for tensor in entry.values()):
                raise DataError(
                    f"the text encoder turns the caption {text!r} into values that are not finite"
                )
            yield entry


def _entry_layout(model: "Model") -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    length = int(model.main_tokenizer.model_max_length)
    width = int(model.unet.config.cross_attention_dim)
    layout: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "context": (torch.float32, (length, width))
    }
    if model.text_encoder_2 is not None:
        layout["pooled"] = (torch.float32, (int(model.text_encoder_2.config.projection_dim),))
    return layout
