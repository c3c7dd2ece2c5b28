"""One optimizer step of one LoRA: loss, gradients, clipping, optimizer.

With a fused optimizer no value on the device is read on the host, so that the step can be captured
as a CUDA graph: a batch holds all that changes from step to step, and even the check for values
that are not finite runs on the device. Other optimizers, and the loss scaling of fp16, read values
on the host.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from lorasmith.config.optimization import LossConfig
from lorasmith.core.errors import ConfigError
from lorasmith.loops.optimization.optimizers import skips_on_found_inf
from lorasmith.models.noise_schedule import NoiseSchedule
from lorasmith.training.data.batch import Batch, concat_batches
from lorasmith.training.losses import LossContext, LossFn, Noise, diffusion_loss, weighted_mean
from lorasmith.training.step.denoiser import Denoiser
from lorasmith.training.step.gating import GateRouting, set_gates

AllReduce = Callable[[Sequence[torch.Tensor]], None]
"""Replaces tensors by their sums over all processes."""

_MIN_LOSS_SCALE = 2.0**-10
"""With a loss scale below this, gradients overflow whatever is done."""


class StepMetrics(NamedTuple):
    """What a step measured: float32 scalars on the device, and plain numbers."""

    loss: torch.Tensor
    """The training loss."""
    grad_norm: torch.Tensor
    """Norm of the gradient before clipping."""
    preservation_loss: torch.Tensor | None = None
    """The preservation loss, in steps that have it."""
    images: int = 0
    """How many images the step trained on."""
    seconds: float = 0.0
    """Time of the step on the host. A GPU works behind the host: only the sum up to a logged step,
    which waits for it, is the GPU's time as well."""


class UnfinishedStep(NamedTuple):
    """A step whose gradients are there and whose optimizer has not moved."""

    loss: torch.Tensor
    preservation_loss: torch.Tensor
    gradients: list[torch.Tensor | None]


class DiffusionLoss(NamedTuple):
    """The loss of one LoRA: the network, its noise schedule, and a loss function."""

    denoiser: Denoiser
    process: NoiseSchedule
    settings: LossConfig
    routing: GateRouting | None = None
    """The gates that batches set; None leaves all gates as they are."""
    loss_fn: LossFn = diffusion_loss
    """Turns predictions into losses."""


class LossInput(NamedTuple):
    """One LoRA's share of a pass of the model."""

    loss: DiffusionLoss
    batch: Batch
    noise: Noise


def compute_loss(loss: DiffusionLoss, batch: Batch, noise: Noise) -> torch.Tensor:
    """Return the loss of each image, float32 ``[B]``, without its weight."""
    return compute_losses([LossInput(loss, batch, noise)])[0]


def compute_losses(inputs: Sequence[LossInput]) -> list[torch.Tensor]:
    """Return the losses of the batches of one or several LoRAs from one pass of the model.

    Every image goes through its own LoRA only, so that the results are those of separate passes.
    The gates stay as the last pass set them until gradients are computed.

    Args:
        inputs: batches of one task and one shape of latents.

    Returns:
        for each input the loss of each image, float32 ``[B]``, without its weight.
    """
    denoiser = inputs[0].loss.denoiser
    noisy = torch.cat([_add_noise(item) for item in inputs])
    timesteps = torch.cat([item.noise.timesteps for item in inputs])
    batch = concat_batches([item.batch for item in inputs])
    sizes = [len(item.batch.latents) for item in inputs]

    def predict(base: bool) -> Sequence[torch.Tensor]:
        routings = [(item.loss.routing, item.batch) for item in inputs if item.loss.routing]
        set_gates(routings, base)
        return torch.split(denoiser(noisy, timesteps, batch), sizes)

    if inputs[0].batch.task == "train":
        predictions = predict(base=False)
        return [_apply_loss_fn(*pair) for pair in zip(inputs, predictions, strict=True)]
    with torch.no_grad():
        targets = predict(base=True)
    # The pass with gradients comes last: checkpointed blocks run again, under its gates.
    return [
        (prediction.float() - target.float()).square().mean(dim=(1, 2, 3))
        for prediction, target in zip(predict(base=False), targets, strict=True)
    ]


