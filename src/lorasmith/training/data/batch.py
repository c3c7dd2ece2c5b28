"""What one training step gets about its images. The step itself draws noise and timesteps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

Task = Literal["train", "preserve", "preserve_frozen"]


@dataclass(frozen=True)
class Batch:
    """B images of one bucket, on the training device; latents are ``[B, C, h, w]``."""

    latents: torch.Tensor
    """Sampled from the VAE's distribution and scaled for the U-Net, float32."""
    loss_weights: torch.Tensor
    """Weight of each image's loss: 1, or ``data.prior_loss_weight`` for class images; float32
    ``[B]``."""
    indices: torch.Tensor
    """Which images of the dataset, for messages: int64 ``[B]`` on the CPU."""
    context: torch.Tensor | None = None
    """Text embeddings, ``[B, L, width]`` in the U-Net's dtype, with L = 77 for each chunk; None
    where ``input_ids`` are given."""
    pooled: torch.Tensor | None = None
    """Pooled text embeddings of SDXL, ``[B, P]`` likewise; None for other models."""
    time_ids: torch.Tensor | None = None
    """SDXL's size conditioning, float32 ``[B, 6]``: original height and width, top and left of
    the crop, height and width of the bucket. For the refiner ``[B, 5]``, with an aesthetic score
    instead of the bucket's size. None for other models."""
    inpaint_cond: torch.Tensor | None = None
    """Extra input of an inpainting model, float32 ``[B, 1 + C, h, w]``: the mask, 1 where the
    model inpaints, and the latents of the masked image; None for other models."""
    loss_mask: torch.Tensor | None = None
    """Weight of each latent in the loss, float32 0..1 ``[B, 1, h, w]``; None where no image of the
    dataset has a mask."""
    input_ids: torch.Tensor | None = None
    """Token ids, int64 ``[B, L]``, where the text encoder runs in the step."""
    input_ids_2: torch.Tensor | None = None
    """Token ids for the second text encoder of SDXL, likewise."""
    token_mask: torch.Tensor | None = None
    """The tokens that LoRAs with a token gate may write to, bool ``[B, M, L]``: first for the
    trained LoRA, then for each frozen one; None where none has such a gate."""
    has_own_tag: Sequence[bool] | None = None
    """Whether each caption has the tag of the trained LoRA; None where it is always active."""
    has_other_tags: Sequence[Sequence[bool]] = ()
    """For each frozen feature, whether each caption has its tag; on the host."""
    task: Task = "train"
    """``train`` on the images; ``preserve`` the prediction of the model without the adapters, for
    captions without the tag; ``preserve_frozen``: preserve the prediction of the model with a
    frozen feature, for images of that feature."""
    frozen_index: int = 0
    """Which frozen feature the images are of, for ``preserve_frozen``."""

    @property
    def text_length(self) -> int:
        """Tokens of each text."""
        texts = self.input_ids if self.context is None else self.context
        return 0 if texts is None else texts.shape[1]


def concat_batches(batches: Sequence[Batch]) -> Batch:
    """Concatenate the network inputs of batches of one shape.

    What only their losses need (masks, tasks, gates) is left out.
    """
    if len(batches) == 1:
        return batches[0]
    return Batch(
        latents=torch.cat([batch.latents for batch in batches]),
        loss_weights=torch.cat([batch.loss_weights for batch in batches]),
        indices=torch.cat([batch.indices for batch in batches]),
        context=_concat([batch.context for batch in batches]),
        pooled=_concat([batch.pooled for batch in batches]),
        time_ids=_concat([batch.time_ids for batch in batches]),
        inpaint_cond=_concat([batch.inpaint_cond for batch in batches]),
        input_ids=_concat([batch.input_ids for batch in batches]),
        input_ids_2=_concat([batch.input_ids_2 for batch in batches]),
    )


def _concat(tensors: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(present) if present else None
