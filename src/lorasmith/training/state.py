"""One run in memory: the model with its adapters, the data, the optimizer, and how far it is."""

import hashlib
import json
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch

from lorasmith.adapters.injection.trainable import TrainableLora
from lorasmith.config.old_keys import CONFIG_VERSION, VERSION_KEY, upgrade
from lorasmith.config.train_config import TrainConfig
from lorasmith.core.batch_rng import BatchRng
from lorasmith.core.device import derive_seed, make_generator
from lorasmith.core.errors import LorasmithWarning, WeightsError
from lorasmith.core.safetensors_io import Tensors
from lorasmith.inference.outputs.png_metadata import compute_model_hash
from lorasmith.loops.checkpoint import Checkpoint, save_checkpoint
from lorasmith.loops.gpu_timer import GpuTimer
from lorasmith.loops.lr_schedule import lr_factor, resolve_warmup_steps
from lorasmith.loops.optimized_module import OptimizedModule
from lorasmith.models.load import Model
from lorasmith.runs.paths import RunPaths
from lorasmith.training.data.batch import Batch
from lorasmith.training.data.dataset import TrainDataset
from lorasmith.training.losses import Noise, sample_noise
from lorasmith.training.train_step import DiffusionLoss, StepMetrics, TrainStep

if TYPE_CHECKING:
    from accelerate import Accelerator

# First positions in the stream of random numbers, so that no two uses share any. The adapters'
# start has 0, the held-out grid 2.
_STEPS, _DROPOUT, _PRESERVE, _EARLIER = 1, 3, 4, 5


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
    identity: str = field(default_factory=lambda: uuid4().hex)
    """What the files of one run have in common, and no other run's."""


