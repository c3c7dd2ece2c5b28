"""What one training step is given about its pictures. Noise and its levels are the step's own."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Batch:
    """B pictures of one bucket, on the training device; latents are ``[B, C, h, w]``."""

    clean: torch.Tensor
    """Latents, sampled from the VAE's distribution and scaled for the U-Net, float32."""
    weight: torch.Tensor
    """Weight of each picture's loss: 1, or ``data.class_weight`` for class pictures; float32
    ``[B]``."""
    numbers: torch.Tensor
    """Which pictures these are, for messages: int64 ``[B]`` on the CPU."""
    context: torch.Tensor | None = None
    """Text embeddings, ``[B, 77, width]`` in the U-Net's dtype; None where ``ids`` are given."""
    pooled: torch.Tensor | None = None
    """Pooled text embeddings of SDXL, ``[B, P]`` likewise; None for other models."""
    time_ids: torch.Tensor | None = None
    """SDXL's size conditioning, float32 ``[B, 6]``: original height and width, top and left of
    the crop, height and width of the bucket; None for other models."""
    mask: torch.Tensor | None = None
    """How much each latent counts, float32 0..1 ``[B, 1, h, w]``; None where no picture of the
    set has a mask."""
    ids: torch.Tensor | None = None
    """Token ids, int64 ``[B, 77]``, where the text encoder is trained and runs in the step."""
    ids_2: torch.Tensor | None = None
    """Token ids for the second text encoder of SDXL, likewise."""
