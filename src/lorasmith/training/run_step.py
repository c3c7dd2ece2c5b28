"""Optimizer steps of one LoRA, or of several from one pass of the model for all.

On a GPU the work of a step is captured as a CUDA graph and replayed.
"""

import logging
from collections.abc import Iterator, Sequence
from itertools import zip_longest

import torch

from lorasmith.loops.cuda_graphs import CudaGraphCache
from lorasmith.ops.streams import run_concurrently
from lorasmith.training.acceleration.execution_plan import (
    ExecutionPlan,
    configure_activation_checkpointing,
    plan_execution,
    workload_of,
)
from lorasmith.training.acceleration.factor_cache import build_factor_cache
from lorasmith.training.acceleration.unet_patches import UNetPatcher
from lorasmith.training.state import TrainerState
from lorasmith.training.step.microbatch import (
    Microbatch,
    graph_inputs,
    graph_key,
    group_by_shape,
    replace_inputs,
)
from lorasmith.training.step.train_step import (
    LossInput,
    StepMetrics,
    TrainStep,
    UnfinishedStep,
    backward,
    compute_losses,
)

logger = logging.getLogger(__name__)


def compute_gradients(steps: Sequence[TrainStep], microbatches: Sequence[Microbatch]) -> None:
    """Add the losses and gradients of a step of one or several LoRAs.

    Microbatches of one shape share a pass of the model. No LoRA's weights are in another's loss,
    so that one backward pass of the sum gives each its own gradients.
    """
    for step in steps:
        step.begin()
    for group in group_by_shape(microbatches):
        owners = [steps[microbatch.lora_index] for microbatch in group]
        losses = compute_losses(
            [
                LossInput(step.loss, microbatch.batch, microbatch.noise)
                for step, microbatch in zip(owners, group, strict=True)
            ]
        )
        contributions = [
            step.accumulate_loss(microbatch.batch, image_losses, microbatch.batch_size)
            for step, microbatch, image_losses in zip(owners, group, losses, strict=True)
        ]
        backward(torch.stack(contributions).sum())