@dataclass
class TrainerState:
    """What a run needs for its steps."""

    run: TrainConfig
    """Its settings, learning rates filled in."""
    paths: RunPaths
    """Where it writes."""
    accelerator: "Accelerator"
    """Device and processes."""
    model: Model
    """The model with the adapters in it."""
    dataset: TrainDataset
    """The pictures."""
    trainable: TrainableLora
    """The adapters."""
    optimized: OptimizedModule
    """Their weights, optimizer and average."""
    loss: DiffusionLoss
    """The loss."""
    base_lrs: list[float]
    """Peak learning rate of each of the optimizer's groups."""
    param_group_names: list[str]
    """The part that each of them belongs to."""
    train_step: TrainStep
    """An optimizer step."""
    scaler: torch.amp.GradScaler | None = None
    """fp16's loss scaling, of this session alone."""
    preservation_sets: tuple[TrainDataset, ...] = ()
    """Pictures of earlier features whose prediction is to be kept."""
    frozen_hashes: dict[str, str] = field(default_factory=dict)
    """Hashes of the LoRAs of earlier features that are in the model, by their files' names."""
    progress: Progress = field(default_factory=Progress)
    """How far it is."""

    def __post_init__(self) -> None:
        self.clock = GpuTimer(self.device)
        self._start_counting()

    def _start_counting(self) -> None:
        self._started = time.perf_counter() - self.progress.seconds
        self._first = self.progress.done

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return torch.device(self.model.unet.device)

    @cached_property
    def base_hash(self) -> str:
        """Hash of the base model's U-Net; read from its file once, when a LoRA is first written."""
        return compute_model_hash(self.model.folder)

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes."""
        return bool(self.accelerator.is_main_process)

    # --- steps ----------------------------------------------------------------------------

    def begin_step(self) -> torch.Tensor:
        """Make ready for the next step; return the numbers of its pictures, int64 ``[B]``."""
        step, train = self.progress.done, self.run.train
        self._set_rates(step)
        if self.run.lora.dropout > 0:
            torch.manual_seed(
                derive_seed(train.seed, _DROPOUT, step, self.accelerator.process_index)
            )
        return self.dataset.batch_sampler.get_batch(step)

    def on_step_end(self, figures: StepMetrics) -> StepMetrics:
        """Count a step that was taken; return its figures, without those that it has not."""
        keeps = self._keeps(self.progress.done)
        if self.optimized.ema is not None:
            self.optimized.ema.update()
        self.progress.done += 1
        return figures if keeps else figures._replace(preservation_loss=None)

    def learning_rates(self) -> dict[str, float]:
        """Return the learning rates of the last step by their names in the log."""
        scale = self._scale(max(0, self.progress.done - 1))
        named = dict(zip(self.param_group_names, self.base_lrs, strict=True))
        several = len(set(self.base_lrs)) > 1
        more = {f"lr/{part}": peak * scale for part, peak in named.items()} if several else {}
        return {"lr": self.base_lrs[0] * scale, **more}

    def image_names(self, step: int) -> list[str]:
        """Return the names of the pictures of a step (from 0)."""
        return self.dataset.image_keys(self.dataset.batch_sampler.get_batch(step))

    def failed_step(self) -> int | None:
        """Return the step (from 0) that was not finite, if there was one; waits for the device."""
        failed = self.train_step.failed_step()
        return None if failed is None else failed + self._first

    def ema_weights(self) -> AbstractContextManager[None]:
        """Return a context in which the adapters hold what is shown and saved."""
        return (
            nullcontext() if self.optimized.ema is None else self.optimized.ema.average_parameters()
        )

    def seconds(self) -> float:
        """Return the time spent so far."""
        return time.perf_counter() - self._started

    def microbatches(self, numbers: torch.Tensor) -> Iterator[tuple[Batch, Noise]]:
        """Yield this process's parts of the next step, one after the other.

        A part has the same draws wherever it is. In steps with preservation each part is followed
        by its pictures under captions without the tag, and all of them by an earlier feature's.
        """
        step, preserve = self.progress.done, self.run.preserve
        keeps = self._keeps(step)
        for piece, draws in self._pieces(numbers, step, _STEPS):
            batch = self.dataset.get_batch(piece, draws)
            drawn = sample_noise(self.loss.process, self.run.train.loss, batch, draws)
            yield batch, drawn
            if keeps and preserve.strength:
                seeded = make_generator(self.run.train.seed, _PRESERVE, step, device=self.device)
                others = replace(draws, generator=seeded)
                yield self.dataset.get_batch_without_tag(batch, others, preserve.strength), drawn
        if keeps and preserve.earlier_features_strength and self.preservation_sets:
            yield from self._of_earlier(step, len(numbers))

    def _keeps(self, step: int) -> bool:
        """Tell whether a step (from 0) has preservation."""
        preserve = self.run.preserve
        wanted = preserve.strength > 0 or (
            preserve.earlier_features_strength > 0 and len(self.preservation_sets) > 0
        )
        return wanted and step % preserve.every_n_steps == 0

    def _of_earlier(self, step: int, whole: int) -> Iterator[tuple[Batch, Noise]]:
        """Yield an earlier feature's batch; the features take turns.

        Args:
            step: from 0.
            whole: size of the batch that is learned from in this step.
        """
        turn = step // self.run.preserve.every_n_steps
        number = turn % len(self.preservation_sets)
        data = self.preservation_sets[number]
        numbers = data.batch_sampler.get_batch(turn // len(self.preservation_sets))
        # Losses are divided by the size of the batch that is learned from.
        strength = self.run.preserve.earlier_features_strength * whole / len(numbers)
        for piece, draws in self._pieces(numbers, step, _EARLIER):
            batch = data.get_batch(piece, draws)
            weight = torch.full_like(batch.loss_weights, strength)
            kept = replace(batch, loss_weights=weight, task="preserve_frozen", frozen_index=number)
            yield kept, sample_noise(self.loss.process, self.run.train.loss, kept, draws)

    def _pieces(
        self, numbers: torch.Tensor, step: int, stream: int
    ) -> Iterator[tuple[torch.Tensor, BatchRng]]:
        """Yield this process's pieces of a batch, with what they draw from."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        first = 0
        for place, piece in enumerate(
            numbers.tensor_split(world * self.run.train.gradient_accumulation_steps)
        ):
            if place % world == rank and len(piece):
                seeded = make_generator(self.run.train.seed, stream, step, device=self.device)
                yield piece, BatchRng(seeded, len(numbers), first, len(piece))
            first += len(piece)

    def _set_rates(self, step: int) -> None:
        scale = self._scale(step)
        for group, peak in zip(self.optimized.optimizer.param_groups, self.base_lrs, strict=True):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(peak * scale)
            else:
                group["lr"] = peak * scale

    def _scale(self, step: int) -> float:
        train = self.run.train
        warmup = resolve_warmup_steps(train.lr_warmup_steps, train.steps)
        return lr_factor(
            step, train.steps, warmup, train.lr_scheduler_min_lr_ratio, train.lr_scheduler
        )

    # --- checkpoints ----------------------------------------------------------------------

    def save(self) -> None:
        """Save a checkpoint (the main process only)."""
        if self.is_main:
            keep = self.run.train.keep_checkpoints
            save_checkpoint(self.paths.checkpoints, self.progress.done, *self.state_dict(), keep)
        self.accelerator.wait_for_everyone()

    def state_dict(self) -> tuple[Tensors, dict[str, Any]]:
        """Return everything that a checkpoint needs, as tensors and JSON."""
        self.progress.seconds = self.seconds()
        tensors, plain = self.optimized.pack_state()
        return tensors, {
            "trained": plain,
            "layers": list(self.trainable.adapters),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "progress": asdict(self.progress),
            "settings": packed_settings(self.run),
            "pictures": dataset_hash(self.dataset),
            "built_on": self.frozen_hashes,
        }

    def restore(self, found: Checkpoint) -> None:
        """Go on from a checkpoint.

        Raises:
            WeightsError: it is one of other layers or another optimizer.
        """
        layers = list(self.trainable.adapters)
        saved = found.state.get("layers", [])
        if saved != layers:
            raise WeightsError(
                f"{self.paths.checkpoints}: step {found.step} has {len(saved)} trained layers and this run has {len(layers)} others; it is of another run"
            )
        if found.state.get("built_on", {}) != self.frozen_hashes:
            raise WeightsError(
                f"{self.paths.checkpoints}: step {found.step} was trained on top of other files than {', '.join(self.frozen_hashes) or 'none'}; put those back or start a new run"
            )
        self.optimized.unpack_state(found.tensors, found.state["trained"])
        scaler = self.scaler
        if scaler is not None and found.state.get("scaler"):
            scaler.load_state_dict(found.state["scaler"])
        known = {one.name for one in fields(Progress)}
        told = {k: v for k, v in found.state["progress"].items() if k in known}
        self.progress = Progress(**{**told, "done": found.step})
        other_pictures = found.state.get("pictures") != dataset_hash(self.dataset)
        if other_pictures or _grid_of(found.state["settings"]) != _grid_of(
            packed_settings(self.run)
        ):
            # Losses on another grid cannot be compared with those that come.
            self.progress.base = self.progress.best = self.progress.best_step = None
            self.progress.waited = 0
        if other_pictures:
            warnings.warn(
                "the pictures or captions are not those that the run was started with; it goes on with what is there now",
                LorasmithWarning,
                stacklevel=2,
            )
        self._start_counting()


def packed_settings(run: TrainConfig) -> dict[str, Any]:
    """Return settings as checkpoints hold them."""
    return {VERSION_KEY: CONFIG_VERSION, **run.model_dump(mode="json")}


def _grid_of(settings: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return what the fixed grid of a run depends on besides its pictures."""
    settings, _ = upgrade(settings)
    preview = settings["validation"]
    seed = preview.get("loss_seed")
    return preview["loss_timesteps"], settings["train"]["seed"] if seed is None else seed


def dataset_hash(data: TrainDataset) -> str:
    """Return a hash of the names and captions of the pictures, held-out ones included."""
    sets = [data] if data.validation is None else [data, data.validation]
    told = [[row.key, row.caption] for one in sets for row in one.rows]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()
