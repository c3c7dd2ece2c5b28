"""How good a base model is: its autoencoder, its towers, and its pictures for captions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from lorasmith.data.images.decode import crop_square
from lorasmith.data.images.square_images import signed_to_uint8, uint8_to_signed
from lorasmith.evaluation.metrics.image import pooled_psnr, psnr, retrieval_ranks, top_k_accuracy
from lorasmith.models.image_encoder import ClipModel, embed_images, embed_texts


@dataclass(frozen=True)
class VaeMetrics:
    """An autoencoder on pictures that it was not trained on."""

    mean_psnr: float
    """Mean over pictures of each picture's PSNR, dB."""
    pooled_psnr: float
    """PSNR of the mean squared error over all pictures together, dB."""
    perceptual: float
    """Mean LPIPS-style distance in the image tower's features."""
    latent_std: float
    """Standard deviation of latents times the scaling factor."""


@torch.no_grad()
def measure_vae(vae: Any, perceptual: Any, pictures: torch.Tensor) -> VaeMetrics:
    """Measure reconstructions of pictures ``[N, 3, H, W]`` in -1..1 from the posterior's mean."""
    made, latents, distances = [], [], []
    for shown in torch.split(pictures, 32):
        latent = vae.encode(shown).latent_dist.mean
        made.append(vae.decode(latent).sample.clamp(-1.0, 1.0))
        latents.append(latent)
        distances.append(perceptual(shown, made[-1]) * len(shown))
    result = torch.cat(made)
    spread = float(torch.cat(latents).std()) * float(vae.config.scaling_factor)
    return VaeMetrics(
        mean_psnr=float(psnr(pictures, result).mean()),
        pooled_psnr=pooled_psnr(pictures, result),
        perceptual=float(torch.stack(distances).sum() / len(pictures)),
        latent_std=spread,
    )


@torch.no_grad()
def reconstruct(vae: Any, pictures: torch.Tensor) -> torch.Tensor:
    """Return reconstructions of pictures, both ``[N, 3, H, W]`` in -1..1."""
    parts = (vae.decode(vae.encode(p).latent_dist.mean).sample for p in torch.split(pictures, 32))
    return torch.cat([part.clamp(-1.0, 1.0) for part in parts])


def reconstruct_to_pil(vae: Any, pictures: torch.Tensor) -> list[Image.Image]:
    """Return reconstructions of pictures ``[N, 3, H, W]`` in -1..1 as PIL pictures."""
    return tensor_to_pil(reconstruct(vae, pictures))


def tensor_to_pil(pictures: torch.Tensor) -> list[Image.Image]:
    """Turn pictures ``[N, 3, H, W]`` in -1..1 into PIL pictures."""
    return [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in signed_to_uint8(pictures).cpu()]


def pil_to_tensor(images: Sequence[Image.Image], side: int) -> torch.Tensor:
    """Turn PIL pictures into ``[N, 3, side, side]`` in -1..1."""
    arrays = [torch.from_numpy(crop_square(image, side).copy()) for image in images]
    return uint8_to_signed(torch.stack(arrays).permute(0, 3, 1, 2))


@dataclass(frozen=True)
class RetrievalMetrics:
    """How often a picture's own caption is among the nearest."""

    queries: int
    candidates: int
    top1: float
    top5: float


def measure_retrieval(
    pair: ClipModel, tokenizer: Any, pictures: torch.Tensor, captions: Sequence[str]
) -> RetrievalMetrics:
    """Look each picture's caption up among all captions by the two towers.

    Args:
        pair: both towers.
        tokenizer: the text tower's.
        pictures: ``[N, 3, H, W]`` in -1..1.
        captions: at least N; the first N belong to the pictures, the rest are distractors.
    """
    images = embed_images(pair.image, pictures)
    texts = embed_texts(pair, tokenizer, captions)
    rank = retrieval_ranks(images, texts)
    return RetrievalMetrics(
        len(pictures), len(captions), top_k_accuracy(rank, 1), top_k_accuracy(rank, 5)
    )
