"""One optimizer step. With a fused optimizer nothing in it reads a device value on the host.

That lets it be captured as a CUDA graph: a batch holds all that changes from step to step, and
even the guard against values that are not finite works on the device. Other optimizers, and the
loss scaling of fp16, have to be asked on the host.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from lorasmith.config.train_settings import LossConfig
from lorasmith.loops.optimizers import skips_on_found_inf
from lorasmith.models.noise import NoiseSchedule
from lorasmith.models.text.encode import TokenIds, encode_tokens
from lorasmith.training.data.batch import Batch, concat_batches
from lorasmith.training.gating import GateRouting, set_gates
from lorasmith.training.losses import Noise, per_image_losses, weighted_mean

if TYPE_CHECKING:
    from lorasmith.models.load import Model

AllReduce = Callable[[Sequence[torch.Tensor]], None]
"""Replaces tensors by their sums over all processes."""

_SMALLEST_SCALE = 2.0**-10
"""A loss scale below this says that gradients overflow whatever is done."""


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
        extra = None
        if batch.time_ids is not None:
            extra = {"text_embeds": self._cast(pooled), "time_ids": batch.time_ids}
        if batch.inpaint_cond is not None:
            noisy = torch.cat([noisy, batch.inpaint_cond], dim=1)
        predicted: torch.Tensor = self._model.unet(
            self._cast(noisy),
            timesteps,
            self._cast(context),
            added_cond_kwargs=extra,
            return_dict=False,
        )[0]
        return predicted

    def _cast(self, tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor.to(self._dtype)


class StepMetrics(NamedTuple):
    """What a step measured, as float32 scalars on the device."""

    loss: torch.Tensor
    """Of learning from the pictures."""
    grad_norm: torch.Tensor
    """Before clipping."""
    preservation_loss: torch.Tensor | None = None
    """The loss of preservation, in steps that have it."""


class UnfinishedStep(NamedTuple):
    """A step before its ``finish``."""

    loss: torch.Tensor
    preservation_loss: torch.Tensor
    gradients: list[torch.Tensor | None]


class DiffusionLoss(NamedTuple):
    """The loss of a batch under some noise."""

    denoiser: Denoiser
    process: NoiseSchedule
    settings: LossConfig
    routing: GateRouting | None = None
    """The gates that batches set; None leaves all gates as they are."""

    def compute(self, batch: Batch, drawn: Noise) -> torch.Tensor:
        """Return each picture's loss, float32 ``[B]``, without its weight."""
        return compute_losses([LossInput(self, batch, drawn)])[0]


class LossInput(NamedTuple):
    """What one feature brings to a pass of the model."""

    loss: DiffusionLoss
    batch: Batch
    noise: Noise


def compute_losses(shares: Sequence[LossInput]) -> list[torch.Tensor]:
    """Return the losses of several features' batches from one pass of the model.

    Every picture runs only its own feature's adapters, so that what comes out is what each feature
    would get by itself. The gates stay as the last pass had them until gradients are computed.

    Args:
        shares: batches of one task and one shape of latents.

    Returns:
        for each share its pictures' losses, float32 ``[B]``, without their weights.
    """
    denoiser = shares[0].loss.denoiser
    noisy = torch.cat([one.loss.process.add_noise(one.batch.latents, *_noise_of(one))
                       for one in shares])  # fmt: skip
    timesteps = torch.cat([one.noise.timesteps for one in shares])
    batch, sizes = (
        concat_batches([one.batch for one in shares]),
        [len(one.batch.latents) for one in shares],
    )

    def predict(base: bool) -> Sequence[torch.Tensor]:
        lanes = [(one.loss.routing, one.batch) for one in shares if one.loss.routing]
        set_gates(lanes, base)
        return torch.split(denoiser(noisy, timesteps, batch), sizes)

    if shares[0].batch.task == "train":
        return [
            per_image_losses(one.loss.process, one.loss.settings, one.batch, one.noise, own)
            for one, own in zip(shares, predict(False), strict=True)
        ]
    with torch.no_grad():
        wanted = predict(True)
    # The pass with gradients comes last: checkpointed ones are computed again, under its gates.
    return [
        (own.float() - before.float()).square().mean(dim=(1, 2, 3))
        for own, before in zip(predict(False), wanted, strict=True)
    ]


def backward(loss: torch.Tensor) -> None:
    """Add gradients, unless no adapter is at work for any picture that the loss is of."""
    if loss.requires_grad:
        torch.autograd.backward(loss)


def _noise_of(share: LossInput) -> tuple[torch.Tensor, torch.Tensor]:
    return share.noise.noise, share.noise.timesteps


