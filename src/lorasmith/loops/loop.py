"""The frame of a pretraining loop: devices, steps, logging, checkpoints, interruptions.

A loop reads::

    loop = Loop(settings, "U-Net")
    model = loop.add("unet", unet, ema=True)

    def learn(part):
        loss = loss_of(model, part)
        loop.backward(loss)
        loop.note(loss=loss)

    for step in loop.steps():
        loop.learn(step, order.batch(step), learn)

Everything random is drawn from ``part.draws``, whose seed is a function of the run's seed, the
step and the process, so a resumed run repeats exactly what an uninterrupted one does.
"""

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from lorasmith.config.pretrain import LoopSettings
from lorasmith.core.device import seed_of
from lorasmith.core.errors import ConfigError, OutputError, TrainingError, WeightsError
from lorasmith.core.files import writable_folder
from lorasmith.loops.checkpoint import (
    Checkpoint,
    latest_checkpoint,
    pack_optimizer,
    save_checkpoint,
    unpack_optimizer,
)
from lorasmith.loops.ema import Ema
from lorasmith.loops.graph import StepGraph
from lorasmith.loops.interrupt import stop_on_interrupt
from lorasmith.loops.optim import adamw, set_learning_rate
from lorasmith.loops.progress import progress_bar
from lorasmith.loops.schedule import lr_scale
from lorasmith.loops.track import Tracker


class Interrupted(KeyboardInterrupt):
    """The run was stopped on request, after a checkpoint was saved."""


@dataclass
class Part:
    """This process's share of one accumulation part of a step."""

    numbers: torch.Tensor
    """Row numbers, int64 ``[B]``, on the training device."""
    draws: torch.Generator
    """Where this part's random numbers come from, on the training device."""


@dataclass
class Trained:
    """A network, its optimizer and its average."""

    module: nn.Module
    wrapped: nn.Module
    optimizer: Any
    learning_rate: float
    ema: Ema | None