def _add_noise(item: LossInput) -> torch.Tensor:
    return item.loss.process.add_noise(item.batch.latents, item.noise.noise, item.noise.timesteps)


def _apply_loss_fn(item: LossInput, prediction: torch.Tensor) -> torch.Tensor:
    loss, batch, noise = item
    context = LossContext(
        prediction=prediction,
        target=loss.process.training_target(batch.latents, noise.noise, noise.timesteps),
        noise=noise.noise,
        timesteps=noise.timesteps,
        latents=batch.latents,
        weights=batch.loss_weights,
        mask=batch.loss_mask,
        process=loss.process,
        settings=loss.settings,
    )
    losses = loss.loss_fn(context)
    if not isinstance(losses, torch.Tensor):
        raise ConfigError(
            f"loss_fn: it returned {type(losses).__name__}; return one loss for each image, a "
            f"tensor of shape {list(batch.loss_weights.shape)}"
        )
    if losses.shape != batch.loss_weights.shape:
        raise ConfigError(
            f"loss_fn: it returned shape {list(losses.shape)}; return one loss for each image, "
            f"shape {list(batch.loss_weights.shape)}"
        )
    return losses


def backward(loss: torch.Tensor) -> None:
    """Add gradients, unless no adapter is active for any image of the loss."""
    if loss.requires_grad:
        torch.autograd.backward(loss)


class FiniteGuard:
    """Stops an optimizer from the first step on whose loss or gradient is not finite.

    The weights stay those of the step before, however late `failed_step` is asked.
    """

    def __init__(self, device: torch.device, optimizer: torch.optim.Optimizer | None) -> None:
        """Watch the steps of an optimizer.

        Args:
            device: where the gradients are.
            optimizer: given a flag on the device by which it skips steps, if it knows such a flag;
                None where a gradient scaler uses that flag.
        """
        self.skips_on_device = optimizer is not None and skips_on_found_inf(optimizer)
        self._steps = torch.zeros((), dtype=torch.int64, device=device)
        self._failed_step = torch.full((), -1, dtype=torch.int64, device=device)
        self._skip = torch.zeros((), device=device)
        if optimizer is not None and self.skips_on_device:
            optimizer.found_inf = self._skip  # type: ignore[attr-defined]

    def check(self, is_finite: torch.Tensor) -> None:
        """Count a step; remember it if it is the first that is not finite (bool scalar)."""
        fails = ~is_finite & (self._failed_step < 0)
        self._failed_step.copy_(torch.where(fails, self._steps, self._failed_step))
        self._skip.copy_(self._failed_step >= 0)
        self._steps += 1

    def failed_step(self) -> int | None:
        """Return the first step (from 0) that was not finite, or None; waits for the device."""
        step = int(self._failed_step)
        return None if step < 0 else step


def clip_and_step(
    parameters: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    max_grad_norm: float,
    loss: torch.Tensor,
    guard: FiniteGuard,
    scaler: torch.amp.GradScaler | None = None,
) -> torch.Tensor:
    """Clip gradients and move the weights, unless a value is or was not finite.

    Args:
        parameters: what is trained; gradients may be missing.
        optimizer: moves the weights.
        max_grad_norm: largest norm of the gradient; 0 does not clip.
        loss: the step's loss, a scalar.
        guard: remembers the first step that is not finite, from which on nothing moves.
        scaler: fp16's loss scaling; a step whose gradients overflow is skipped, not an error.

    Returns:
        the norm of the gradient before clipping, a scalar.
    """
    if scaler is not None:
        scaler.unscale_(optimizer)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients) if gradients else torch.zeros_like(loss)
    if max_grad_norm > 0:
        nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
    if scaler is not None:
        _step_scaled(optimizer, scaler, loss, guard)
        return norm
    guard.check(loss.isfinite() & norm.isfinite())
    if guard.skips_on_device or guard.failed_step() is None:
        optimizer.step()
    return norm


