"""Optimizer steps of one feature or of several at once: one pass of the model, and an optimizer for
each feature. On a GPU they are recorded and replayed.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import fields, replace
from itertools import groupby, zip_longest
from typing import Any, NamedTuple

import torch

from lorasmith.loops.cuda_graphs import CudaGraphCache
from lorasmith.loops.progress import tell
from lorasmith.ops.streams import run_concurrently
from lorasmith.training.acceleration.factor_cache import build_factor_cache
from lorasmith.training.acceleration.patcher import UNetPatcher
from lorasmith.training.acceleration.plan import (
    ExecutionPlan,
    configure_activation_checkpointing,
    plan_execution,
    workload_of,
)
from lorasmith.training.data.batch import Batch
from lorasmith.training.losses import Noise
from lorasmith.training.state import TrainerState
from lorasmith.training.train_step import (
    LossInput,
    StepMetrics,
    UnfinishedStep,
    backward,
    compute_losses,
)


class Microbatch(NamedTuple):
    """What one feature brings to one of a step's passes."""

    lora_index: int
    """Number of the feature."""
    turn: int
    """Parts of one turn may share a pass."""
    batch_size: int
    """Size of the feature's whole batch."""
    batch: Batch
    noise: Noise


class JointTrainStep:
    """Takes the steps of some features.

    Each takes the step that it would take by itself: its own pictures and random numbers, the mean
    over its own batch, clipped by its own norm, with its own optimizer. What they share is the
    pass of the frozen model. (Adapter dropout is the exception: its numbers are drawn for the
    pass as a whole.)

    Recorded are passes and gradients, and where nothing in it asks the device (AdamW, one process,
    no loss scaling) the optimizer too. Pictures and noise are drawn outside.
    """

    def __init__(self, sessions: Sequence[TrainerState], plan: ExecutionPlan | None = None) -> None:
        """Prepare for steps of some features.

        Args:
            sessions: the features.
            plan: how steps are executed; None decides by the settings.

        Raises:
            ConfigError: the settings' memory is too little.
        """
        train, unet = sessions[0].run.train, sessions[0].model.unet
        plan = plan or plan_execution(train, workload_of(sessions))
        self._patcher = UNetPatcher(unet, fp8=plan.fp8)
        self._sessions = tuple(sessions)
        self._steps = [one.train_step for one in sessions]
        trained = [one for each in sessions for one in each.trainable.adapters.values()]
        self._casts = build_factor_cache(unet, trained)
        self._to_the_end = all(one.is_sync_free for one in self._steps)
        self._graphs = CudaGraphCache(sessions[0].device, plan.use_cuda_graphs)
        message = configure_activation_checkpointing(
            unet,
            train,
            sum(one.numel() for each in sessions for one in each.trainable.parameters()),
            any(one.run.lora.dropout > 0 for one in sessions),
            lambda: self._try(_largest(sessions)),
        )
        if plan.compile_blocks:  # not for the trials, each of which would be compiled anew
            self._patcher.compile()
        if sessions[0].is_main:
            tell(*plan.messages, *([message] if message else []))

    @property
    def graph_count(self) -> int:
        """How many recordings of steps there are."""
        return len(self._graphs)

    def step(self) -> list[tuple[StepMetrics, int]]:
        """Take the next step; return each feature's figures and how many pictures it had."""
        numbers = [one.begin_step() for one in self._sessions]
        parts = list(_parts(self._sessions, numbers))
        for step in self._steps:
            step.zero_grad()  # a recording has memory of its own for gradients
        with self._sessions[0].clock:
            figures = self._whole(parts) if self._to_the_end else self._in_two(parts)
        return [
            (session.on_step_end(_apart(own)), len(its))
            for session, own, its in zip(self._sessions, figures, numbers, strict=True)
        ]

    def _whole(self, parts: Sequence[Microbatch]) -> list[StepMetrics]:
        """Take a step in one piece."""

        def work(inputs: Sequence[torch.Tensor]) -> list[StepMetrics]:
            self._pass(_with_inputs(parts, inputs))
            return run_concurrently([one.finish for one in self._steps], inputs[0])

        return self._graphs(_key(parts), _inputs(parts), work)

    def _in_two(self, parts: Sequence[Microbatch]) -> list[StepMetrics]:
        """Take a step whose optimizer has questions: only what comes before is recorded."""

        def work(inputs: Sequence[torch.Tensor]) -> list[UnfinishedStep]:
            self._pass(_with_inputs(parts, inputs))
            return [one.unfinished() for one in self._steps]

        pending = self._graphs(_key(parts), _inputs(parts), work)
        for step, own in zip(self._steps, pending, strict=True):
            step.resume(own)
        return [step.finish() for step in self._steps]

    def _pass(self, parts: Sequence[Microbatch]) -> None:
        """Compute the gradients of a step."""
        with self._patcher.fallback_to_eager(lambda: self._pass(parts)), self._patcher.patched():
            for step in self._steps:
                step.begin()
            self._casts.refresh()
            try:
                for group in _alike(parts):
                    backward(self._loss_of(group))
            finally:
                self._casts.clear()

    def _try(self, parts: Sequence[Microbatch]) -> None:
        """Compute the gradients of a step for nothing."""
        self._pass(parts)
        for step in self._steps:
            step.zero_grad()

    def _loss_of(self, parts: Sequence[Microbatch]) -> torch.Tensor:
        """Return the sum of the features' losses: no feature's weights are in another's loss."""
        steps = [self._steps[one.lora_index] for one in parts]
        shares: list[LossInput] = [
            step.share(one.batch, one.noise) for step, one in zip(steps, parts, strict=True)
        ]
        losses = [
            step.accumulate_loss(one.batch, own, one.batch_size)
            for step, one, own in zip(steps, parts, compute_losses(shares), strict=True)
        ]
        return torch.stack(losses).sum()


