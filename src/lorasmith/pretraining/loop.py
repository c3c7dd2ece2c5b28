"""The frame of a pretraining loop: devices, steps, logging, checkpoints, interruptions.

A loop reads::

    loop = Loop(settings, "U-Net")
    model = loop.add("unet", unet, ema=True)

    def learn(part):
        loss = loss_of(model, part)
        loop.backward(loss)
        loop.note(loss=loss)

    for step in loop.steps():
        loop.learn(step, sampler.get_batch(step), learn)

Everything random is drawn from ``part.draws``, a function of the run's seed, the step and a
picture's place in the batch. A resumed run therefore repeats exactly what an uninterrupted one
does, and several processes or accumulated parts do what one would.
"""

import math
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lorasmith.config.pretrain import PretrainTrainerConfig
from lorasmith.core.batch_rng import BatchRng
from lorasmith.core.device import derive_seed
from lorasmith.core.errors import OutputError, TrainingError, WeightsError
from lorasmith.core.files import ensure_writable_folder
from lorasmith.loops.checkpoint import (
    CHECKPOINTS,
    Checkpoint,
    load_latest_checkpoint,
    save_checkpoint,
)
from lorasmith.loops.distributed import any_process, create_accelerator
from lorasmith.loops.ema import Ema
from lorasmith.loops.interrupt import stop_on_interrupt
from lorasmith.loops.lr_schedule import lr_factor
from lorasmith.loops.optimized_module import OptimizedModule, select_prefix
from lorasmith.loops.progress import progress_bar
from lorasmith.loops.tracking import Tracker
from lorasmith.pretraining.optimizer import adamw, set_learning_rate
from lorasmith.pretraining.step_graph import StepGraph


class Interrupted(KeyboardInterrupt):
    """The run was stopped on request, after a checkpoint was saved."""


@dataclass
class Part:
    """This process's share of one accumulation part of a step."""

    numbers: torch.Tensor
    """Row numbers, int64 ``[B]``, on the training device."""
    draws: BatchRng
    """Where this part's random numbers come from, on the training device."""


