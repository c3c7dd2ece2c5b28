"""Pictures of a set on their way through the VAE."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from lorasmith.core.errors import DataError
from lorasmith.data.cache.tensor_cache import Entry, Layout, cache_key
from lorasmith.data.images.augment import Augmentation
from lorasmith.data.images.bucketed_images import BucketedImages
from lorasmith.data.images.buckets import BucketAssignment
from lorasmith.models.latents import encode_images

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

_RECIPE = 1
"""Part of every key: to be raised when pictures are decoded or scaled in another way."""
_AHEAD = 8
"""Pictures that are decoded while another one is encoded."""

ImageView = tuple[int, bool]
"""The number of a picture, and whether it is mirrored."""


@dataclass(frozen=True)
class InpaintMaskConfig:
    """What an inpainting model is to paint anew."""

    given: bool
    """Whether the masks that pictures have say it; those without get random ones."""
    count: int
    """How many random masks a picture gets where they are encoded before the training."""
    seed: int
    """Where these start."""


@dataclass(frozen=True)
class TrainImages:
    """The pictures of a set, and what a batch tells about them besides their latents."""

    placed: BucketedImages
    bucket_of: Sequence[int]
    """The number of each picture's bucket."""
    hashes: Sequence[str]
    """SHA-256 of each picture's file, in hex."""
    masked: bool
    """Whether masks are wanted for the loss; only where a row has one."""
    sized: bool
    """Whether the model wants to be told sizes (SDXL)."""
    score: float | None = None
    """What the SDXL refiner is told of how good they look; None for other models."""
    holes: InpaintMaskConfig | None = None
    """For an inpainting model; None for other models."""

    @property
    def any_mask(self) -> bool:
        """Whether batches have masks for the loss."""
        return self.masked and any(row.mask_path is not None for row in self.placed.rows)


def encode_image(
    vae: "AutoencoderKL", pictures: TrainImages, number: int, signed: torch.Tensor
) -> Entry:
    """Encode one picture alone, so that what comes out does not depend on any other.

    Args:
        vae: on the device where it shall run.
        pictures: the set.
        number: which of its pictures this is.
        signed: float32 ``[3, H, W]`` in -1..1.

    Raises:
        DataError: its latents are not finite; it is named.
    """
    mean, deviation = encode_images(vae, signed.unsqueeze(0))
    if not bool((mean + deviation).isfinite().all()):
        raise DataError(
            f"{pictures.placed.rows[number].key}: the VAE turns this picture into values that "
            "are not finite"
        )
    return {"mean": mean[0].cpu(), "deviation": deviation[0].cpu()}


def iter_center_crops(pictures: TrainImages, sides: Sequence[ImageView]) -> Iterator[torch.Tensor]:
    """Yield centre crops, uint8 ``[3, H, W]``, decoded a few ahead of what is asked for."""
    with ThreadPoolExecutor(max_workers=_AHEAD) as pool:
        waiting: list[Future[torch.Tensor]] = []
        for number, mirrored in sides:
            waiting.append(pool.submit(_decoded, pictures, number, mirrored))
            if len(waiting) > _AHEAD:
                yield waiting.pop(0).result()
        for one in waiting:
            yield one.result()


def _decoded(pictures: TrainImages, number: int, mirrored: bool) -> torch.Tensor:
    pixels = pictures.placed.load_center_crop(number)
    return pixels.flip(-1) if mirrored else pixels


def latent_cache_key(
    pictures: TrainImages, side: ImageView, vae: "AutoencoderKL", identity: str, hole: str = ""
) -> str:
    """Return the cache's key of a picture's latents.

    Args:
        pictures: the set.
        side: which picture, and whether it is mirrored.
        vae: what it is encoded with.
        identity: the VAE's hash.
        hole: hash of what is taken out of the picture before; empty for nothing.
    """
    number, mirrored = side
    placed = pictures.placed.assignments[number]
    facts: dict[str, object] = {
        "what": "latents",
        "recipe": _RECIPE,
        "picture": pictures.hashes[number],
        "background": pictures.placed.background,
        "resized": placed.resized_size,
        "crop": placed.crop_box,
        "mirrored": mirrored,
        "vae": identity,
        "dtype": str(vae.dtype),
    }
    return cache_key(facts | {"hole": hole} if hole else facts)


def latent_layout(
    pictures: TrainImages, number: int, vae: "AutoencoderKL", downscale: int
) -> Layout:
    """Return what a picture's entry in the cache must look like."""
    bucket, channels = pictures.placed.assignments[number].bucket, int(vae.config.latent_channels)
    shape = (channels, bucket.height // downscale, bucket.width // downscale)
    return {"mean": (torch.float32, shape), "deviation": (torch.float32, shape)}


def compute_time_ids(
    placed: BucketAssignment, view: Augmentation, score: float | None = None
) -> list[float]:
    """Return SDXL's size conditioning of one picture, as in ``Batch.time_ids``.

    Args:
        placed: how the picture was scaled.
        view: how it is shown.
        score: for the refiner, which is told how good it looks in place of the bucket's size.
    """
    (width, height), bucket = placed.original_size, placed.bucket
    left, top = view.visible_corner(placed)
    told = (bucket.height, bucket.width) if score is None else (score,)
    return [float(x) for x in (height, width, top, left, *told)]


def downscale_masks(masks: torch.Tensor, downscale: int) -> torch.Tensor:
    """Average masks, uint8 ``[B, 1, H, W]``, over each latent: float32 0..1 ``[B, 1, h, w]``."""
    return F.avg_pool2d(masks.float() / 255.0, downscale)


def content_hash(encoded: bytes) -> str:
    """Return the hex SHA-256 of a picture's file."""
    return hashlib.sha256(encoded).hexdigest()