def _largest(sessions: Sequence[TrainerState]) -> list[Microbatch]:
    """Return the parts of a step that needs as much memory as any of the first epoch."""

    def most(session: TrainerState) -> torch.Tensor:
        order, placements = session.dataset.batch_sampler, session.dataset.assignments
        batches = (order.get_batch(step) for step in range(order.steps_per_epoch))
        return max(batches, key=lambda own: len(own) * placements[int(own[0])].bucket.area)

    return list(_parts(sessions, [most(one) for one in sessions]))


def _parts(
    sessions: Sequence[TrainerState], numbers: Sequence[torch.Tensor]
) -> Iterator[Microbatch]:
    """Yield the parts of all features, turn by turn; some features have more than others."""
    every = [one.microbatches(own) for one, own in zip(sessions, numbers, strict=True)]
    for turn, parts in enumerate(zip_longest(*every)):
        for owner, part in enumerate(parts):
            if part is not None:
                yield Microbatch(owner, turn, len(numbers[owner]), *part)


def _alike(parts: Sequence[Microbatch]) -> Iterator[list[Microbatch]]:
    """Yield parts that one pass can do: of one turn and task, latents and texts of one shape."""
    for _, turn in groupby(parts, key=lambda one: one.turn):
        groups: dict[tuple[str, torch.Size, int], list[Microbatch]] = {}
        for one in turn:
            kind = one.batch.task, one.batch.latents.shape[1:], one.batch.text_length
            groups.setdefault(kind, []).append(one)
        yield from groups.values()


def _apart(figures: StepMetrics) -> StepMetrics:
    """Return figures that the next replay leaves alone."""
    kept = figures.loss if figures.preservation_loss is None else figures.preservation_loss
    return StepMetrics(*torch.stack([figures.loss, figures.grad_norm, kept]).unbind())


# --- what a recording is told apart by, and what it is given anew ------------------------------

_ON_HOST = "indices"
"""The field of a batch that is for messages and stays on the CPU."""
_TENSORS = [one.name for one in fields(Batch) if one.name != _ON_HOST]


def _key(parts: Sequence[Microbatch]) -> Hashable:
    """Return everything about some parts but the values of their tensors on the device."""
    told = []
    for one in parts:
        values = [_told(getattr(one.batch, name)) for name in _TENSORS]
        told.append((one.lora_index, one.turn, one.batch_size, *values, *map(_told, one.noise)))
    return tuple(told)


def _told(value: Any) -> Hashable:
    if isinstance(value, torch.Tensor):
        return value.shape, value.dtype
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_told(one) for one in value)
    plain: Hashable = value
    return plain


def _inputs(parts: Sequence[Microbatch]) -> list[torch.Tensor]:
    """Return the tensors of some parts, always in the same order."""
    found = []
    for one in parts:
        values = [getattr(one.batch, name) for name in _TENSORS]
        found += [value for value in (*values, *one.noise) if isinstance(value, torch.Tensor)]
    return found


def _with_inputs(parts: Sequence[Microbatch], inputs: Sequence[torch.Tensor]) -> list[Microbatch]:
    """Return parts that have other tensors, in the order of ``_inputs``."""
    left = iter(inputs)

    def renewed(one: Microbatch) -> Microbatch:
        values = {name: getattr(one.batch, name) for name in _TENSORS}
        new: dict[str, Any] = {
            name: next(left) for name, value in values.items() if isinstance(value, torch.Tensor)
        }
        drawn = Noise(*(next(left) for _ in Noise._fields))
        return one._replace(batch=replace(one.batch, **new), noise=drawn)

    return [renewed(one) for one in parts]