class Loop:
    """What the three pretraining loops share."""

    def __init__(self, settings: LoopSettings, title: str, resume: bool = False) -> None:
        self.settings = settings
        self.title = title
        self.out = settings.out
        self._trained: dict[str, Trained] = {}
        self._figures: dict[str, torch.Tensor] = {}
        self._graph: tuple[Hashable, torch.Tensor, StepGraph] | None = None
        self.accelerator = Accelerator(
            mixed_precision=settings.precision, cpu=settings.device == "cpu"
        )
        self._check_batch(settings.batch_size)
        self._check_graph()
        self._draws = torch.Generator(self.device)
        self.main = self.accelerator.is_main_process
        if self.main:
            writable_folder(self.out)
        self._found = self._find_checkpoint(resume)

    # --- setting up -----------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.accelerator.device

    def add(
        self, name: str, module: nn.Module, *, ema: bool = False, learning_rate: float | None = None
    ) -> nn.Module:
        """Take a network into the loop; return it wrapped for this run's devices and precision."""
        rate = self.settings.learning_rate if learning_rate is None else learning_rate
        module.to(self.device)
        if self.device.type == "cuda":
            # Tensor cores convolve fastest with channels last; tf32 serves what autocast leaves.
            module.to(memory_format=torch.channels_last)
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.benchmark = True
        if self.settings.compile:
            module.compile()
        optimizer = adamw([module], rate, self.settings.weight_decay)
        wrapped, prepared = self.accelerator.prepare(module, optimizer)
        average = Ema(module, self.settings.ema) if ema and self.settings.ema > 0 else None
        self._trained[name] = Trained(module, wrapped, prepared, rate, average)
        return wrapped  # type: ignore[no-any-return]

    def _check_batch(self, batch_size: int) -> None:
        parts = self.accelerator.num_processes * self.settings.accumulate
        if batch_size % parts:
            raise ConfigError(
                f"loop.batch_size: {batch_size} does not divide into {self.accelerator.num_processes} "
                f"processes x {self.settings.accumulate} accumulated parts"
            )

    def _check_graph(self) -> None:
        if not self.settings.graph:
            return
        if self.device.type != "cuda" or self.accelerator.num_processes > 1:
            raise ConfigError("loop.graph: a CUDA graph needs exactly one CUDA GPU; set it to false")
        if self.settings.precision == "fp16":
            raise ConfigError("loop.graph: fp16 loss scaling cannot be recorded; use bf16 or no")

    def _find_checkpoint(self, resume: bool) -> Checkpoint | None:
        found = latest_checkpoint(self.out / "checkpoints")
        if found is not None and not resume:
            raise OutputError(f"{self.out} already holds a run; continue it with --resume or choose another loop.out")
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
            Tracker(self.out, self.settings.tensorboard, enabled=self.main) as tracker,
            progress_bar(self.title, total, first, enabled=self.main) as advance,
            stop_on_interrupt() as request,
        ):
            clock, seen = time.perf_counter(), 0
            for step in range(first, total):
                self._set_rates(step)
                yield step
                seen += 1
                done = step + 1
                due = done % self.settings.log_every == 0 or done == total
                if due:
                    figures = self._read_figures(step)
                    speed = seen * self.settings.batch_size / (time.perf_counter() - clock)
                    tracker.log(done, {**figures, "lr": self._rate(step), "images_per_s": speed})
                    advance(seen, f"loss {figures.get('loss', 0.0):.4f}  {speed:.0f} img/s")
                    clock, seen = time.perf_counter(), 0
                stopping = self._agree(request.asked or time.perf_counter() > deadline, due)
                if stopping or done == total or done % self.settings.checkpoint_every == 0:
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
        mine = numbers.view(self.settings.accumulate, world, -1)[:, rank]
        self._draws.manual_seed(seed_of(self.settings.seed, step, rank))
        names = list(self._trained) if moved is None else list(moved)
        if not self.settings.graph:
            self._do_step(mine.to(self.device), one_part, names)
            return
        if self._graph is None or self._graph[0] != (variant, mine.shape):
            held = mine.to(self.device)
            graph = StepGraph(lambda: self._do_step(held, one_part, names), self._draws)
            self._graph = ((variant, mine.shape), held, graph)
        self._graph[1].copy_(mine)
        self._graph[2]()

    def _do_step(
        self, numbers: torch.Tensor, one_part: Callable[[Part], None], names: Sequence[str]
    ) -> None:
        for index, piece in enumerate(numbers):
            with ExitStack() as stack:
                if index < len(numbers) - 1:  # gradients cross between processes with the last part
                    for trained in self._trained.values():
                        stack.enter_context(self.accelerator.no_sync(trained.wrapped))
                one_part(Part(piece, self._draws))
        for name in names:
            self._update(name)

    def backward(self, loss: torch.Tensor) -> None:
        """Add this part's gradients."""
        self.accelerator.backward(loss / self.settings.accumulate)

    def note(self, **figures: torch.Tensor) -> None:
        """Keep figures of this step (device scalars) for the next line of the log."""
        self._figures.update({name: value.detach() for name, value in figures.items()})

    def figure(self, name: str) -> float:
        """Read one noted figure; this waits for the device."""
        return float(self._figures[name])

    def _update(self, name: str) -> None:
        """Clip the gradients of one network, move its weights and its average."""
        trained = self._trained[name]
        norm = self.accelerator.clip_grad_norm_(trained.module.parameters(), self.settings.clip)
        if norm is not None:
            self._figures[f"grad_norm/{name}"] = torch.as_tensor(norm).detach()
        trained.optimizer.step()
        trained.optimizer.zero_grad(set_to_none=True)
        if trained.ema is not None:
            trained.ema.update()

    # --- results --------------------------------------------------------------------------

    def averaged(self, name: str) -> AbstractContextManager[None]:
        """Return a context in which a network holds its averaged weights, if it has any."""
        ema = self._trained[name].ema
        return nullcontext() if ema is None else ema.applied()

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
                packed, state[name] = pack_optimizer(trained.optimizer)
                parts = {f"module/{k}": v for k, v in trained.module.state_dict().items()} | packed
                if trained.ema is not None:
                    parts |= {f"ema/{k}": v for k, v in trained.ema.state_dict().items()}
                tensors |= {f"{name}/{k}": v for k, v in parts.items()}
            scaler = self.accelerator.scaler
            state["scaler"] = scaler.state_dict() if scaler is not None else None
            save_checkpoint(self.out / "checkpoints", step, tensors, state, self.settings.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    # --- inside ---------------------------------------------------------------------------

    def _restore(self) -> int:
        if self._found is None:
            return 0
        for name, trained in self._trained.items():
            own = {
                key.removeprefix(f"{name}/"): value
                for key, value in self._found.tensors.items()
                if key.startswith(f"{name}/")
            }
            try:
                trained.module.load_state_dict(_under("module/", own))
                if trained.ema is not None:
                    trained.ema.load_state_dict(_under("ema/", own))
            except (RuntimeError, KeyError) as error:
                raise WeightsError(
                    f"{self.out}: the checkpoint does not fit these settings ({str(error)[:200]})"
                ) from error
            unpack_optimizer(trained.optimizer, own, self._found.state[name])
        if self.accelerator.scaler is not None and self._found.state.get("scaler"):
            self.accelerator.scaler.load_state_dict(self._found.state["scaler"])
        step = self._found.step
        self._found = None  # frees the tensors
        return step

    def _rate(self, step: int) -> float:
        s = self.settings
        return s.learning_rate * lr_scale(step, s.steps, s.warmup, s.floor, s.schedule)

    def _set_rates(self, step: int) -> None:
        factor = self._rate(step) / self.settings.learning_rate
        for trained in self._trained.values():
            set_learning_rate(trained.optimizer, trained.learning_rate * factor)

    def _read_figures(self, step: int) -> dict[str, float]:
        figures = {name: float(value) for name, value in self._figures.items()}
        # A gradient norm may overflow under fp16: the scaler skips that step by itself.
        scaled = self.accelerator.scaler is not None
        bad = [
            name
            for name, value in figures.items()
            if not torch.isfinite(torch.tensor(value)) and not (scaled and name.startswith("grad_norm"))
        ]
        if bad:
            raise TrainingError(
                f"{bad[0]} is not finite at step {step}; the last checkpoint is intact: lower "
                "loop.learning_rate or raise loop.warmup, and --resume"
            )
        return figures

    def _deadline(self) -> float:
        minutes = self.settings.stop_after_minutes
        return float("inf") if minutes is None else time.perf_counter() + 60.0 * minutes

    def _agree(self, stop: bool, due: bool) -> bool:
        """Let all processes stop at the same step when any of them wants to."""
        if self.accelerator.num_processes == 1:
            return stop
        if not due:  # asking the others waits for the device, so it is done at log lines only
            return False
        wish = torch.tensor([int(stop)], device=self.device)
        return bool(self.accelerator.reduce(wish, reduction="sum").item() > 0)


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
