"""What one training step is given about its pictures. Noise and its levels are the step's own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

Task = Literal["train", "preserve", "preserve_frozen"]


@dataclass(frozen=True)
class Batch:
    """B pictures of one bucket, on the training device; latents are ``[B, C, h, w]``."""

    latents: torch.Tensor
    """Latents, sampled from the VAE's distribution and scaled for the U-Net, float32."""
    loss_weights: torch.Tensor
    """Weight of each picture's loss: 1, or ``data.prior_loss_weight`` for class pictures; float32
    ``[B]``."""
    indices: torch.Tensor
    """Which pictures these are, for messages: int64 ``[B]`` on the CPU."""
    context: torch.Tensor | None = None
    """Text embeddings, ``[B, L, width]`` in the U-Net's dtype, L being 77 for each chunk; None
    where ``ids`` are given."""
    pooled: torch.Tensor | None = None
    """Pooled text embeddings of SDXL, ``[B, P]`` likewise; None for other models."""
    time_ids: torch.Tensor | None = None
    """SDXL's size conditioning, float32 ``[B, 6]``: original height and width, top and left of
    the crop, height and width of the bucket. The refiner's, ``[B, 5]``, ends with a score of how
    good the picture looks instead. None for other models."""
    inpaint_cond: torch.Tensor | None = None
    """What an inpainting model reads beside the noisy latents, float32 ``[B, 1 + C, h, w]``: 1
    where it is to paint anew, and the latents of the picture without that; None for others."""
    loss_mask: torch.Tensor | None = None
    """How much each latent counts, float32 0..1 ``[B, 1, h, w]``; None where no picture of the
    set has a mask."""
    input_ids: torch.Tensor | None = None
    """Token ids, int64 ``[B, L]``, where the text encoder is trained and runs in the step."""
    input_ids_2: torch.Tensor | None = None
    """Token ids for the second text encoder of SDXL, likewise."""
    token_mask: torch.Tensor | None = None
    """The tokens that LoRAs with a token gate may write to, bool ``[B, M, L]``: of the set's own
    feature, then of the earlier ones; None where none has such a gate."""
    has_own_tag: Sequence[bool] | None = None
    """Which captions call the set's own feature; None where it is at work for all of them."""
    has_other_tags: Sequence[Sequence[bool]] = ()
    """For each earlier feature, which captions call it; decided on the host."""
    task: Task = "train"
    """``learn`` from the pictures; ``keep`` the prediction of the model without the adapters, the
    captions being those without the tag; ``keep_earlier``: likewise, the pictures being those of
    an earlier feature, which is at work."""
    frozen_index: int = 0
    """Which earlier feature's pictures they are, for ``keep_earlier``."""

    @property
    def text_length(self) -> int:
        """How many tokens a text has."""
        read = self.input_ids if self.context is None else self.context
        return 0 if read is None else read.shape[1]


def concat_batches(batches: Sequence[Batch]) -> Batch:
    """Return what a network reads about the pictures of several batches of one shape, as one.

    What is only needed for their losses (masks, tasks, gates) is left out.
    """
    if len(batches) == 1:
        return batches[0]
    return Batch(
        latents=torch.cat([one.latents for one in batches]),
        loss_weights=torch.cat([one.loss_weights for one in batches]),
        indices=torch.cat([one.indices for one in batches]),
        context=_cat([one.context for one in batches]),
        pooled=_cat([one.pooled for one in batches]),
        time_ids=_cat([one.time_ids for one in batches]),
        inpaint_cond=_cat([one.inpaint_cond for one in batches]),
        input_ids=_cat([one.input_ids for one in batches]),
        input_ids_2=_cat([one.input_ids_2 for one in batches]),
    )


def _cat(parts: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    there = [part for part in parts if part is not None]
    return torch.cat(there) if there else None
