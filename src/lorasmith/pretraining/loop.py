"""The loop that the pretraining commands share: devices, steps, logging, checkpoints, interruption.

It is used like this::

    with open_loop(settings, "U-Net") as loop:
        unet = loop.add_module("unet", unet, ema=True)

        def compute_gradients(microbatch):
            loss = loss_of(unet, microbatch)
            loop.backward(loss)
            loop.record_metrics(loss=loss)

        for step in loop.steps():
            loop.train_step(step, sampler.get_batch(step), compute_gradients)

All random numbers come from ``microbatch.rng``, a function of the run's seed, the step and an
image's position in the batch. A resumed run therefore repeats exactly what an uninterrupted one
does, and the results do not depend on the number of processes or accumulated microbatches.
"""

import signal
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lorasmith.config.pretrain import PretrainTrainerConfig
from lorasmith.core.batch_rng import BatchRng
from lorasmith.core.device import derive_seed
from lorasmith.core.errors import OutputError, WeightsError
from lorasmith.core.files import ensure_writable_folder
from lorasmith.loops.checkpoint import (
    CHECKPOINTS,
    Checkpoint,
    load_latest_checkpoint,
    remove_leftovers,
    save_checkpoint,
)
from lorasmith.loops.cuda_graphs import CudaGraphCache
from lorasmith.loops.distributed import create_accelerator
from lorasmith.loops.ema import Ema
from lorasmith.loops.optimization.lr_schedule import lr_factor
from lorasmith.loops.optimization.optimized_module import OptimizedModule, select_prefix
from lorasmith.loops.progress import progress_bar
from lorasmith.loops.stop_messages import Interrupted, explain_interruption
from lorasmith.loops.stop_signals import StopAgreement, stop_on_interrupt
from lorasmith.loops.tracking import Tracker
from lorasmith.pretraining.metrics import StepMetrics
from lorasmith.pretraining.optimizer import adamw, set_learning_rate
from lorasmith.runs.run_lock import RunLock, lock_folder

_WARMUP_CALLS = 3
"""Steps before a CUDA graph is captured: an optimizer creates its state in the first of them."""


@dataclass
class Microbatch:
    """One process's share of one accumulation step."""

    indices: torch.Tensor
    """Row indices, int64 ``[B]``, on the training device."""
    rng: BatchRng
    """Its random numbers, on the training device."""


@contextmanager
def open_loop(
    settings: PretrainTrainerConfig, title: str, resume: bool = False, break_lock: bool = False
) -> "Iterator[PretrainLoop]":
    """Hold the lock of the output folder, and prepare the loop.

    Args:
        settings: the training settings.
        title: of the progress bar.
        resume: whether to continue the run in the output folder.
        break_lock: take over the lock of a run on another machine that seems to be dead.

    Raises:
        LockedError: another run writes there.
        OutputError: the folder holds a run and ``resume`` is False, or the other way round.
    """
    accelerator = create_accelerator(settings.mixed_precision, settings.device, "train")
    folder = settings.output_dir
    with lock_folder(folder, "train.output_dir", accelerator, break_lock) as lock:
        hint = "the same command with --resume goes on"
        with explain_interruption(folder, folder / CHECKPOINTS, hint):
            yield PretrainLoop(settings, title, resume, lock)


