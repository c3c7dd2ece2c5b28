"""One LoRA in training: model, adapters, data, optimizer, and how far the run is."""

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from lorasmith.adapters.gating.gate_metadata import GateMetadata
from lorasmith.config.reading.old_keys import upgrade
from lorasmith.config.train_config import TrackConfig, TrainerConfig, ValidationConfig
from lorasmith.core.device import derive_seed
from lorasmith.core.errors import LorasmithWarning, WeightsError
from lorasmith.core.safetensors_io import Tensors
from lorasmith.inference.outputs.png_metadata import compute_model_hash
from lorasmith.loops.checkpoint import Checkpoint
from lorasmith.loops.gpu_timer import GpuTimer
from lorasmith.loops.optimization.optimized_module import OptimizedModule
from lorasmith.models.model import Model
from lorasmith.runs.paths import RunPaths
from lorasmith.runs.run_lock import RunLock
from lorasmith.training.data.batch import Batch
from lorasmith.training.data.dataset import TrainDataset
from lorasmith.training.losses import Noise
from lorasmith.training.methods import TrainableModules, TrainingMethod
from lorasmith.training.progress import Progress
from lorasmith.training.step.events import CallbackList
from lorasmith.training.step.step_data import StepData
from lorasmith.training.step.train_step import DiffusionLoss, StepMetrics, TrainStep

if TYPE_CHECKING:
    from accelerate import Accelerator

_DROPOUT = 3
"""Position of adapter dropout in a run's stream of random numbers; see ``step_data``."""


@dataclass(frozen=True)
class ScheduledActions:
    """What happens after a step."""

    log: bool
    """A line of the log."""
    validate: bool
    """Validation loss and previews."""
    checkpoint: bool
    """A checkpoint."""
    save: bool
    """A LoRA file."""

    @property
    def any(self) -> bool:
        """Whether anything happens."""
        return self.log or self.validate or self.checkpoint or self.save

    @classmethod
    def after(cls, step: int, train: TrainerConfig, validate_every: int) -> "ScheduledActions":
        """Return what happens after a step (from 1); 0 for ``validate_every`` is never."""
        is_last = step == train.steps

        def is_due(interval: int | None) -> bool:
            return bool(interval) and step % (interval or 1) == 0

        validate = validate_every > 0 and (is_last or is_due(validate_every))
        return cls(
            log=is_last or validate or is_due(train.log_every_n_steps),
            validate=validate,
            checkpoint=is_last or is_due(train.checkpoint_every_n_steps),
            save=is_due(train.save_every_n_steps),
        )


@dataclass(frozen=True)
class ExportInfo:
    """What a LoRA file says about the run it comes from."""

    gate: GateMetadata
    """Trigger word, class word, and what activates the LoRA."""
    resolution: int
    """Side of the training images in pixels."""
    dataset_name: str
    """Name of the dataset, without folders."""


