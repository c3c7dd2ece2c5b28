"""What inpainting models read beside the noisy latents: a mask, and the latents of the rest.

As in diffusers' pipelines: the picture is grey where the mask is white, goes through the VAE like
that, and the mask itself is taken at the upper left pixel of each latent.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby
from typing import TYPE_CHECKING

import torch

from lorasmith.core.batch_rng import BatchRng
from lorasmith.core.device import make_generator
from lorasmith.data.cache.tensor_cache import Entry, TensorCache
from lorasmith.data.images.masks import blank_masked, draw_random_mask, masks_to_latent_size
from lorasmith.data.images.square_images import uint8_to_signed
from lorasmith.loops.progress import progress_bar
from lorasmith.training.data.vae_encoding import (
    ImageView,
    InpaintMaskConfig,
    TrainImages,
    encode_image,
    iter_center_crops,
    latent_cache_key,
    latent_layout,
)

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

_HOLE = 0x686F6C65
"""The stream of what is decided on the host about a hole."""


def draw_inpaint_masks(
    choice: InpaintMaskConfig, pictures: TrainImages, numbers: Sequence[int], masks: torch.Tensor,
    draws: BatchRng,
) -> torch.Tensor:  # fmt: skip
    """Return what is taken out of pictures in one step, uint8 ``[B, 1, H, W]`` on the CPU.

    Args:
        choice: which masks are used.
        pictures: the set.
        numbers: which of its pictures these are.
        masks: their own ones as the pictures are shown, uint8 ``[B, 1, H, W]``.
        draws: this part's share of the batch's random numbers.
    """
    holes = []
    for number, own, seeded in zip(numbers, masks, draws.per_image_generators(_HOLE), strict=True):
        if not uses_own_mask(choice, pictures, number):
            height, width = own.shape[-2:]
            own = torch.from_numpy(draw_random_mask(width, height, seeded).copy()).unsqueeze(0)
        holes.append(own)
    return torch.stack(holes)


def uses_own_mask(choice: InpaintMaskConfig, pictures: TrainImages, number: int) -> bool:
    """Tell whether a picture's own mask says what is taken out of it."""
    return choice.given and pictures.placed.rows[number].mask_path is not None


@dataclass(frozen=True)
class MaskedLatentCache:
    """The holes of one bucket's pictures and mirror images; M in all, a few for each."""

    mask: torch.Tensor
    """1 where it is painted anew, float32 ``[M, 1, h, w]``."""
    mean: torch.Tensor
    """Of the latents of the rest, ``[M, C, h, w]``."""
    deviation: torch.Tensor
    """Likewise."""
    spans: Sequence[range]
    """Which of them belong to each picture, and to each mirror image behind these."""

    @property
    def nbytes(self) -> int:
        """Size of its tensors."""
        return self.mask.nbytes + self.mean.nbytes + self.deviation.nbytes

    def to(self, device: torch.device) -> "MaskedLatentCache":
        """Return it on a device."""
        return MaskedLatentCache(
            self.mask.to(device), self.mean.to(device), self.deviation.to(device), self.spans
        )

    def chosen(self, pictures: Sequence[int], draws: BatchRng) -> torch.Tensor:
        """Return one row for each picture at random, int64 ``[B]`` on the CPU."""
        rows = []
        for picture, seeded in zip(pictures, draws.per_image_generators(_HOLE), strict=True):
            span = self.spans[picture]
            rows.append(span[int(torch.randint(len(span), (), generator=seeded))])
        return torch.tensor(rows)


@dataclass(frozen=True)
class _Hole:
    """One of a picture's holes."""

    side: ImageView
    turn: int
    """Which of the picture's."""


def encode_masked_latents(
    vae: "AutoencoderKL",
    identity: str,
    downscale: int,
    pictures: TrainImages,
    choice: InpaintMaskConfig,
    groups: Sequence[Sequence[ImageView]],
    cache: TensorCache,
) -> list[MaskedLatentCache]:
    """Encode the pictures of each group without each of their holes.

    Args:
        vae: on the device where it shall run.
        identity: the VAE's hash.
        downscale: pixels per latent.
        pictures: the set.
        choice: which masks are used.
        groups: pictures of one bucket each.
        cache: where latents are looked up and kept.

    Raises:
        DataError: a picture cannot be decoded, or its latents are not finite; it is named.
    """
    holes = [one for sides in groups for side in sides for one in _holes(choice, pictures, side)]
    masks, keys = [], []
    for one in holes:  # masks are drawn again where they are needed: all of them are large
        mask = _mask(choice, pictures, one)
        masks.append(masks_to_latent_size(mask.unsqueeze(0), downscale))
        digest = sha256(mask.numpy().tobytes()).hexdigest()
        keys.append(latent_cache_key(pictures, one.side, vae, identity, digest))
    layouts = [latent_layout(pictures, one.side[0], vae, downscale) for one in holes]

    def compute(places: list[int]) -> Iterator[Entry]:
        return _encoded(vae, choice, pictures, [holes[place] for place in places])

    with progress_bar("encoding pictures without what is masked", len(holes)) as advance:
        entries = cache.get_or_compute(keys, layouts, compute, advance)
    tables, first = [], 0
    for sides in groups:
        spans, start = [], 0
        for side in sides:
            spans.append(range(start, start + len(_holes(choice, pictures, side))))
            start = spans[-1].stop
        own = slice(first, first + start)
        mean, deviation = (torch.stack([e[part] for e in entries[own]]) for part in _PARTS)
        tables.append(MaskedLatentCache(torch.cat(masks[own]), mean, deviation, spans))
        first += start
    return tables


_PARTS = ("mean", "deviation")


def _holes(choice: InpaintMaskConfig, pictures: TrainImages, side: ImageView) -> list[_Hole]:
    count = 1 if uses_own_mask(choice, pictures, side[0]) else max(1, choice.count)
    return [_Hole(side, turn) for turn in range(count)]


def _mask(choice: InpaintMaskConfig, pictures: TrainImages, hole: _Hole) -> torch.Tensor:
    """Return a hole of a picture's centre crop, uint8 ``[1, H, W]``."""
    number, mirrored = hole.side
    if uses_own_mask(choice, pictures, number):
        mask = pictures.placed.load_center_mask(number)
        if mask is not None:
            return (mask.flip(-1) if mirrored else mask).contiguous()
    bucket = pictures.placed.assignments[number].bucket
    seeded = make_generator(choice.seed, _HOLE, number, int(mirrored), hole.turn)
    return torch.from_numpy(draw_random_mask(bucket.width, bucket.height, seeded).copy()).unsqueeze(
        0
    )


def _encoded(
    vae: "AutoencoderKL", choice: InpaintMaskConfig, pictures: TrainImages, holes: Sequence[_Hole]
) -> Iterator[Entry]:
    """Yield the latents of pictures without holes; a picture is decoded once for all of its."""
    grouped = [(side, list(own)) for side, own in groupby(holes, key=lambda one: one.side)]
    shown = iter_center_crops(pictures, [side for side, _ in grouped])
    for (side, own), pixels in zip(grouped, shown, strict=True):
        signed = uint8_to_signed(pixels)
        for one in own:
            rest = blank_masked(signed, _mask(choice, pictures, one))
            yield encode_image(vae, pictures, side[0], rest)
