"""Latents of a batch: encoded once and gathered, or encoded in every step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch

from lorasmith.core.batch_rng import BatchRng
from lorasmith.core.device import gather_to_device, to_device_async
from lorasmith.data.cache.tensor_cache import Entry
from lorasmith.data.images.augment import Augmentation, apply_color_jitter, draw_augmentation
from lorasmith.data.images.buckets import BucketAssignment
from lorasmith.data.images.masks import blank_masked, masks_to_latent_size
from lorasmith.data.images.square_images import uint8_to_signed
from lorasmith.loops.progress import progress_bar
from lorasmith.models.latents import encode_images
from lorasmith.training.data.inpainting import (
    MaskedLatentCache,
    draw_inpaint_masks,
    encode_masked_latents,
)
from lorasmith.training.data.vae_encoding import (
    ImageAugmentation,
    ImageView,
    TrainImages,
    VaeEncoder,
    compute_time_ids,
    downscale_masks,
    iter_center_crops,
)

_MAX_RESIDENT_BYTES = 4 * 2**30
"""Latents up to this size stay on the training device; larger ones move to it batch by batch."""
_AUGMENTATION_STREAM, _FLIP_STREAM = 0x76696577, 0x6D6972726F72
"""Random streams of what the host decides about an image."""


class LatentBatch(NamedTuple):
    """The image fields of a ``Batch``."""

    latents: torch.Tensor
    loss_mask: torch.Tensor | None
    time_ids: torch.Tensor | None
    inpaint_cond: torch.Tensor | None = None


class LatentSource(Protocol):
    """Where the latents of a batch come from."""

    def gather(self, indices: torch.Tensor, rng: BatchRng) -> LatentBatch:
        """Return the latents of images of one bucket.

        Args:
            indices: which images, int64 ``[B]`` on the CPU.
            rng: random numbers for these images of the batch.
        """


# --- encoded once ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _BucketLatents:
    """The n images of one bucket, followed by their n flipped ones, if there are any."""

    mean: torch.Tensor
    deviation: torch.Tensor
    loss_mask: torch.Tensor | None
    time_ids: torch.Tensor | None
    image_count: int
    masked: MaskedLatentCache | None = None

    @property
    def nbytes(self) -> int:
        masked = 0 if self.masked is None else self.masked.nbytes
        return self.mean.nbytes + self.deviation.nbytes + masked

    def to(self, device: torch.device) -> "_BucketLatents":
        return _BucketLatents(
            self.mean.to(device),
            self.deviation.to(device),
            None if self.loss_mask is None else self.loss_mask.to(device),
            None if self.time_ids is None else self.time_ids.to(device),
            self.image_count,
            None if self.masked is None else self.masked.to(device),
        )


class CachedLatents:
    """Latents that were encoded before training; a step only gathers and samples them."""

    def __init__(
        self,
        buckets: dict[int, _BucketLatents],
        bucket_indices: Sequence[int],
        flip: bool,
        device: torch.device,
    ) -> None:
        self._bucket_indices = bucket_indices
        self._flip = flip
        self._device = device
        num_bytes = sum(bucket.nbytes for bucket in buckets.values())
        fits = num_bytes <= _MAX_RESIDENT_BYTES
        self._table_device = device if fits else torch.device("cpu")
        self._buckets = {key: bucket.to(self._table_device) for key, bucket in buckets.items()}
        counts = dict.fromkeys(buckets, 0)
        self._row_in_bucket = []
        for bucket_index in bucket_indices:
            self._row_in_bucket.append(counts[bucket_index])
            counts[bucket_index] += 1

    def gather(self, indices: torch.Tensor, rng: BatchRng) -> LatentBatch:
        """Return freshly sampled latents; see ``LatentSource``."""
        index_list = indices.tolist()
        bucket = self._buckets[self._bucket_indices[index_list[0]]]
        noise = to_device_async(rng.normal(*bucket.mean.shape[1:]), self._device)
        row_list = [self._row_in_bucket[index] for index in index_list]
        if self._flip:  # decided on the host: masks below are chosen by row
            flips = [
                bool(torch.rand((), generator=generator) < 0.5)
                for generator in rng.per_image_generators(_FLIP_STREAM)
            ]
            row_list = [
                row + flip * bucket.image_count for row, flip in zip(row_list, flips, strict=True)
            ]
        rows = to_device_async(torch.tensor(row_list), self._table_device)
        return LatentBatch(
            self._sample(bucket.mean, bucket.deviation, rows, noise),
            None if bucket.loss_mask is None else self._gather_rows(bucket.loss_mask, rows),
            None if bucket.time_ids is None else self._gather_rows(bucket.time_ids, rows),
            None if bucket.masked is None else self._inpaint_cond(bucket.masked, row_list, rng),
        )

    def _inpaint_cond(
        self, masked: MaskedLatentCache, positions: Sequence[int], rng: BatchRng
    ) -> torch.Tensor:
        rows = to_device_async(masked.draw_rows(positions, rng), self._table_device)
        noise = to_device_async(rng.normal(*masked.mean.shape[1:]), self._device)
        latents = self._sample(masked.mean, masked.deviation, rows, noise)
        return torch.cat([self._gather_rows(masked.mask, rows), latents], dim=1)

    def _sample(
        self, mean: torch.Tensor, deviation: torch.Tensor, rows: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        return self._gather_rows(mean, rows) + self._gather_rows(deviation, rows) * noise

    def _gather_rows(self, table: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return gather_to_device(table, rows, self._device)


def encode_latents(
    encoder: VaeEncoder, images: TrainImages, flip: bool, device: torch.device
) -> CachedLatents:
    """Encode every image's centre crop, and its mirror image with ``flip``.

    For an inpainting model, each of them also with each of its masks.

    Args:
        encoder: the VAE, and the cache of earlier runs.
        images: the images.
        flip: encode mirror images too.
        device: device of the batches.

    Raises:
        DataError: an image cannot be decoded, or its latents are not finite; the message names it.
    """
    views = [
        ImageView(index, is_flipped)
        for is_flipped in ((False, True) if flip else (False,))
        for index in range(len(images.bucket_indices))
    ]
    keys = [encoder.cache_key(images, view) for view in views]
    layouts = [encoder.entry_layout(images, view.image_index) for view in views]

    def compute(missing: list[int]) -> Iterator[Entry]:
        return _encode_views(encoder, images, [views[i] for i in missing])

    with progress_bar("encoding images", len(views)) as advance:
        entries = encoder.cache.get_or_compute(keys, layouts, compute, advance)
    entry_of = dict(zip(views, entries, strict=True))
    bucket_keys = sorted(set(images.bucket_indices))
    views_by_bucket = [
        [view for view in views if images.bucket_indices[view.image_index] == key]
        for key in bucket_keys
    ]
    buckets = [
        _build_bucket(images, members, [entry_of[view] for view in members], encoder.scale_factor)
        for members in views_by_bucket
    ]
    if images.inpaint_masks is not None:
        masked = encode_masked_latents(encoder, images, images.inpaint_masks, views_by_bucket)
        buckets = [
            replace(bucket, masked=cache) for bucket, cache in zip(buckets, masked, strict=True)
        ]
    by_key = dict(zip(bucket_keys, buckets, strict=True))
    return CachedLatents(by_key, images.bucket_indices, flip, device)


def _encode_views(
    encoder: VaeEncoder, images: TrainImages, views: Sequence[ImageView]
) -> Iterator[Entry]:
    for view, pixels in zip(views, iter_center_crops(images, views), strict=True):
        yield encoder.encode(images, view.image_index, uint8_to_signed(pixels))


def _build_bucket(
    images: TrainImages, views: Sequence[ImageView], entries: Sequence[Entry], scale_factor: int
) -> _BucketLatents:
    loss_mask = time_ids = None
    if images.has_loss_masks:
        loss_mask = torch.cat([_load_loss_mask(images, view, scale_factor) for view in views])
    if images.has_time_ids:
        time_ids = torch.tensor([_center_time_ids(images, view) for view in views])
    return _BucketLatents(
        torch.stack([entry["mean"] for entry in entries]),
        torch.stack([entry["deviation"] for entry in entries]),
        loss_mask,
        time_ids,
        len({view.image_index for view in views}),
    )


def _center_time_ids(images: TrainImages, view: ImageView) -> list[float]:
    assignment = images.bucketed.assignments[view.image_index]
    center_crop = Augmentation(assignment.crop_box[:2], view.is_flipped)
    return compute_time_ids(assignment, center_crop, images.aesthetic_score)


def _load_loss_mask(images: TrainImages, view: ImageView, scale_factor: int) -> torch.Tensor:
    mask = images.bucketed.load_center_mask(view.image_index)
    if mask is None:
        bucket = images.bucketed.assignments[view.image_index].bucket
        mask = torch.full((1, bucket.height, bucket.width), 255, dtype=torch.uint8)
    return downscale_masks((mask.flip(-1) if view.is_flipped else mask).unsqueeze(0), scale_factor)


# --- encoded in every step ------------------------------------------------------------------


class OnlineLatents:
    """Images whose crops, colours or masks change in every step, where the VAE encodes them."""

    def __init__(
        self,
        encoder: VaeEncoder,
        images: TrainImages,
        augmentation: ImageAugmentation,
        device: torch.device,
    ) -> None:
        self._vae = encoder.vae
        self._scale_factor = encoder.scale_factor
        self._images = images
        self._augmentation = augmentation
        self._device = device

    def gather(self, indices: torch.Tensor, rng: BatchRng) -> LatentBatch:
        """Return latents of newly drawn crops; see ``LatentSource``."""
        images, index_list = self._images, indices.tolist()
        assignments = [images.bucketed.assignments[index] for index in index_list]
        augmentations = self._draw_augmentations(assignments, rng)
        pixels, masks = self._load_augmented(index_list, augmentations)
        latents = self._sample_latents(pixels, rng)
        loss_mask = time_ids = inpaint_cond = None
        if images.has_loss_masks:
            loss_mask = downscale_masks(to_device_async(masks, self._device), self._scale_factor)
        if images.has_time_ids:
            pairs = zip(assignments, augmentations, strict=True)
            values = [compute_time_ids(*pair, images.aesthetic_score) for pair in pairs]
            time_ids = to_device_async(torch.tensor(values), self._device)
        if images.inpaint_masks is not None:
            inpaint_masks = draw_inpaint_masks(images, index_list, masks, rng)
            inpaint_cond = self._inpaint_cond(
                pixels, to_device_async(inpaint_masks, self._device), rng
            )
        return LatentBatch(latents, loss_mask, time_ids, inpaint_cond)

    def _draw_augmentations(
        self, assignments: Sequence[BucketAssignment], rng: BatchRng
    ) -> list[Augmentation]:
        config = self._augmentation
        generators = rng.per_image_generators(_AUGMENTATION_STREAM)
        return [
            draw_augmentation(
                assignment, config.random_crop, config.flip, config.color_jitter, generator
            )
            for assignment, generator in zip(assignments, generators, strict=True)
        ]

    def _load_augmented(
        self, indices: Sequence[int], augmentations: Sequence[Augmentation]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images in -1..1 on the training device, and their masks on the CPU."""
        corners = [augmentation.crop_corner for augmentation in augmentations]
        crops, masks = self._images.bucketed.load_crops(indices, corners)
        flips = [augmentation.is_flipped for augmentation in augmentations]
        is_flipped = torch.tensor(flips).view(-1, 1, 1, 1)
        crops = torch.where(is_flipped, crops.flip(-1), crops)
        masks = torch.where(is_flipped, masks.flip(-1), masks)
        pixels = to_device_async(crops, self._device).float() / 255.0
        if self._augmentation.color_jitter:
            factors = [augmentation.color_factors for augmentation in augmentations]
            pixels = apply_color_jitter(
                pixels, to_device_async(torch.tensor(factors), self._device)
            )
        return pixels * 2.0 - 1.0, masks

    def _inpaint_cond(
        self, pixels: torch.Tensor, masks: torch.Tensor, rng: BatchRng
    ) -> torch.Tensor:
        latents = self._sample_latents(blank_masked(pixels, masks), rng)
        return torch.cat([masks_to_latent_size(masks, self._scale_factor), latents], dim=1)

    def _sample_latents(self, pixels: torch.Tensor, rng: BatchRng) -> torch.Tensor:
        mean, deviation = encode_images(self._vae, pixels)
        return mean + deviation * to_device_async(rng.normal(*mean.shape[1:]), self._device)