@dataclass(eq=False)
class TrainerState:
    """One LoRA in training. Callbacks get this.

    Several LoRAs that are trained jointly have a state each, with the same ``model``.
    """

    paths: RunPaths
    """Where the run writes; ``paths.name`` is the LoRA's name."""
    train: TrainerConfig
    """The section ``train`` of the settings, with learning rates filled in."""
    validation: ValidationConfig
    """The section ``validation``."""
    track: TrackConfig
    """The section ``track``."""
    settings: Mapping[str, Any]
    """All settings as JSON, as checkpoints hold them."""
    accelerator: "Accelerator"
    """Device and processes."""
    model: Model
    """The model with the trainable modules in it."""
    method: TrainingMethod
    """What put them there and exports them."""
    trainable: TrainableModules
    """The trainable modules, such as LoRA adapters."""
    optimized: OptimizedModule
    """Their weights, optimizer and average."""
    loss: DiffusionLoss
    """The loss."""
    step_data: StepData
    """The batches of the steps."""
    train_step: TrainStep
    """The optimizer step."""
    lr_factor: Callable[[int], float]
    """Share of the peak learning rate at a step (from 0)."""
    base_lrs: list[float]
    """Peak learning rate of each of the optimizer's groups."""
    param_group_names: list[str]
    """Which part of the model each group belongs to."""
    export_info: ExportInfo
    """What its LoRA files say about it."""
    lock: RunLock = field(default_factory=RunLock)
    """What keeps other runs away from its folder and its LoRA."""
    dropout: float = 0.0
    """Dropout of the adapters."""
    scaler: torch.amp.GradScaler | None = None
    """fp16's loss scaling."""
    frozen_hashes: dict[str, str] = field(default_factory=dict)
    """Hashes of the frozen LoRAs of earlier features in the model, by their files' names."""
    progress: Progress = field(default_factory=Progress)
    """How far the run is."""
    callbacks: "CallbackList[TrainerState]" = field(default_factory=CallbackList)
    """What is called on events."""
    stop_reason: str | None = None
    """Why a callback stopped the run before its last step."""
    failure: str | None = None
    """Why the run was given up while others went on."""
    stop_requested: bool = False
    """Whether a signal asked to stop; the loop stops after this step's callbacks."""

    def __post_init__(self) -> None:
        self.gpu_timer = GpuTimer(self.device)
        self._start_counting()

    def _start_counting(self) -> None:
        self._started = time.perf_counter() - self.progress.seconds
        self._first_step = self.progress.step

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return self.progress.step

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the complete run."""
        return self.train.steps

    @property
    def dataset(self) -> TrainDataset:
        """The training images."""
        return self.step_data.dataset

    @property
    def device(self) -> torch.device:
        """Where it is trained."""
        return torch.device(self.model.unet.device)

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes."""
        return bool(self.accelerator.is_main_process)

    @property
    def is_active(self) -> bool:
        """Whether there are steps left to take."""
        return self.step < self.total_steps and self.stop_reason is None and self.failure is None

    @property
    def scheduled_actions(self) -> ScheduledActions:
        """What happens after the last step."""
        return ScheduledActions.after(self.step, self.train, self.validation.every_n_steps)

    @cached_property
    def base_hash(self) -> str:
        """Hash of the base model's U-Net; read from its file when a LoRA is first written."""
        return compute_model_hash(self.model.path)

    def stop(self, reason: str) -> None:
        """End the training after this step, as if it were the last; for callbacks.

        Args:
            reason: a phrase for the run's summary.
        """
        self.stop_reason = reason

    def elapsed_seconds(self) -> float:
        """Return the time spent so far, in all parts of a resumed run together."""
        return time.perf_counter() - self._started

    # --- steps --------------------------------------------------------------------------------

    def begin_step(self) -> torch.Tensor:
        """Set learning rates and seeds of the next step; return its images, int64 ``[B]``."""
        self._set_learning_rates()
        if self.dropout > 0:
            process = self.accelerator.process_index
            torch.manual_seed(derive_seed(self.train.seed, _DROPOUT, self.step, process))
        return self.dataset.batch_sampler.get_batch(self.step)

    def microbatches(self, indices: torch.Tensor) -> Iterator[tuple[Batch, Noise]]:
        """Yield this process's microbatches of the next step."""
        return self.step_data.microbatches(self.step, indices)

    def on_step_end(self, metrics: StepMetrics) -> StepMetrics:
        """Count a step; return its metrics, with a preservation loss only if it has one."""
        has_preservation = self.step_data.has_preservation(self.step)
        if self.optimized.ema is not None:
            self.optimized.ema.update()
        self.progress.step += 1
        return metrics if has_preservation else metrics._replace(preservation_loss=None)

    def learning_rates(self) -> dict[str, float]:
        """Return the learning rates of the last step by their names in the log."""
        factor = self.lr_factor(max(0, self.step - 1))
        rates = {"lr": self.base_lrs[0] * factor}
        if len(set(self.base_lrs)) > 1:
            named = zip(self.param_group_names, self.base_lrs, strict=True)
            rates |= {f"lr/{name}": base_lr * factor for name, base_lr in named}
        return rates

    def image_names(self, step: int) -> list[str]:
        """Return the names of the images of a step (from 0)."""
        return self.dataset.image_keys(self.dataset.batch_sampler.get_batch(step))

    def failed_step(self) -> int | None:
        """Return the step (from 0) that was not finite, if any; waits for the device."""
        step = self.train_step.failed_step()
        return None if step is None else step + self._first_step

    def ema_weights(self) -> AbstractContextManager[None]:
        """Return a context in which the adapters hold their average, if there is one."""
        ema = self.optimized.ema
        return nullcontext() if ema is None else ema.average_parameters()

    def _set_learning_rates(self) -> None:
        factor = self.lr_factor(self.step)
        for group, base_lr in zip(
            self.optimized.optimizer.param_groups, self.base_lrs, strict=True
        ):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(base_lr * factor)
            else:
                group["lr"] = base_lr * factor

    # --- checkpoints --------------------------------------------------------------------------

    def state_dict(self) -> tuple[Tensors, dict[str, Any]]:
        """Return everything that a checkpoint needs, as tensors and JSON."""
        self.progress.seconds = self.elapsed_seconds()
        tensors, optimizer_state = self.optimized.pack_state()
        return tensors, {
            "trained": optimizer_state,
            "layers": list(self.trainable.adapters),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "progress": self.progress.to_json(),
            "settings": dict(self.settings),
            "pictures": dataset_hash(self.dataset),
            "built_on": self.frozen_hashes,
        }

    def load_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint.

        Raises:
            WeightsError: it has other layers, another optimizer or other frozen LoRAs.
        """
        saved = checkpoint.state
        self._check_same_layers(checkpoint)
        self.optimized.unpack_state(checkpoint.tensors, saved["trained"])
        if self.scaler is not None and saved.get("scaler"):
            self.scaler.load_state_dict(saved["scaler"])
        self.progress = Progress.from_json({**saved["progress"], "done": checkpoint.step})
        dataset_changed = saved.get("pictures") != dataset_hash(self.dataset)
        if dataset_changed or _validation_noise(saved["settings"]) != _validation_noise(
            self.settings
        ):
            self.progress.forget_validation()
        if dataset_changed:
            warnings.warn(
                "the images or captions are not those that the run was started with; it continues "
                "with the present ones",
                LorasmithWarning,
                stacklevel=2,
            )
        self._start_counting()

    def _check_same_layers(self, checkpoint: Checkpoint) -> None:
        where = f"{self.paths.checkpoints}: step {checkpoint.step}"
        layers, saved_layers = list(self.trainable.adapters), checkpoint.state.get("layers", [])
        if saved_layers != layers:
            raise WeightsError(
                f"{where} has {len(saved_layers)} trained layers and this run has {len(layers)} "
                "others; it is of another run"
            )
        if checkpoint.state.get("built_on", {}) != self.frozen_hashes:
            files = ", ".join(self.frozen_hashes) or "none"
            raise WeightsError(
                f"{where} was trained on top of other files than {files}; put those back or start "
                "a new run"
            )


def _validation_noise(settings: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return what the noise of the validation loss depends on."""
    settings, _ = upgrade(settings)
    validation = settings["validation"]
    seed = validation.get("loss_seed")
    return validation["loss_timesteps"], settings["train"]["seed"] if seed is None else seed


def dataset_hash(dataset: TrainDataset) -> str:
    """Return a hash of the names and captions of all images, validation images included."""
    sets = [dataset] if dataset.validation is None else [dataset, dataset.validation]
    rows = [[row.key, row.caption] for part in sets for row in part.rows]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
