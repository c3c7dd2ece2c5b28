"""Metrics of a base model: its VAE, and its image and text encoders."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from lorasmith.data.images.decode import crop_square
from lorasmith.data.images.square_images import signed_to_uint8, uint8_to_signed
from lorasmith.evaluation.metrics.image import pooled_psnr, psnr, retrieval_ranks, top_k_accuracy
from lorasmith.models.image_encoder import ClipModel, embed_images, embed_texts

_BATCH_SIZE = 32


@dataclass(frozen=True)
class VaeMetrics:
    """Metrics of a VAE on images that it was not trained on."""

    mean_psnr: float
    """Mean of the images' PSNR, dB."""
    pooled_psnr: float
    """PSNR of the mean squared error over all images, dB."""
    perceptual: float
    """Mean LPIPS-style distance in the image encoder's features."""
    latent_std: float
    """Standard deviation of latents times the scaling factor."""


@torch.no_grad()
def measure_vae(vae: Any, perceptual: Any, images: torch.Tensor) -> VaeMetrics:
    """Measure reconstructions of images ``[N, 3, H, W]`` in -1..1 from the posterior's mean."""
    reconstructions, latents, distances = [], [], []
    for batch in torch.split(images, _BATCH_SIZE):
        latent = vae.encode(batch).latent_dist.mean
        reconstructions.append(vae.decode(latent).sample.clamp(-1.0, 1.0))
        latents.append(latent)
        distances.append(perceptual(batch, reconstructions[-1]) * len(batch))
    reconstructed = torch.cat(reconstructions)
    latent_std = float(torch.cat(latents).std()) * float(vae.config.scaling_factor)
    return VaeMetrics(
        mean_psnr=float(psnr(images, reconstructed).mean()),
        pooled_psnr=pooled_psnr(images, reconstructed),
        perceptual=float(torch.stack(distances).sum() / len(images)),
        latent_std=latent_std,
    )


@torch.no_grad()
def reconstruct(vae: Any, images: torch.Tensor) -> torch.Tensor:
    """Return reconstructions of images, both ``[N, 3, H, W]`` in -1..1."""
    batches = torch.split(images, _BATCH_SIZE)
    decoded = (vae.decode(vae.encode(batch).latent_dist.mean).sample for batch in batches)
    return torch.cat([batch.clamp(-1.0, 1.0) for batch in decoded])


def reconstruct_to_pil(vae: Any, images: torch.Tensor) -> list[Image.Image]:
    """Return reconstructions of images ``[N, 3, H, W]`` in -1..1 as PIL images."""
    return tensor_to_pil(reconstruct(vae, images))


def tensor_to_pil(images: torch.Tensor) -> list[Image.Image]:
    """Convert images ``[N, 3, H, W]`` in -1..1 to PIL images."""
    return [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in signed_to_uint8(images).cpu()]


def pil_to_tensor(images: Sequence[Image.Image], side: int) -> torch.Tensor:
    """Crop PIL images to squares and convert them to ``[N, 3, side, side]`` in -1..1."""
    arrays = [torch.from_numpy(crop_square(image, side).copy()) for image in images]
    return uint8_to_signed(torch.stack(arrays).permute(0, 3, 1, 2))


@dataclass(frozen=True)
class RetrievalMetrics:
    """How often an image's own caption is among the nearest."""

    queries: int
    candidates: int
    top1: float
    top5: float


def measure_retrieval(
    clip: ClipModel, tokenizer: Any, images: torch.Tensor, captions: Sequence[str]
) -> RetrievalMetrics:
    """Retrieve each image's caption among all captions by the two encoders.

    Args:
        clip: both encoders.
        tokenizer: the text encoder's.
        images: ``[N, 3, H, W]`` in -1..1.
        captions: at least N; the first N belong to the images, the others are distractors.
    """
    image_embeddings = embed_images(clip.image, images)
    text_embeddings = embed_texts(clip, tokenizer, captions)
    ranks = retrieval_ranks(image_embeddings, text_embeddings)
    top1, top5 = top_k_accuracy(ranks, 1), top_k_accuracy(ranks, 5)
    return RetrievalMetrics(len(images), len(captions), top1, top5)
