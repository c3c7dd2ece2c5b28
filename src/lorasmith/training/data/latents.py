"""Latents of the training pictures: encoded once and gathered, or encoded in every step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

from lorasmith.config.train_config import DataConfig
from lorasmith.core.batch_rng import BatchRng
from lorasmith.core.device import gather_to_device, to_device_async
from lorasmith.data.cache.tensor_cache import Entry, TensorCache
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
    ImageView,
    TrainImages,
    compute_time_ids,
    downscale_masks,
    encode_image,
    iter_center_crops,
    latent_cache_key,
    latent_layout,
)

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

_RESIDENT_BYTES = 4 * 2**30
"""Latents up to this size stay on the training device; more are moved to it batch by batch."""
_VIEW, _MIRROR = 0x76696577, 0x6D6972726F72
"""The streams of what is decided on the host about a picture."""


class LatentBatch(NamedTuple):
    """The pictures' share of a batch, as in ``Batch``."""

    latents: torch.Tensor
    loss_mask: torch.Tensor | None
    time_ids: torch.Tensor | None
    inpaint_cond: torch.Tensor | None = None


class LatentSource(Protocol):
    """Where the latents of a batch come from."""

    def gather(self, numbers: torch.Tensor, draws: BatchRng) -> LatentBatch:
        """Return the latents of pictures of one bucket.

        Args:
            numbers: which pictures, int64 ``[B]`` on the CPU.
            draws: this part's share of the batch's random numbers.
        """


# --- encoded once ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Group:
    """The n pictures of one bucket, and behind them their n mirrored ones, if there are any."""

    mean: torch.Tensor
    deviation: torch.Tensor
    mask: torch.Tensor | None
    time_ids: torch.Tensor | None
    pictures: int
    holes: MaskedLatentCache | None = None

    @property
    def nbytes(self) -> int:
        holes = 0 if self.holes is None else self.holes.nbytes
        return self.mean.nbytes + self.deviation.nbytes + holes

    def to(self, device: torch.device) -> "_Group":
        return _Group(
            self.mean.to(device),
            self.deviation.to(device),
            None if self.mask is None else self.mask.to(device),
            None if self.time_ids is None else self.time_ids.to(device),
            self.pictures,
            None if self.holes is None else self.holes.to(device),
        )


