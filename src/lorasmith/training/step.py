"""One optimizer step. With a fused optimizer nothing in it reads a device value on the host.

That lets it be captured as a CUDA graph: a batch holds all that changes from step to step, and
even the guard against values that are not finite works on the device.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from lorasmith.models.noise import NoiseProcess
from lorasmith.training.dataset import Dataset

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


@dataclass(frozen=True)
class Batch:
    """The input of one step, on the training device. B pictures, latents ``[B, C, h, w]``."""

    clean: torch.Tensor
    """Scaled latents, float32."""
    context: torch.Tensor
    """Text embeddings, ``[B, 77, width]``."""
    timesteps: torch.Tensor
    """Noise levels, int64 ``[B]``."""
    noise: torch.Tensor
    """Unit normal noise like the latents, float32."""


def draw_batch(
    data: Dataset, numbers: torch.Tensor, timesteps: int, draws: torch.Generator
) -> Batch:
    """Gather the pictures of one step and draw what is random about them.

    The latents are sampled from the VAE's distribution anew each time. All numbers are drawn on
    the CPU, so that a seed means the same on every device.

    Args:
        data: the encoded pictures.
        numbers: which of them, int64 ``[B]``.
        timesteps: number of noise levels T; they are drawn uniformly from 0 to T - 1.
        draws: a CPU generator that belongs to this step.
    """
    device = data.mean.device
    shape = (len(numbers), *data.mean.shape[1:])
    unit = torch.randn(shape, generator=draws).to(device)
    noise = torch.randn(shape, generator=draws).to(device)
    levels = torch.randint(timesteps, (len(numbers),), generator=draws).to(device)
    which = numbers.to(device)
    clean = data.mean[which] + data.deviation[which] * unit
    return Batch(clean, data.contexts[data.caption[which]], levels, noise)


def loss_of(unet: "UNet2DConditionModel", process: NoiseProcess, batch: Batch) -> torch.Tensor:
    """Return the mean squared error of the network's prediction, a float32 scalar.

    ||f(x_t, t, text) - target||^2 averaged over everything, with the noise or v as the target
    (Ho et al. 2020, eq. 14; Salimans and Ho 2022).
    """
    noisy = process.add_noise(batch.clean, batch.noise, batch.timesteps)
    predicted = unet(noisy.to(unet.dtype), batch.timesteps, batch.context, return_dict=False)[0]
    target = process.target(batch.clean, batch.noise, batch.timesteps)
    return F.mse_loss(predicted.float(), target)


class Figures(NamedTuple):
    """What a step measured, as float32 scalars on the device."""

    loss: torch.Tensor
    grad_norm: torch.Tensor
    """Before clipping."""


class TrainStep:
    """Loss, gradients, clipping, guard and optimizer.

    From the first step whose loss or gradient is not finite on, the optimizer does not move:
    the weights stay those of the step before, however late anybody looks.
    """

    def __init__(
        self,
        unet: "UNet2DConditionModel",
        process: NoiseProcess,
        parameters: list[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        clip: float,
    ) -> None:
        self.unet = unet
        self.process = process
        self.parameters = parameters
        self.optimizer = optimizer
        self.clip = clip
        device = parameters[0].device
        self._done = torch.zeros((), dtype=torch.int64, device=device)
        self._failed = torch.full((), -1, dtype=torch.int64, device=device)
        self._skip = torch.zeros((), device=device)
        # Fused optimizers leave weights and state alone where `found_inf` is 1: it is how the
        # gradient scaler of torch.amp skips a step without asking the device.
        self._skips_itself = bool(getattr(optimizer, "_step_supports_amp_scaling", False))
        if self._skips_itself:
            optimizer.found_inf = self._skip  # type: ignore[attr-defined]

    def __call__(self, batch: Batch) -> Figures:
        """Take one step."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = loss_of(self.unet, self.process, batch)
        torch.autograd.backward(loss)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self._guard(loss.detach(), norm)
        # Other optimizers have to be asked on the host, so they cannot be captured.
        if self._skips_itself or self.failed_step() is None:
            self.optimizer.step()
        return Figures(loss.detach(), norm)

    def failed_step(self) -> int | None:
        """Return the first step (from 0) that was not finite, or None; waits for the device."""
        failed = int(self._failed)
        return None if failed < 0 else failed

    def _guard(self, loss: torch.Tensor, norm: torch.Tensor) -> None:
        bad = ~(loss.isfinite() & norm.isfinite()) & (self._failed < 0)
        self._failed.copy_(torch.where(bad, self._done, self._failed))
        self._skip.copy_(self._failed >= 0)
        self._done += 1
