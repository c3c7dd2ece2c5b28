"""The extra input of inpainting models: a mask, and the latents of the image without the mask.

As in diffusers' pipelines, the image is grey where the mask is white before it goes through the
VAE, and the mask is sampled at the upper left pixel of each latent.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby

import torch

from lorasmith.core.batch_rng import BatchRng
from lorasmith.core.device import make_generator
from lorasmith.data.cache.tensor_cache import Entry
from lorasmith.data.images.masks import blank_masked, draw_random_mask, masks_to_latent_size
from lorasmith.data.images.square_images import uint8_to_signed
from lorasmith.loops.progress import progress_bar
from lorasmith.training.data.vae_encoding import (
    ImageView,
    InpaintMaskConfig,
    TrainImages,
    VaeEncoder,
    iter_center_crops,
)

_MASK_STREAM = 0x686F6C65
"""Random stream of inpainting masks."""


def draw_inpaint_masks(
    images: TrainImages, indices: Sequence[int], masks: torch.Tensor, rng: BatchRng
) -> torch.Tensor:
    """Return the inpainting masks of one step, uint8 ``[B, 1, H, W]`` on the CPU.

    Args:
        images: the images of the dataset.
        indices: which of them.
        masks: their mask files, augmented like the images, uint8 ``[B, 1, H, W]``.
        rng: random numbers for these images of the batch.
    """
    result = []
    generators = rng.per_image_generators(_MASK_STREAM)
    for index, mask, generator in zip(indices, masks, generators, strict=True):
        if images.uses_mask_file(index):
            result.append(mask)
        else:
            height, width = mask.shape[-2:]
            result.append(_draw_mask(width, height, generator))
    return torch.stack(result)


@dataclass(frozen=True)
class MaskedLatentCache:
    """Masked latents of one bucket's images and flipped images; M in all, a few for each."""

    mask: torch.Tensor
    """1 where the model inpaints, float32 ``[M, 1, h, w]``."""
    mean: torch.Tensor
    """Of the latents of the masked image, ``[M, C, h, w]``."""
    deviation: torch.Tensor
    """Likewise."""
    spans: Sequence[range]
    """Which of the M belong to each image, then to each flipped image."""

    @property
    def nbytes(self) -> int:
        return self.mask.nbytes + self.mean.nbytes + self.deviation.nbytes

    def to(self, device: torch.device) -> "MaskedLatentCache":
        return MaskedLatentCache(
            self.mask.to(device), self.mean.to(device), self.deviation.to(device), self.spans
        )

    def draw_rows(self, positions: Sequence[int], rng: BatchRng) -> torch.Tensor:
        """Draw a mask for each image: its row of the M, int64 ``[B]`` on the CPU.

        Args:
            positions: positions in ``spans``.
            rng: random numbers for these images of the batch.
        """
        rows = []
        generators = rng.per_image_generators(_MASK_STREAM)
        for position, generator in zip(positions, generators, strict=True):
            span = self.spans[position]
            rows.append(span[int(torch.randint(len(span), (), generator=generator))])
        return torch.tensor(rows)


@dataclass(frozen=True)
class _MaskedView:
    """An image view with one of its masks."""

    view: ImageView
    mask_index: int


def encode_masked_latents(
    encoder: VaeEncoder,
    images: TrainImages,
    config: InpaintMaskConfig,
    buckets: Sequence[Sequence[ImageView]],
) -> list[MaskedLatentCache]:
    """Encode images with each of their masks.

    Args:
        encoder: the VAE.
        images: the images of the dataset.
        config: which masks are used.
        buckets: the image views of each bucket.

    Raises:
        DataError: an image cannot be decoded, or its latents are not finite; the message names it.
    """
    by_bucket = [
        [masked for view in views for masked in _list_masks(config, images, view)]
        for views in buckets
    ]
    masked_views = [masked for members in by_bucket for masked in members]
    latent_masks, keys = [], []
    for masked in masked_views:  # full masks are drawn again later: keeping them takes much memory
        mask = _load_mask(config, images, masked)
        latent_masks.append(masks_to_latent_size(mask.unsqueeze(0), encoder.scale_factor))
        digest = sha256(mask.numpy().tobytes()).hexdigest()
        keys.append(encoder.cache_key(images, masked.view, digest))
    layouts = [encoder.entry_layout(images, masked.view.image_index) for masked in masked_views]

    def compute(missing: list[int]) -> Iterator[Entry]:
        return _encode_masked_views(encoder, config, images, [masked_views[i] for i in missing])

    with progress_bar("encoding masked images", len(masked_views)) as advance:
        entries = encoder.cache.get_or_compute(keys, layouts, compute, advance)
    caches, start = [], 0
    for members in by_bucket:
        rows = slice(start, start + len(members))
        caches.append(_build_cache(members, latent_masks[rows], entries[rows]))
        start = rows.stop
    return caches


def _build_cache(
    masked_views: Sequence[_MaskedView], masks: Sequence[torch.Tensor], entries: Sequence[Entry]
) -> MaskedLatentCache:
    spans, start = [], 0
    for _, group in groupby(masked_views, key=lambda masked: masked.view):
        spans.append(range(start, start + len(list(group))))
        start = spans[-1].stop
    mean, deviation = (
        torch.stack([entry[part] for entry in entries]) for part in ("mean", "deviation")
    )
    return MaskedLatentCache(torch.cat(list(masks)), mean, deviation, spans)


def _list_masks(
    config: InpaintMaskConfig, images: TrainImages, view: ImageView
) -> list[_MaskedView]:
    count = 1 if images.uses_mask_file(view.image_index) else max(1, config.num_random_masks)
    return [_MaskedView(view, mask_index) for mask_index in range(count)]


def _load_mask(config: InpaintMaskConfig, images: TrainImages, masked: _MaskedView) -> torch.Tensor:
    """Return a mask of an image's centre crop, uint8 ``[1, H, W]``."""
    index, is_flipped = masked.view
    if images.uses_mask_file(index):
        mask = images.bucketed.load_center_mask(index)
        if mask is not None:
            return (mask.flip(-1) if is_flipped else mask).contiguous()
    bucket = images.bucketed.assignments[index].bucket
    generator = make_generator(config.seed, _MASK_STREAM, index, int(is_flipped), masked.mask_index)
    return _draw_mask(bucket.width, bucket.height, generator)


def _draw_mask(width: int, height: int, generator: torch.Generator) -> torch.Tensor:
    return torch.from_numpy(draw_random_mask(width, height, generator).copy()).unsqueeze(0)


def _encode_masked_views(
    encoder: VaeEncoder,
    config: InpaintMaskConfig,
    images: TrainImages,
    masked_views: Sequence[_MaskedView],
) -> Iterator[Entry]:
    """Yield the latents of masked images, decoding an image once for all of its masks."""
    groups = [
        (view, list(group)) for view, group in groupby(masked_views, key=lambda masked: masked.view)
    ]
    crops = iter_center_crops(images, [view for view, _ in groups])
    for (view, group), crop in zip(groups, crops, strict=True):
        pixels = uint8_to_signed(crop)
        for masked in group:
            blanked = blank_masked(pixels, _load_mask(config, images, masked))
            yield encoder.encode(images, view.image_index, blanked)