class CachedLatents:
    """Latents that were encoded before the training; a step only gathers and samples them."""

    def __init__(
        self, groups: dict[int, _Group], bucket_of: Sequence[int], flip: bool, device: torch.device
    ) -> None:
        self._bucket_of = bucket_of
        self._flip = flip
        self._device = device
        fits = sum(one.nbytes for one in groups.values()) <= _RESIDENT_BYTES
        self._home = device if fits else torch.device("cpu")
        self._groups = {bucket: one.to(self._home) for bucket, one in groups.items()}
        seen = dict.fromkeys(groups, 0)
        self._within = []
        for bucket in bucket_of:
            self._within.append(seen[bucket])
            seen[bucket] += 1

    def gather(self, numbers: torch.Tensor, draws: BatchRng) -> LatentBatch:
        """Return freshly sampled latents; see ``Latents``."""
        chosen = numbers.tolist()
        group = self._groups[self._bucket_of[chosen[0]]]
        unit = to_device_async(draws.normal(*group.mean.shape[1:]), self._device)
        # Decided on the host, so that it need not be asked of the device for latents kept here.
        rows = [self._within[number] for number in chosen]
        if self._flip:
            sides = [
                bool(torch.rand((), generator=one) < 0.5)
                for one in draws.per_image_generators(_MIRROR)
            ]
            rows = [row + side * group.pictures for row, side in zip(rows, sides, strict=True)]
        which = to_device_async(torch.tensor(rows), self._home)
        return LatentBatch(
            self._sampled(group.mean, group.deviation, which, unit),
            None if group.mask is None else self._rows(group.mask, which),
            None if group.time_ids is None else self._rows(group.time_ids, which),
            None if group.holes is None else self._surroundings(group.holes, rows, draws),
        )

    def _surroundings(
        self, holes: MaskedLatentCache, rows: Sequence[int], draws: BatchRng
    ) -> torch.Tensor:
        which = to_device_async(holes.chosen(rows, draws), self._home)
        unit = to_device_async(draws.normal(*holes.mean.shape[1:]), self._device)
        rest = self._sampled(holes.mean, holes.deviation, which, unit)
        return torch.cat([self._rows(holes.mask, which), rest], dim=1)

    def _sampled(
        self, mean: torch.Tensor, deviation: torch.Tensor, which: torch.Tensor, unit: torch.Tensor
    ) -> torch.Tensor:
        return self._rows(mean, which) + self._rows(deviation, which) * unit

    def _rows(self, table: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        return gather_to_device(table, which, self._device)


def encode_latents(
    vae: "AutoencoderKL",
    identity: str,
    downscale: int,
    pictures: TrainImages,
    flip: bool,
    cache: TensorCache,
    device: torch.device,
) -> CachedLatents:
    """Encode every picture's centre crop, and its mirror image with ``flip``.

    For an inpainting model, each of them also without each of its holes.

    Args:
        vae: on the device where it shall run.
        identity: the VAE's hash.
        downscale: pixels per latent.
        pictures: the pictures.
        flip: keep mirror images too.
        cache: where latents are looked up and kept.
        device: where batches are wanted.

    Raises:
        DataError: a picture cannot be decoded, or its latents are not finite; it is named.
    """
    jobs = [
        (number, side)
        for side in ((False, True) if flip else (False,))
        for number in range(len(pictures.bucket_of))
    ]
    keys = [latent_cache_key(pictures, job, vae, identity) for job in jobs]
    layouts = [latent_layout(pictures, number, vae, downscale) for number, _ in jobs]

    def compute(places: list[int]) -> Iterator[Entry]:
        return _encoded(vae, pictures, [jobs[place] for place in places])

    with progress_bar("encoding pictures", len(jobs)) as advance:
        entries = dict(
            zip(jobs, cache.get_or_compute(keys, layouts, compute, advance), strict=True)
        )
    buckets = sorted(set(pictures.bucket_of))
    owned = [[job for job in jobs if pictures.bucket_of[job[0]] == bucket] for bucket in buckets]
    made = [_group(pictures, own, [entries[job] for job in own], downscale) for own in owned]
    if pictures.holes is not None:
        tables = encode_masked_latents(
            vae, identity, downscale, pictures, pictures.holes, owned, cache
        )
        made = [replace(one, holes=table) for one, table in zip(made, tables, strict=True)]
    return CachedLatents(dict(zip(buckets, made, strict=True)), pictures.bucket_of, flip, device)


def _encoded(
    vae: "AutoencoderKL", pictures: TrainImages, jobs: Sequence[ImageView]
) -> Iterator[Entry]:
    for (number, _), pixels in zip(jobs, iter_center_crops(pictures, jobs), strict=True):
        yield encode_image(vae, pictures, number, uint8_to_signed(pixels))


def _group(
    pictures: TrainImages, jobs: Sequence[ImageView], entries: Sequence[Entry], downscale: int
) -> _Group:
    mask = time_ids = None
    if pictures.any_mask:
        mask = torch.cat([_mask(pictures, number, side, downscale) for number, side in jobs])
    if pictures.sized:
        placements = pictures.placed.assignments
        views = [(placements[number], Augmentation(placements[number].crop_box[:2], side))
                 for number, side in jobs]  # fmt: skip
        time_ids = torch.tensor([compute_time_ids(*view, pictures.score) for view in views])
    return _Group(
        torch.stack([one["mean"] for one in entries]),
        torch.stack([one["deviation"] for one in entries]),
        mask,
        time_ids,
        len({number for number, _ in jobs}),
    )


def _mask(pictures: TrainImages, number: int, mirrored: bool, downscale: int) -> torch.Tensor:
    mask = pictures.placed.load_center_mask(number)
    if mask is None:
        bucket = pictures.placed.assignments[number].bucket
        mask = torch.full((1, bucket.height, bucket.width), 255, dtype=torch.uint8)
    return downscale_masks((mask.flip(-1) if mirrored else mask).unsqueeze(0), downscale)


# --- encoded in every step ------------------------------------------------------------------


class OnlineLatents:
    """Pictures that are cropped, coloured or masked anew every time: the VAE runs in the step."""

    def __init__(
        self,
        vae: "AutoencoderKL",
        downscale: int,
        pictures: TrainImages,
        data: DataConfig,
        device: torch.device,
    ) -> None:
        self._vae = vae
        self._downscale = downscale
        self._pictures = pictures
        self._data = data
        self._device = device

    def gather(self, numbers: torch.Tensor, draws: BatchRng) -> LatentBatch:
        """Return latents of newly drawn crops; see ``Latents``."""
        chosen, placed = numbers.tolist(), self._pictures.placed
        placements = [placed.assignments[number] for number in chosen]
        views = self._views(placements, draws)
        pixels, masks = placed.load_crops(chosen, [view.crop_corner for view in views])
        mirrored = torch.tensor([view.is_flipped for view in views]).view(-1, 1, 1, 1)
        pixels, masks = (torch.where(mirrored, one.flip(-1), one) for one in (pixels, masks))
        shown = to_device_async(pixels, self._device).float() / 255.0
        if self._data.color_jitter:
            shown = apply_color_jitter(
                shown,
                to_device_async(torch.tensor([view.color_factors for view in views]), self._device),
            )
        signed = shown * 2.0 - 1.0
        clean = self._sampled(signed, draws)
        mask = time_ids = surroundings = None
        if self._pictures.any_mask:
            mask = downscale_masks(to_device_async(masks, self._device), self._downscale)
        if self._pictures.sized:
            score = self._pictures.score
            told = [
                compute_time_ids(p, view, score) for p, view in zip(placements, views, strict=True)
            ]
            time_ids = to_device_async(torch.tensor(told), self._device)
        if self._pictures.holes is not None:
            holes = draw_inpaint_masks(self._pictures.holes, self._pictures, chosen, masks, draws)
            surroundings = self._surroundings(signed, to_device_async(holes, self._device), draws)
        return LatentBatch(clean, mask, time_ids, surroundings)

    def _surroundings(
        self, signed: torch.Tensor, holes: torch.Tensor, draws: BatchRng
    ) -> torch.Tensor:
        rest = self._sampled(blank_masked(signed, holes), draws)
        return torch.cat([masks_to_latent_size(holes, self._downscale), rest], dim=1)

    def _sampled(self, signed: torch.Tensor, draws: BatchRng) -> torch.Tensor:
        mean, deviation = encode_images(self._vae, signed)
        return mean + deviation * to_device_async(draws.normal(*mean.shape[1:]), self._device)

    def _views(self, placements: Sequence[BucketAssignment], draws: BatchRng) -> list[Augmentation]:
        data = self._data
        return [
            draw_augmentation(placed, data.crop == "random", data.flip_aug, data.color_jitter, own)
            for placed, own in zip(placements, draws.per_image_generators(_VIEW), strict=True)
        ]