class Loop:
    """What the three pretraining loops share."""

    def __init__(self, settings: PretrainTrainerConfig, title: str, resume: bool = False) -> None:
        self.settings = settings
        self.title = title
        self.out = settings.output_dir
        self._trained: dict[str, OptimizedModule] = {}
        self._figures: dict[str, torch.Tensor] = {}
        self._noted: dict[str, torch.Tensor] = {}  # of the step under way
        self._graph: tuple[Hashable, torch.Tensor, StepGraph] | None = None
        self._seen = 0  # pictures since the last line of the log
        self.accelerator = create_accelerator(
            settings.mixed_precision, settings.device, "train", settings.cuda_graph
        )
        self._generators = [
            torch.Generator(self.device) for _ in range(settings.gradient_accumulation_steps)
        ]
        self.main: bool = self.accelerator.is_main_process
        if self.main:
            ensure_writable_folder(self.out)
        self._found = self._find_checkpoint(resume)

    # --- setting up -----------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return torch.device(self.accelerator.device)

    def add(
        self, name: str, module: nn.Module, *, ema: bool = False, learning_rate: float | None = None
    ) -> nn.Module:
        """Take a network into the loop; return it wrapped for this run's devices and precision."""
        rate = self.settings.learning_rate if learning_rate is None else learning_rate
        module.to(self.device)
        if self.device.type == "cuda":
            # Tensor cores convolve fastest with channels last; tf32 serves what autocast leaves.
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.benchmark = True
        if self.settings.compile:
            module.compile()
        optimizer = adamw([module], rate, self.settings.weight_decay)
        wrapped: nn.Module = self.accelerator.prepare(module)
        average = (
            Ema(module, self.settings.ema_decay) if ema and self.settings.ema_decay > 0 else None
        )
        self._trained[name] = OptimizedModule(module, wrapped, optimizer, rate, average)
        return wrapped

    def images_per_step(self, batch_size: int) -> int:
        """Return how many images an optimizer step takes, over accumulation and processes."""
        parts = self.settings.gradient_accumulation_steps
        processes: int = self.accelerator.num_processes
        return batch_size * parts * processes

    def _find_checkpoint(self, resume: bool) -> Checkpoint | None:
        found = load_latest_checkpoint(self.out / CHECKPOINTS)
        if found is not None and not resume:
            raise OutputError(
                f"{self.out} already holds a run; continue it with --resume or choose another "
                "train.output_dir"
            )
        if found is None and resume:
            raise OutputError(f"{self.out} holds no checkpoint to resume from")
        self.accelerator.wait_for_everyone()
        return found

    # --- the loop -------------------------------------------------------------------------

    def steps(self) -> Iterator[int]:
        """Yield the numbers of the steps that are left, doing what is due after each.

        Raises:
            Interrupted: on Ctrl-C or when the time is up, after saving a checkpoint.
            TrainingError: a figure or gradient is no longer finite.
        """
        total, first = self.settings.steps, self._restore()
        deadline = self._deadline()
        with (
            Tracker(self.out, self.settings.tensorboard, self.main, first) as tracker,
            progress_bar(self.title, total, first, enabled=self.main) as advance,
            stop_on_interrupt() as request,
        ):
            clock, logged = time.perf_counter(), first
            for step in range(first, total):
                self._set_rates(step)
                yield step
                done = step + 1
                due = done % self.settings.log_every_n_steps == 0 or done == total
                if due:
                    figures = self._read_figures(step)
                    speed = self._seen / (time.perf_counter() - clock)
                    tracker.log(done, {**figures, "lr": self._rate(step), "images_per_s": speed})
                    advance(
                        done - logged, f"loss {figures.get('loss', 0.0):.4f}  {speed:.0f} img/s"
                    )
                    clock, logged, self._seen = time.perf_counter(), done, 0
                stopping = self._agree(request.is_requested or time.perf_counter() > deadline, due)
                if stopping or done == total or done % self.settings.checkpoint_every_n_steps == 0:
                    self.save(done)
                if stopping and done < total:
                    raise Interrupted(f"stopped after step {done} of {total}; --resume goes on")

    def learn(
        self,
        step: int,
        numbers: torch.Tensor,
        one_part: Callable[[Part], None],
        variant: Hashable = None,
        moved: Sequence[str] | None = None,
    ) -> None:
        """Do one optimizer step.

        Args:
            step: its number, from 0.
            numbers: row numbers of the whole batch, int64, on the CPU.
            one_part: adds the gradients of one part with ``backward``, and notes figures.
            variant: anything that changes what the step does; a change records a new graph.
            moved: the networks that the step moves; all of them by default.
        """
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        mine = numbers.view(self.settings.gradient_accumulation_steps, world, -1)[:, rank]
        for draws in self._generators:
            draws.manual_seed(derive_seed(self.settings.seed, step))
        self._seen += len(numbers)
        names = list(self._trained) if moved is None else list(moved)
        if not self.settings.cuda_graph:
            self._do_step(mine.to(self.device), one_part, names)
            return
        if self._graph is None or self._graph[0] != (variant, mine.shape):
            held = mine.to(self.device)
            graph = StepGraph(lambda: self._do_step(held, one_part, names), self._generators)
            self._graph = ((variant, mine.shape), held, graph)
        self._graph[1].copy_(mine)
        self._graph[2]()

    def _do_step(
        self, numbers: torch.Tensor, one_part: Callable[[Part], None], names: Sequence[str]
    ) -> None:
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        parts, size = numbers.shape
        self._noted = {}
        for index, (piece, draws) in enumerate(zip(numbers, self._generators, strict=True)):
            with ExitStack() as stack:
                if index < parts - 1:  # gradients cross between processes with the last part
                    for trained in self._trained.values():
                        stack.enter_context(self.accelerator.no_sync(trained.prepared))
                first = (index * world + rank) * size
                one_part(Part(piece, BatchRng(draws, parts * world * size, first, size)))
        self._figures |= self._noted
        scaler = self.accelerator.scaler
        for name in names:
            norm = self._trained[name].clip_and_step(self.settings.max_grad_norm, scaler)
            self._figures[f"grad_norm/{name}"] = norm
        if scaler is not None:
            scaler.update()

    def backward(self, loss: torch.Tensor) -> None:
        """Add this part's gradients."""
        self.accelerator.backward(loss / self.settings.gradient_accumulation_steps)

    def note(self, **figures: torch.Tensor) -> None:
        """Keep figures of this part (device scalars); the log shows the mean over all parts."""
        for name, value in figures.items():
            share = value.detach() / self.settings.gradient_accumulation_steps
            self._noted[name] = self._noted[name] + share if name in self._noted else share

    def figure(self, name: str) -> float:
        """Read one figure of the last step in this process; this waits for the device."""
        return float(self._figures[name])

    # --- results --------------------------------------------------------------------------

    def averaged(self, name: str) -> AbstractContextManager[None]:
        """Return a context in which a network holds its averaged weights, if it has any."""
        ema = self._trained[name].ema
        return nullcontext() if ema is None else ema.average_parameters()

    def module(self, name: str) -> Any:
        """Return a network as it was added, without wrappers."""
        return self._trained[name].module

    def has(self, name: str) -> bool:
        """Tell whether a network was added under this name."""
        return name in self._trained

    def has_average(self, name: str) -> bool:
        """Tell whether a network is averaged."""
        return self._trained[name].ema is not None

    def save(self, step: int) -> None:
        """Save a checkpoint (the main process only)."""
        if self.main:
            tensors: dict[str, torch.Tensor] = {}
            state: dict[str, Any] = {}
            for name, trained in self._trained.items():
                packed, state[name] = trained.pack_state()
                tensors |= {f"{name}/{k}": v for k, v in packed.items()}
            scaler = self.accelerator.scaler
            state["scaler"] = scaler.state_dict() if scaler is not None else None
            keep = self.settings.keep_checkpoints
            save_checkpoint(self.out / CHECKPOINTS, step, tensors, state, keep)
        self.accelerator.wait_for_everyone()

    # --- inside ---------------------------------------------------------------------------

    def _restore(self) -> int:
        if self._found is None:
            return 0
        state = self._found.state
        for name, trained in self._trained.items():
            try:
                trained.unpack_state(
                    select_prefix(f"{name}/", self._found.tensors), state.get(name, {})
                )
            except WeightsError as error:
                raise WeightsError(f"{self.out}: {name}: {error}") from error
        if self.accelerator.scaler is not None and state.get("scaler"):
            self.accelerator.scaler.load_state_dict(state["scaler"])
        step = self._found.step
        self._found = None  # frees the tensors
        return step

    def _rate(self, step: int) -> float:
        s = self.settings
        return s.learning_rate * lr_factor(
            step, s.steps, s.lr_warmup_steps, s.lr_scheduler_min_lr_ratio, s.lr_scheduler
        )

    def _set_rates(self, step: int) -> None:
        factor = self._rate(step) / self.settings.learning_rate
        for trained in self._trained.values():
            set_learning_rate(trained.optimizer, trained.learning_rate * factor)

    def _read_figures(self, step: int) -> dict[str, float]:
        noted = torch.stack([value.float() for value in self._figures.values()])
        if self.accelerator.num_processes > 1:
            noted = self.accelerator.reduce(noted, reduction="mean")
        figures = dict(zip(self._figures, noted.tolist(), strict=True))
        # A gradient norm may overflow under fp16: the scaler skips that step by itself.
        scaled = self.accelerator.scaler is not None
        bad = [
            name
            for name, value in figures.items()
            if not math.isfinite(value) and not (scaled and name.startswith("grad_norm"))
        ]
        if bad:
            raise TrainingError(
                f"{bad[0]} is not finite at step {step}; the last checkpoint is intact: lower "
                "train.learning_rate or raise train.lr_warmup_steps, and --resume"
            )
        return figures

    def _deadline(self) -> float:
        minutes = self.settings.stop_after_minutes
        return float("inf") if minutes is None else time.perf_counter() + 60.0 * minutes

    def _agree(self, stop: bool, due: bool) -> bool:
        """Let all processes stop at the same step when any of them wants to."""
        if self.accelerator.num_processes > 1 and not due:
            return False  # asking the others waits for the device: at log lines only
        return any_process(self.accelerator, stop)
