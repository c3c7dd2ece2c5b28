"""One run in memory: the model with its adapters, the data, the optimizer, and how far it is."""

import hashlib
import json
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING

import torch

from lorasmith.adapters.trainable import Trainable
from lorasmith.config.run import TrainRun
from lorasmith.core.device import generator, seed_of
from lorasmith.core.draws import Draws
from lorasmith.core.errors import LorasmithWarning, WeightsError
from lorasmith.loops.checkpoint import Checkpoint, save_checkpoint
from lorasmith.loops.schedule import lr_scale, warmup_steps
from lorasmith.loops.trained import Trained
from lorasmith.models.load import Model
from lorasmith.training.batch import Batch
from lorasmith.training.dataset import TrainingSet
from lorasmith.training.losses import Noise, draw_noise
from lorasmith.training.paths import RunPaths
from lorasmith.training.step import Figures, Objective, TrainStep

if TYPE_CHECKING:
    from accelerate import Accelerator

# First positions in the stream of random numbers, so that no two uses share any. The adapters'
# start has 0, the held-out grid 2.
_STEPS, _DROPOUT = 1, 3


@dataclass
class Progress:
    """How far a run is; saved with its checkpoints."""

    done: int = 0
    """Optimizer steps taken."""
    seconds: float = 0.0
    """Time spent, in all parts of the run together."""
    base: float | None = None
    """The base model's loss on the fixed grid."""
    best: float | None = None
    """Lowest held-out loss so far."""
    best_step: int | None = None
    """Where that was."""
    waited: int = 0
    """Held-out measurements since then."""


@dataclass
class Session:
    """What a run needs for its steps."""

    run: TrainRun
    """Its settings, learning rates filled in."""
    paths: RunPaths
    """Where it writes."""
    accelerator: "Accelerator"
    """Device and processes."""
    model: Model
    """The model with the adapters in it."""
    data: TrainingSet
    """The pictures."""
    trainable: Trainable
    """The adapters."""
    state: Trained
    """Their weights, optimizer and average."""
    objective: Objective
    """The loss."""
    peaks: list[float]
    """Peak learning rate of each of the optimizer's groups."""
    labels: list[str]
    """The part that each of them belongs to."""
    step_once: TrainStep
    """An optimizer step."""
    progress: Progress = field(default_factory=Progress)
    """How far it is."""

    def __post_init__(self) -> None:
        self._start_counting()

    def _start_counting(self) -> None:
        self._started = time.perf_counter() - self.progress.seconds
        self._first = self.progress.done

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return torch.device(self.model.unet.device)

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes."""
        return bool(self.accelerator.is_main_process)

    # --- steps ----------------------------------------------------------------------------

    def advance(self) -> tuple[Figures, int]:
        """Take the next optimizer step; return its figures and how many pictures it had."""
        step, train = self.progress.done, self.run.train
        self._set_rates(step)
        if self.run.lora.dropout > 0:
            torch.manual_seed(seed_of(train.seed, _DROPOUT, step, self.accelerator.process_index))
        numbers = self.data.order.batch(step)
        figures = self.step_once(self._parts(step, numbers), len(numbers))
        if self.state.ema is not None:
            self.state.ema.update()
        self.progress.done += 1
        return figures, len(numbers)

    def rates(self) -> dict[str, float]:
        """Return the learning rates of the last step by their names in the log."""
        scale = self._scale(max(0, self.progress.done - 1))
        named = dict(zip(self.labels, self.peaks, strict=True))
        several = len(set(self.peaks)) > 1
        more = {f"lr/{part}": peak * scale for part, peak in named.items()} if several else {}
        return {"lr": self.peaks[0] * scale, **more}

    def keys_of(self, step: int) -> list[str]:
        """Return the names of the pictures of a step (from 0)."""
        return self.data.keys_of(self.data.order.batch(step))

    def failed_step(self) -> int | None:
        """Return the step (from 0) that was not finite, if there was one; waits for the device."""
        failed = self.step_once.failed_step()
        return None if failed is None else failed + self._first

    def averaged(self) -> AbstractContextManager[None]:
        """Return a context in which the adapters hold what is shown and saved."""
        return nullcontext() if self.state.ema is None else self.state.ema.applied()

    def seconds(self) -> float:
        """Return the time spent so far."""
        return time.perf_counter() - self._started

    def _parts(self, step: int, numbers: torch.Tensor) -> Iterator[tuple[Batch, Noise]]:
        """Yield this process's parts of a batch. A part has the same draws wherever it is."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        pieces = numbers.tensor_split(world * self.run.train.accumulate)
        first = 0
        for place, piece in enumerate(pieces):
            if place % world == rank and len(piece):
                seeded = generator(self.run.train.seed, _STEPS, step, device=self.device)
                draws = Draws(seeded, len(numbers), first, len(piece))
                batch = self.data.batch(piece, draws)
                yield batch, draw_noise(self.objective.process, self.run.train.loss, batch, draws)
            first += len(piece)

    def _set_rates(self, step: int) -> None:
        scale = self._scale(step)
        for group, peak in zip(self.state.optimizer.param_groups, self.peaks, strict=True):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(peak * scale)
            else:
                group["lr"] = peak * scale

    def _scale(self, step: int) -> float:
        train = self.run.train
        warmup = warmup_steps(train.warmup, train.steps)
        return lr_scale(step, train.steps, warmup, train.floor, train.schedule)

    # --- checkpoints ----------------------------------------------------------------------

    def save(self) -> None:
        """Save a checkpoint (the main process only)."""
        if self.main:
            self.progress.seconds = self.seconds()
            tensors, plain = self.state.pack()
            scaler = self.accelerator.scaler
            state = {
                "trained": plain,
                "layers": list(self.trainable.adapters),
                "scaler": None if scaler is None else scaler.state_dict(),
                "progress": asdict(self.progress),
                "settings": self.run.model_dump(mode="json"),
                "pictures": identity_of(self.data),
            }
            keep = self.run.train.keep_checkpoints
            save_checkpoint(self.paths.checkpoints, self.progress.done, tensors, state, keep)
        self.accelerator.wait_for_everyone()

    def restore(self, found: Checkpoint) -> None:
        """Go on from a checkpoint.

        Raises:
            WeightsError: it is one of other layers or another optimizer.
        """
        layers = list(self.trainable.adapters)
        saved = found.state.get("layers", [])
        if saved != layers:
            raise WeightsError(
                f"{self.paths.checkpoints}: step {found.step} has {len(saved)} trained layers and "
                f"this run has {len(layers)} others; it is of another run"
            )
        self.state.unpack(found.tensors, found.state["trained"])
        scaler = self.accelerator.scaler
        if scaler is not None and found.state.get("scaler"):
            scaler.load_state_dict(found.state["scaler"])
        known = {one.name for one in fields(Progress)}
        told = {k: v for k, v in found.state["progress"].items() if k in known}
        self.progress = Progress(**{**told, "done": found.step})
        if found.state.get("pictures") != identity_of(self.data):
            self.progress.base = None  # it was that of other pictures
            warnings.warn(
                "the pictures or captions are not those that the run was started with; it goes on "
                "with what is there now",
                LorasmithWarning,
                stacklevel=2,
            )
        self._start_counting()


def identity_of(data: TrainingSet) -> str:
    """Return a hash of the names and captions of the pictures, held-out ones included."""
    sets = [data] if data.held_out is None else [data, data.held_out]
    told = [[row.key, row.caption] for one in sets for row in one.rows]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()
