"""A model's U-Net as a function of a training batch."""

from typing import TYPE_CHECKING

import torch

from lorasmith.models.text.encode import TokenIds, encode_tokens
from lorasmith.training.data.batch import Batch

if TYPE_CHECKING:
    from lorasmith.models.model import Model


class Denoiser:
    """A model's U-Net as a function of a batch; text encoders in training run with it."""

    def __init__(self, model: "Model") -> None:
        self._model = model
        self._dtype = model.unet.dtype

    def __call__(self, noisy: torch.Tensor, timesteps: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the prediction for noisy latents, ``[B, C, h, w]`` in the U-Net's dtype."""
        context, pooled = batch.context, batch.pooled
        if batch.input_ids is not None:
            context, pooled = encode_tokens(
                self._model, TokenIds(batch.input_ids, batch.input_ids_2)
            )
        added_cond = None
        if batch.time_ids is not None:
            added_cond = {"text_embeds": self._cast(pooled), "time_ids": batch.time_ids}
        if batch.inpaint_cond is not None:
            noisy = torch.cat([noisy, batch.inpaint_cond], dim=1)
        prediction: torch.Tensor = self._model.unet(
            self._cast(noisy),
            timesteps,
            self._cast(context),
            added_cond_kwargs=added_cond,
            return_dict=False,
        )[0]
        return prediction

    def _cast(self, tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor.to(self._dtype)