class PretrainLoop:
    """Trains one or more networks, each with its own optimizer, for a number of steps."""

    def __init__(
        self,
        settings: PretrainTrainerConfig,
        title: str,
        resume: bool = False,
        lock: RunLock | None = None,
    ) -> None:
        """Prepare the devices and look for a checkpoint.

        Args:
            settings: the training settings.
            title: of the progress bar.
            resume: whether to continue the run in the output folder.
            lock: what keeps other runs away from there.

        Raises:
            OutputError: the folder holds a run and ``resume`` is False, or the other way round.
        """
        self.settings = settings
        self.title = title
        self.output_dir = settings.output_dir
        self._lock = lock or RunLock()
        self._modules: dict[str, OptimizedModule] = {}
        self._metrics = StepMetrics()
        self._images_since_log = 0
        self.accelerator = create_accelerator(
            settings.mixed_precision, settings.device, "train", settings.cuda_graph
        )
        self._rngs = [
            torch.Generator(self.device) for _ in range(settings.gradient_accumulation_steps)
        ]
        self._graphs = CudaGraphCache(
            self.device,
            settings.cuda_graph,
            warmup_calls=_WARMUP_CALLS,
            max_graphs=1,
            evict_oldest=True,
            generators=self._rngs,
            can_fall_back=False,
        )
        self.is_main: bool = self.accelerator.is_main_process
        if self.is_main:
            ensure_writable_folder(self.output_dir)
            remove_leftovers(self.output_dir)
        self._checkpoint = self._find_checkpoint(resume)

    # --- set-up -----------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return torch.device(self.accelerator.device)

    def add_module(
        self, name: str, module: nn.Module, *, ema: bool = False, learning_rate: float | None = None
    ) -> nn.Module:
        """Add a network to train; return it prepared for this run's devices and precision."""
        learning_rate = self.settings.learning_rate if learning_rate is None else learning_rate
        module.to(self.device)
        if self.device.type == "cuda":
            # Tensor cores convolve fastest with channels last; TF32 is for what autocast leaves.
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.benchmark = True
        if self.settings.compile:
            module.compile()
        optimizer = adamw([module], learning_rate, self.settings.weight_decay)
        prepared: nn.Module = self.accelerator.prepare(module)
        decay = self.settings.ema_decay
        average = Ema(module, decay) if ema and decay > 0 else None
        self._modules[name] = OptimizedModule(module, prepared, optimizer, learning_rate, average)
        return prepared

    def images_per_step(self, batch_size: int) -> int:
        """Return the images of an optimizer step, over accumulation and processes."""
        processes: int = self.accelerator.num_processes
        return batch_size * self.settings.gradient_accumulation_steps * processes

    def _find_checkpoint(self, resume: bool) -> Checkpoint | None:
        checkpoint = load_latest_checkpoint(self.output_dir / CHECKPOINTS)
        if checkpoint is not None and not resume:
            raise OutputError(
                f"{self.output_dir} already holds a run; continue it with --resume or choose "
                "another train.output_dir"
            )
        if checkpoint is None and resume:
            raise OutputError(f"{self.output_dir} holds no checkpoint to resume from")
        self.accelerator.wait_for_everyone()
        return checkpoint

    # --- steps ------------------------------------------------------------------------------

    def steps(self) -> Iterator[int]:
        """Yield the indices of the remaining steps; log and save checkpoints between them.

        Raises:
            Interrupted: on Ctrl-C, SIGTERM or SIGHUP, or when the time is up, after saving a
                checkpoint.
            TrainingError: a metric or gradient is not finite.
        """
        total, first = self.settings.steps, self._restore()
        deadline, agreement = self._deadline(), StopAgreement(self.accelerator)
        with (
            Tracker(self.output_dir, self.settings.tensorboard, self.is_main, first) as tracker,
            progress_bar(self.title, total, first, enabled=self.is_main) as advance,
            stop_on_interrupt() as request,
        ):
            started, last_logged = time.perf_counter(), first
            for step in range(first, total):
                self._set_learning_rates(step)
                yield step
                done = step + 1
                is_log_step = done % self.settings.log_every_n_steps == 0 or done == total
                if is_log_step:
                    summary = self._log(tracker, step, started)
                    advance(done - last_logged, summary)
                    started, last_logged = time.perf_counter(), done
                is_time_up = time.perf_counter() > deadline
                stop = request.signal_number or (signal.SIGINT if is_time_up else 0)
                stop = agreement.after_step(stop, is_log_step)
                if stop or done == total or done % self.settings.checkpoint_every_n_steps == 0:
                    self.save_checkpoint(done)
                if stop and done < total:
                    message = f"stopped after step {done} of {total}; --resume goes on"
                    raise Interrupted(message, stop)

    def train_step(
        self,
        step: int,
        indices: torch.Tensor,
        compute_gradients: Callable[[Microbatch], None],
        variant: Hashable = None,
        updated: Sequence[str] | None = None,
    ) -> None:
        """Take one optimizer step.

        Args:
            step: its index, from 0.
            indices: row indices of the full batch, int64, on the CPU.
            compute_gradients: adds the gradients of a microbatch with ``backward``, and records
                metrics.
            variant: identifies what the step does; another variant captures another CUDA graph.
            updated: names of the networks whose weights the step changes; None for all.
        """
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        shares = indices.view(self.settings.gradient_accumulation_steps, processes, -1)[:, rank]
        for rng in self._rngs:
            rng.manual_seed(derive_seed(self.settings.seed, step))
        self._images_since_log += len(indices)
        names = list(self._modules) if updated is None else list(updated)
        self._graphs(
            (variant, shares.shape),
            [shares.to(self.device)],
            lambda inputs: self._run_step(inputs[0], compute_gradients, names),
        )

    def _run_step(
        self,
        indices: torch.Tensor,
        compute_gradients: Callable[[Microbatch], None],
        names: Sequence[str],
    ) -> None:
        """Compute all gradients, clip them, and update the networks.

        Args:
            indices: ``[microbatches, B]`` of this process.
            compute_gradients: see ``train_step``.
            names: of the networks to update.
        """
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        count, size = indices.shape
        self._metrics.begin_step()
        for i, (rows, rng) in enumerate(zip(indices, self._rngs, strict=True)):
            with ExitStack() as stack:
                if i < count - 1:  # processes exchange gradients with the last microbatch
                    for module in self._modules.values():
                        stack.enter_context(self.accelerator.no_sync(module.prepared))
                start = (i * processes + rank) * size
                batch_rng = BatchRng(rng, count * processes * size, start, size)
                compute_gradients(Microbatch(rows, batch_rng))
        self._metrics.end_microbatches()
        scaler = self.accelerator.scaler
        for name in names:
            norm = self._modules[name].clip_and_step(self.settings.max_grad_norm, scaler)
            self._metrics.set(f"grad_norm/{name}", norm)
        if scaler is not None:
            scaler.update()

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a microbatch's loss."""
        self.accelerator.backward(loss / self.settings.gradient_accumulation_steps)

    def record_metrics(self, **metrics: torch.Tensor) -> None:
        """Record scalars of a microbatch; the log shows the mean over microbatches."""
        self._metrics.add(1.0 / self.settings.gradient_accumulation_steps, **metrics)

    def metric(self, name: str) -> float:
        """Return a metric of the last step in this process; this waits for the device."""
        return self._metrics.read(name)

    def check_lock(self) -> None:
        """Check that no other run has taken the output folder over.

        Raises:
            LockedError: one has.
        """
        self._lock.check()

    # --- results ----------------------------------------------------------------------------

    def ema_weights(self, name: str) -> AbstractContextManager[None]:
        """Return a context in which a network has its averaged weights, if there are any."""
        ema = self._modules[name].ema
        return nullcontext() if ema is None else ema.average_parameters()

    def module(self, name: str) -> Any:
        """Return a network as it was added, without wrappers."""
        return self._modules[name].module

    def has_module(self, name: str) -> bool:
        return name in self._modules

    def has_ema(self, name: str) -> bool:
        return self._modules[name].ema is not None

    def save_checkpoint(self, step: int) -> None:
        """Save a checkpoint in the main process; the others wait."""
        if self.is_main:
            self._lock.check()
            tensors: dict[str, torch.Tensor] = {}
            state: dict[str, Any] = {}
            for name, module in self._modules.items():
                packed, state[name] = module.pack_state()
                tensors |= {f"{name}/{key}": tensor for key, tensor in packed.items()}
            scaler = self.accelerator.scaler
            state["scaler"] = scaler.state_dict() if scaler is not None else None
            keep = self.settings.keep_checkpoints
            save_checkpoint(self.output_dir / CHECKPOINTS, step, tensors, state, keep)
        self.accelerator.wait_for_everyone()

    # --- details ----------------------------------------------------------------------------

    def _restore(self) -> int:
        """Load the checkpoint, if there is one; return the index of the next step."""
        if self._checkpoint is None:
            return 0
        tensors, state = self._checkpoint.tensors, self._checkpoint.state
        for name, module in self._modules.items():
            try:
                module.unpack_state(select_prefix(f"{name}/", tensors), state.get(name, {}))
            except WeightsError as error:
                raise WeightsError(f"{self.output_dir}: {name}: {error}") from error
        if self.accelerator.scaler is not None and state.get("scaler"):
            self.accelerator.scaler.load_state_dict(state["scaler"])
        step = self._checkpoint.step
        self._checkpoint = None  # frees the tensors
        return step

    def _learning_rate(self, step: int) -> float:
        s = self.settings
        return s.learning_rate * lr_factor(
            step, s.steps, s.lr_warmup_steps, s.lr_scheduler_min_lr_ratio, s.lr_scheduler
        )

    def _set_learning_rates(self, step: int) -> None:
        factor = self._learning_rate(step) / self.settings.learning_rate
        for module in self._modules.values():
            set_learning_rate(module.optimizer, module.learning_rate * factor)

    def _log(self, tracker: Tracker, step: int, started: float) -> str:
        """Log the metrics of a step; return their summary for the progress bar."""
        metrics = self._metrics.read_all(step, self.accelerator)  # waits for the device
        speed = self._images_since_log / (time.perf_counter() - started)
        self._images_since_log = 0
        rates = {"lr": self._learning_rate(step), "images_per_s": speed}
        tracker.log(step + 1, {**metrics, **rates})
        return f"loss {metrics.get('loss', 0.0):.4f}  {speed:.0f} img/s"

    def _deadline(self) -> float:
        minutes = self.settings.stop_after_minutes
        return float("inf") if minutes is None else time.perf_counter() + 60.0 * minutes
