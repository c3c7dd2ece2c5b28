"""The training pictures as the network needs them: latents and text embeddings, computed once."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lorasmith.config.run import TrainData
from lorasmith.core.errors import ConfigError, DataError, LorasmithWarning
from lorasmith.data.pictures import load_squares, to_signed
from lorasmith.data.rows import Row, read_rows
from lorasmith.data.tags import contains_tag
from lorasmith.loops.progress import Advance, progress_bar
from lorasmith.models.text import encode, tokenize

if TYPE_CHECKING:
    from lorasmith.models.load import Model

_PICTURES_AT_ONCE = 8
_TEXTS_AT_ONCE = 32


@dataclass(frozen=True)
class Dataset:
    """N pictures and their M distinct captions, encoded."""

    rows: Sequence[Row]
    """The pictures, in the order of the numbers below."""
    mean: torch.Tensor
    """Mean of each latent's distribution, scaled for the U-Net, float32 ``[N, C, h, w]``."""
    deviation: torch.Tensor
    """Its standard deviation, likewise."""
    contexts: torch.Tensor
    """Embeddings of the distinct captions, ``[M, 77, width]``, in the U-Net's dtype."""
    caption: torch.Tensor
    """Which of them each picture has, int64 ``[N]``."""

    def keys_of(self, numbers: torch.Tensor) -> list[str]:
        """Return the names of some pictures, each once."""
        return list(dict.fromkeys(self.rows[int(number)].key for number in numbers))


def tagged_rows(data: TrainData) -> list[Row]:
    """Read the pictures and check that their captions name the tag.

    Warns when some do not: they are trained on all the same, and pull the model without it.

    Raises:
        DataError: nothing to read, or no caption has the tag.
    """
    rows = read_rows(data.path)
    without = [row for row in rows if not contains_tag(row.caption, data.tag)]
    if len(without) == len(rows):
        raise DataError(
            f"{data.path}: none of its {len(rows)} captions contains the tag {data.tag!r}; write "
            f"it into them, for instance '{rows[0].caption[:60]}, {data.tag}'"
        )
    if without:
        warnings.warn(
            f"{data.path}: {len(without)} of {len(rows)} captions do not contain the tag "
            f"{data.tag!r}, first {without[0].key}; what they show will appear without the tag too",
            LorasmithWarning,
            stacklevel=2,
        )
    return rows


def picture_side(model: "Model", wanted: int | None) -> int:
    """Return the side of the training pictures in pixels.

    Raises:
        ConfigError: the wanted side is not a multiple of what the model can do.
    """
    # Each level of the U-Net but the last halves the latents once more.
    multiple = model.downscale * 2 ** (len(model.unet.config.block_out_channels) - 1)
    side = wanted or model.default_size
    if side % multiple:
        near = max(multiple, (side + multiple // 2) // multiple * multiple)
        raise ConfigError(f"data.resolution: {side} is not a multiple of {multiple}; use {near}")
    return side


def encode_dataset(model: "Model", rows: Sequence[Row], side: int) -> Dataset:
    """Encode the pictures and captions with the model's float32 VAE and text encoder.

    Raises:
        DataError: a picture cannot be decoded, or its latent is not finite; it is named.
    """
    with progress_bar("encoding pictures", len(rows)) as advance:
        mean, deviation = _moments(model, rows, side, advance)
    captions = list(dict.fromkeys(row.caption for row in rows))
    with progress_bar("encoding captions", len(captions)) as advance:
        contexts = _contexts(model, captions, advance)
    numbers = {caption: number for number, caption in enumerate(captions)}
    which = torch.tensor([numbers[row.caption] for row in rows], device=mean.device)
    return Dataset(rows, mean, deviation, contexts, which)


@torch.no_grad()
def _moments(
    model: "Model", rows: Sequence[Row], side: int, advance: Advance
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and deviation of the pictures' scaled latents, each ``[N, C, h, w]``."""
    vae = model.vae
    scale = float(vae.config.scaling_factor)
    means, deviations = [], []
    for start in range(0, len(rows), _PICTURES_AT_ONCE):
        part = rows[start : start + _PICTURES_AT_ONCE]
        pictures = to_signed(load_squares(part, side)).to(vae.device, vae.dtype)
        posterior = vae.encode(pictures).latent_dist
        finite = (posterior.mean + posterior.std).isfinite().flatten(1).all(dim=1)
        if not bool(finite.all()):
            bad = part[int(finite.int().argmin())]
            raise DataError(
                f"{bad.key}: the VAE turns this picture into values that are not finite"
            )
        means.append(posterior.mean.float() * scale)
        deviations.append(posterior.std.float() * scale)
        advance(len(part))
    return torch.cat(means), torch.cat(deviations)


@torch.no_grad()
def _contexts(model: "Model", captions: Sequence[str], advance: Advance) -> torch.Tensor:
    encoder = model.text_encoder
    ids = tokenize(model.tokenizer, captions).to(encoder.device)
    parts = []
    for some in torch.split(ids, _TEXTS_AT_ONCE):
        parts.append(encode(encoder, some))
        advance(len(some))
    return torch.cat(parts)