class TrainStep:
    """Loss, gradients, clipping, guard and optimizer.

    From the first step whose loss or gradient is not finite on, the optimizer does not move:
    the weights stay those of the step before, however late anybody looks.
    """

    def __init__(
        self,
        objective: DiffusionLoss,
        parameters: list[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        clip: float,
        exchange: AllReduce | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        """Put a step together.

        Args:
            objective: the loss.
            parameters: what is trained.
            optimizer: what moves it.
            clip: largest gradient norm; 0 leaves gradients alone.
            exchange: sums gradients over processes; None for a single one.
            scaler: fp16's loss scaling; gradients that overflow are then skipped, not an error.
        """
        self._objective = objective
        self._parameters = parameters
        self._optimizer = optimizer
        self._clip = clip
        self._exchange = exchange
        self._scaler = scaler
        device = parameters[0].device
        self._done = torch.zeros((), dtype=torch.int64, device=device)
        self._failed = torch.full((), -1, dtype=torch.int64, device=device)
        self._skip = torch.zeros((), device=device)
        self._loss = self._kept = torch.zeros((), device=device)
        self._skips_itself = scaler is None and skips_on_found_inf(optimizer)
        if self._skips_itself:
            optimizer.found_inf = self._skip  # type: ignore[attr-defined]

    def __call__(self, parts: Iterable[tuple[Batch, Noise]], whole: int) -> StepMetrics:
        """Take one step.

        Args:
            parts: this process's parts of the batch; their gradients add up. A process may have
                none of a small batch.
            whole: pictures in the whole batch, over all parts and processes.
        """
        self.begin()
        for batch, drawn in parts:
            losses = self._objective.compute(batch, drawn)
            backward(self.accumulate_loss(batch, losses, whole))
        return self.finish()

    @property
    def is_sync_free(self) -> bool:
        """Whether ``finish`` waits for neither the device nor other processes."""
        return self._skips_itself and self._exchange is None

    def begin(self) -> None:
        """Start a step that is taken piece by piece: ``take`` for each part, then ``finish``."""
        self.zero_grad()
        self._loss = torch.zeros((), device=self._done.device)
        self._kept = torch.zeros((), device=self._done.device)

    def zero_grad(self) -> None:
        """Drop the gradients of the last step."""
        self._optimizer.zero_grad(set_to_none=True)

    def share(self, batch: Batch, drawn: Noise) -> LossInput:
        """Return a part as what this step brings to a pass of the model."""
        return LossInput(self._objective, batch, drawn)

    def accumulate_loss(self, batch: Batch, losses: torch.Tensor, whole: int) -> torch.Tensor:
        """Count a part's losses; return what the caller shall compute gradients of, a scalar."""
        part = weighted_mean(losses, batch.loss_weights, whole)
        if batch.task == "train":
            self._loss = self._loss + part.detach()
        else:
            self._kept = self._kept + part.detach()
        return part if self._scaler is None else self._scaler.scale(part)

    def finish(self) -> StepMetrics:
        """Clip what gradients there are, and move the weights unless something is not finite."""
        loss, kept = self._loss, self._kept
        gradients = self._gradients(loss, kept)
        if self._scaler is not None:
            self._scaler.unscale_(self._optimizer)
        norm = nn.utils.get_total_norm(gradients) if gradients else torch.zeros_like(loss)
        if self._clip > 0:
            nn.utils.clip_grads_with_norm_(self._parameters, self._clip, norm)
        self._move(loss + kept, norm)
        return StepMetrics(loss, norm, kept)

    def unfinished(self) -> UnfinishedStep:
        """Return what ``take`` and gradients have left for ``finish``."""
        return UnfinishedStep(self._loss, self._kept, [one.grad for one in self._parameters])

    def resume(self, pending: UnfinishedStep) -> None:
        """Put back what ``pending`` returned: a replayed pass computes it anew in its place."""
        self._loss, self._kept = pending.loss, pending.preservation_loss
        for parameter, gradient in zip(self._parameters, pending.gradients, strict=True):
            parameter.grad = gradient

    def failed_step(self) -> int | None:
        """Return the first call (from 0) that was not finite, or None; waits for the device."""
        failed = int(self._failed)
        return None if failed < 0 else failed

    def _gradients(self, *losses: torch.Tensor) -> list[torch.Tensor]:
        """Return all gradients, summed over processes like the losses."""
        if self._exchange is None:
            gradients = [p.grad for p in self._parameters if p.grad is not None]
            if gradients:
                return gradients  # otherwise gates were shut for every picture of the batch
        for parameter in self._parameters:  # all processes must exchange the same
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if self._exchange is not None:
            self._exchange([*losses, *gradients])
        return gradients

    def _move(self, loss: torch.Tensor, norm: torch.Tensor) -> None:
        if self._scaler is not None:
            self._move_scaled(self._scaler, loss)
            return
        self._guard(loss.isfinite() & norm.isfinite())
        if self._skips_itself or self.failed_step() is None:
            self._optimizer.step()

    def _move_scaled(self, scaler: torch.amp.GradScaler, loss: torch.Tensor) -> None:
        """Under loss scaling an overflowing gradient is normal: that step is skipped."""
        overflows = loss.new_tensor(scaler.get_scale() < _SMALLEST_SCALE, dtype=torch.bool)
        self._guard(loss.isfinite() & ~overflows)
        if self.failed_step() is None:
            scaler.step(self._optimizer)
        scaler.update()

    def _guard(self, good: torch.Tensor) -> None:
        bad = ~good & (self._failed < 0)
        self._failed.copy_(torch.where(bad, self._done, self._failed))
        self._skip.copy_(self._failed >= 0)
        self._done += 1