def _step_scaled(
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    loss: torch.Tensor,
    guard: FiniteGuard,
) -> None:
    """Under loss scaling an overflowing gradient is normal: that step is skipped."""
    overflows = loss.new_tensor(scaler.get_scale() < _MIN_LOSS_SCALE, dtype=torch.bool)
    guard.check(loss.isfinite() & ~overflows)
    if guard.failed_step() is None:
        scaler.step(optimizer)
    scaler.update()


class TrainStep:
    """The optimizer steps of one LoRA, piece by piece.

    `begin`, then `accumulate_loss` and `backward` for each microbatch, then `finish`.
    """

    def __init__(
        self,
        loss: DiffusionLoss,
        parameters: list[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        max_grad_norm: float,
        all_reduce: AllReduce | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        """Create a step.

        Args:
            loss: the loss.
            parameters: what is trained.
            optimizer: moves them.
            max_grad_norm: largest norm of the gradient; 0 does not clip.
            all_reduce: sums gradients over processes; None for a single process.
            scaler: fp16's loss scaling.
        """
        self.loss = loss
        self._parameters = parameters
        self._optimizer = optimizer
        self._max_grad_norm = max_grad_norm
        self._all_reduce = all_reduce
        self._scaler = scaler
        self._device = parameters[0].device
        self._guard = FiniteGuard(self._device, optimizer if scaler is None else None)
        self._loss = self._preservation_loss = torch.zeros((), device=self._device)

    @property
    def is_sync_free(self) -> bool:
        """Whether ``finish`` waits for neither the device nor other processes."""
        return self._guard.skips_on_device and self._all_reduce is None

    def begin(self) -> None:
        """Start a step: no loss and no gradients."""
        self.zero_grad()
        self._loss = torch.zeros((), device=self._device)
        self._preservation_loss = torch.zeros((), device=self._device)

    def zero_grad(self) -> None:
        """Drop the gradients of the last step."""
        self._optimizer.zero_grad(set_to_none=True)

    def accumulate_loss(self, batch: Batch, losses: torch.Tensor, batch_size: int) -> torch.Tensor:
        """Add a microbatch's losses to the step's; return the scalar to call ``backward`` with.

        Args:
            batch: the microbatch.
            losses: of each of its images, ``[B]``.
            batch_size: images of the whole step, over all microbatches and processes.
        """
        contribution = weighted_mean(losses, batch.loss_weights, batch_size)
        if batch.task == "train":
            self._loss = self._loss + contribution.detach()
        else:
            self._preservation_loss = self._preservation_loss + contribution.detach()
        return contribution if self._scaler is None else self._scaler.scale(contribution)

    def finish(self) -> StepMetrics:
        """Clip the gradients and move the weights, unless a value is not finite."""
        loss, preservation_loss = self._loss, self._preservation_loss
        self._complete_gradients(loss, preservation_loss)
        norm = clip_and_step(
            self._parameters,
            self._optimizer,
            self._max_grad_norm,
            loss + preservation_loss,
            self._guard,
            self._scaler,
        )
        return StepMetrics(loss, norm, preservation_loss)

    def unfinished(self) -> UnfinishedStep:
        """Return what the step is before ``finish``."""
        gradients = [parameter.grad for parameter in self._parameters]
        return UnfinishedStep(self._loss, self._preservation_loss, gradients)

    def resume(self, step: UnfinishedStep) -> None:
        """Put back an unfinished step: a replayed CUDA graph wrote new values into its tensors."""
        self._loss, self._preservation_loss = step.loss, step.preservation_loss
        for parameter, gradient in zip(self._parameters, step.gradients, strict=True):
            parameter.grad = gradient

    def failed_step(self) -> int | None:
        """Return the first step (from 0) that was not finite, or None; waits for the device."""
        return self._guard.failed_step()

    def _complete_gradients(self, *losses: torch.Tensor) -> None:
        """Give every parameter a gradient where one is needed; sum over processes."""
        if self._all_reduce is None and any(p.grad is not None for p in self._parameters):
            return  # otherwise the gates were closed for every image of the batch
        for parameter in self._parameters:  # all processes must reduce the same tensors
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self._all_reduce is not None:
            gradients = [p.grad for p in self._parameters if p.grad is not None]
            self._all_reduce([*losses, *gradients])
