"""Encoding training images with the VAE."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F

from lorasmith.core.errors import DataError
from lorasmith.data.cache.tensor_cache import Entry, Layout, TensorCache, cache_key
from lorasmith.data.images.augment import Augmentation
from lorasmith.data.images.bucketed_images import BucketedImages
from lorasmith.data.images.buckets import BucketAssignment
from lorasmith.models.latents import encode_images
from lorasmith.training.data.module_hash import hash_module

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

_KEY_VERSION = 1
"""Part of every cache key; raise it when images are decoded or scaled in another way."""
_CONVERSION = b"colours to sRGB, 1"
"""Part of the hash of images with a colour profile; raise it when they are converted otherwise."""
_PREFETCH = 8
"""Images that are decoded while another one is encoded."""


class ImageView(NamedTuple):
    """An image as it is encoded before training: its centre crop, perhaps flipped."""

    image_index: int
    is_flipped: bool


@dataclass(frozen=True)
class InpaintMaskConfig:
    """Which masks say what an inpainting model inpaints."""

    uses_files: bool
    """Images with a mask file use it, others random masks; False: random masks for all."""
    num_random_masks: int
    """Random masks of each image, where these are encoded before training."""
    seed: int
    """Seed of the random masks."""


@dataclass(frozen=True)
class ImageAugmentation:
    """How images change at random in every step."""

    random_crop: bool
    flip: bool
    color_jitter: float
    """Largest change of brightness, contrast and saturation, as a share."""


@dataclass(frozen=True)
class TrainImages:
    """The images of a dataset, and what a batch contains besides their latents."""

    bucketed: BucketedImages
    bucket_indices: Sequence[int]
    """Index of each image's bucket."""
    hashes: Sequence[str]
    """Hex SHA-256 of each image's file, and of whether its colours are converted."""
    masks_loss: bool
    """Whether masks weight the loss, where an image has one."""
    has_time_ids: bool
    """Whether the model takes sizes as conditioning (SDXL)."""
    aesthetic_score: float | None = None
    """For the SDXL refiner; None for other models."""
    inpaint_masks: InpaintMaskConfig | None = None
    """For an inpainting model; None for other models."""

    @property
    def has_loss_masks(self) -> bool:
        """Whether batches have masks for the loss."""
        rows = self.bucketed.rows
        return self.masks_loss and any(row.mask_path is not None for row in rows)

    def uses_mask_file(self, index: int) -> bool:
        """Whether an image's own mask says what to inpaint."""
        config, row = self.inpaint_masks, self.bucketed.rows[index]
        return config is not None and config.uses_files and row.mask_path is not None


@dataclass(frozen=True)
class VaeEncoder:
    """A VAE, and the cache of what it has encoded in earlier runs."""

    vae: "AutoencoderKL"
    """On the device where it runs."""
    scale_factor: int
    """Pixels per latent."""
    cache_root: Path | None = None
    """None: no cache."""

    @cached_property
    def hash(self) -> str:
        """Hash of the VAE; empty without a cache."""
        return hash_module(self.vae) if self.cache_root else ""

    @cached_property
    def cache(self) -> TensorCache:
        return open_encoder_cache(self.cache_root, "latents", self.hash)

    def encode(self, images: TrainImages, index: int, pixels: torch.Tensor) -> Entry:
        """Encode one image alone, so that its latents do not depend on others.

        Args:
            images: the images of the dataset.
            index: which of them.
            pixels: float32 ``[3, H, W]`` in -1..1.

        Raises:
            DataError: its latents are not finite; the message names it.
        """
        mean, deviation = encode_images(self.vae, pixels.unsqueeze(0))
        if not bool((mean + deviation).isfinite().all()):
            raise DataError(
                f"{images.bucketed.rows[index].key}: the VAE turns this image into values that "
                "are not finite"
            )
        return {"mean": mean[0].cpu(), "deviation": deviation[0].cpu()}

    def cache_key(self, images: TrainImages, view: ImageView, mask_hash: str = "") -> str:
        """Return the cache key of an image's latents.

        Args:
            images: the images of the dataset.
            view: which of them, and whether flipped.
            mask_hash: hash of the inpainting mask that blanks a part; empty without one.
        """
        assignment = images.bucketed.assignments[view.image_index]
        facts: dict[str, object] = {
            "what": "latents",
            "recipe": _KEY_VERSION,
            "picture": images.hashes[view.image_index],
            "background": images.bucketed.background,
            "resized": assignment.resized_size,
            "crop": assignment.crop_box,
            "mirrored": view.is_flipped,
            "vae": self.hash,
            "dtype": str(self.vae.dtype),
        }
        return cache_key(facts | {"hole": mask_hash} if mask_hash else facts)

    def entry_layout(self, images: TrainImages, index: int) -> Layout:
        """Return the dtypes and shapes of an image's cache entry."""
        bucket, channels = (
            images.bucketed.assignments[index].bucket,
            int(self.vae.config.latent_channels),
        )
        shape = (channels, bucket.height // self.scale_factor, bucket.width // self.scale_factor)
        return {"mean": (torch.float32, shape), "deviation": (torch.float32, shape)}


def open_encoder_cache(root: Path | None, kind: str, encoder_hash: str) -> TensorCache:
    """Return the cache of one encoder, in its own folder; without a root it stores nothing."""
    return TensorCache(root and root / kind / encoder_hash[:16])


def iter_center_crops(images: TrainImages, views: Sequence[ImageView]) -> Iterator[torch.Tensor]:
    """Yield centre crops, uint8 ``[3, H, W]``, decoding a few ahead."""
    with ThreadPoolExecutor(max_workers=_PREFETCH) as pool:
        pending: list[Future[torch.Tensor]] = []
        for view in views:
            pending.append(pool.submit(_load_view, images, view))
            if len(pending) > _PREFETCH:
                yield pending.pop(0).result()
        for future in pending:
            yield future.result()


def _load_view(images: TrainImages, view: ImageView) -> torch.Tensor:
    pixels = images.bucketed.load_center_crop(view.image_index)
    return pixels.flip(-1) if view.is_flipped else pixels


def compute_time_ids(
    assignment: BucketAssignment, augmentation: Augmentation, aesthetic_score: float | None = None
) -> list[float]:
    """Return SDXL's size conditioning of one image, as in ``Batch.time_ids``.

    Args:
        assignment: how the image is resized.
        augmentation: how it is cropped and flipped.
        aesthetic_score: for the refiner, which takes it instead of the bucket's size.
    """
    (width, height), bucket = assignment.original_size, assignment.bucket
    left, top = augmentation.visible_corner(assignment)
    target = (bucket.height, bucket.width) if aesthetic_score is None else (aesthetic_score,)
    return [float(value) for value in (height, width, top, left, *target)]


def downscale_masks(masks: torch.Tensor, scale_factor: int) -> torch.Tensor:
    """Average masks, uint8 ``[B, 1, H, W]``, over each latent: float32 0..1 ``[B, 1, h, w]``."""
    return F.avg_pool2d(masks.float() / 255.0, scale_factor)


def hash_content(encoded: bytes, is_converted: bool = False) -> str:
    """Return the hex SHA-256 of an image's file, another one where its colours are converted."""
    digest = hashlib.sha256(encoded)
    if is_converted:
        digest.update(_CONVERSION)
    return digest.hexdigest()