class JointTrainStep:
    """Takes the optimizer steps of one or several LoRAs.

    Each LoRA takes the step that it would take alone: its own images and random numbers, the mean
    over its own batch, clipped by its own norm, with its own optimizer. They share the pass of the
    frozen model. (Adapter dropout is the exception: its random numbers are drawn for the whole
    pass.)

    Forward and backward passes are captured as CUDA graphs; so is the optimizer where it reads no
    value on the host (AdamW, one process, no loss scaling). Batches and noise are drawn outside.
    """

    def __init__(self, states: Sequence[TrainerState], plan: ExecutionPlan | None = None) -> None:
        """Prepare for the steps of some LoRAs.

        Args:
            states: the LoRAs in training.
            plan: how steps are executed; None decides by the settings.

        Raises:
            ConfigError: ``train.vram_limit`` is too low.
        """
        train, unet = states[0].train, states[0].model.unet
        plan = plan or plan_execution(train, workload_of(states))
        self._patcher = UNetPatcher(unet, fp8=plan.fp8)
        self._states = tuple(states)
        self._steps = [state.train_step for state in states]
        adapters = [adapter for state in states for adapter in state.trainable.adapters.values()]
        self._factor_cache = build_factor_cache(unet, adapters)
        self._is_sync_free = all(step.is_sync_free for step in self._steps)
        self._graphs = CudaGraphCache(states[0].device, plan.use_cuda_graphs)
        message = configure_activation_checkpointing(
            unet,
            train,
            sum(p.numel() for state in states for p in state.trainable.parameters()),
            any(state.dropout > 0 for state in states),
            lambda: self._dry_run(_largest_step(states)),
        )
        if plan.compile_blocks:  # after the dry runs, each of which would be compiled anew
            self._patcher.compile()
        if states[0].is_main:
            for line in (*plan.messages, *([message] if message else [])):
                logger.info(line)

    @property
    def graph_count(self) -> int:
        """How many CUDA graphs are captured."""
        return len(self._graphs)

    def step(self) -> list[StepMetrics]:
        """Take the next step; return each LoRA's metrics."""
        indices = [state.begin_step() for state in self._states]
        microbatches = list(_draw_microbatches(self._states, indices))
        for step in self._steps:
            step.zero_grad()  # a captured graph has its own memory for gradients
        with self._states[0].gpu_timer:
            metrics = (
                self._step_on_device(microbatches)
                if self._is_sync_free
                else self._step_with_host_optimizer(microbatches)
            )
        return [
            state.on_step_end(_detach(step_metrics)._replace(images=len(image_indices)))
            for state, step_metrics, image_indices in zip(
                self._states, metrics, indices, strict=True
            )
        ]

    def _step_on_device(self, microbatches: Sequence[Microbatch]) -> list[StepMetrics]:
        """Take a step as one piece of work."""

        def work(inputs: Sequence[torch.Tensor]) -> list[StepMetrics]:
            self._compute_gradients(replace_inputs(microbatches, inputs))
            return run_concurrently([step.finish for step in self._steps], inputs[0])

        return self._graphs(graph_key(microbatches), graph_inputs(microbatches), work)

    def _step_with_host_optimizer(self, microbatches: Sequence[Microbatch]) -> list[StepMetrics]:
        """Take a step whose optimizer reads values on the host: only what precedes is captured."""

        def work(inputs: Sequence[torch.Tensor]) -> list[UnfinishedStep]:
            self._compute_gradients(replace_inputs(microbatches, inputs))
            return [step.unfinished() for step in self._steps]

        unfinished = self._graphs(graph_key(microbatches), graph_inputs(microbatches), work)
        for step, own in zip(self._steps, unfinished, strict=True):
            step.resume(own)
        return [step.finish() for step in self._steps]

    def _compute_gradients(self, microbatches: Sequence[Microbatch]) -> None:
        """Compute gradients with the accelerated U-Net."""
        retry = self._patcher.fallback_to_eager(lambda: self._compute_gradients(microbatches))
        with retry, self._patcher.patched():
            self._factor_cache.refresh()
            try:
                compute_gradients(self._steps, microbatches)
            finally:
                self._factor_cache.clear()

    def _dry_run(self, microbatches: Sequence[Microbatch]) -> None:
        """Compute the gradients of a step and drop them."""
        self._compute_gradients(microbatches)
        for step in self._steps:
            step.zero_grad()


def _largest_step(states: Sequence[TrainerState]) -> list[Microbatch]:
    """Return the step of the first epoch that needs the most memory."""

    def largest_batch(state: TrainerState) -> torch.Tensor:
        sampler, assignments = state.dataset.batch_sampler, state.dataset.assignments
        batches = (sampler.get_batch(step) for step in range(sampler.steps_per_epoch))
        return max(batches, key=lambda batch: len(batch) * assignments[int(batch[0])].bucket.area)

    return list(_draw_microbatches(states, [largest_batch(state) for state in states]))


def _draw_microbatches(
    states: Sequence[TrainerState], indices: Sequence[torch.Tensor]
) -> Iterator[Microbatch]:
    """Yield the microbatches of all LoRAs, turn by turn; some LoRAs have more than others."""
    streams = [state.microbatches(own) for state, own in zip(states, indices, strict=True)]
    for turn, items in enumerate(zip_longest(*streams)):
        for lora_index, item in enumerate(items):
            if item is not None:
                yield Microbatch(lora_index, turn, len(indices[lora_index]), *item)


def _detach(metrics: StepMetrics) -> StepMetrics:
    """Return metrics that the next replay of the CUDA graph does not overwrite."""
    preservation_loss = metrics.preservation_loss
    if preservation_loss is None:
        preservation_loss = metrics.loss
    values = torch.stack([metrics.loss, metrics.grad_norm, preservation_loss])
    loss, grad_norm, preservation_loss = values.unbind()
    return metrics._replace(loss=loss, grad_norm=grad_norm, preservation_loss=preservation_loss)
