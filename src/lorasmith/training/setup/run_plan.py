"""What is going to be trained, and on which device."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lorasmith.adapters.gating.gate_metadata import GateMetadata
from lorasmith.config.optimization import TrainerConfig
from lorasmith.config.train_config import DataConfig, LoraConfig, TrainConfig
from lorasmith.core.device import pick_device
from lorasmith.loops.checkpoint import Checkpoint
from lorasmith.loops.distributed import create_accelerator
from lorasmith.runs.paths import RunPaths
from lorasmith.runs.run_lock import RunLock
from lorasmith.training.data.split import DatasetSplit
from lorasmith.training.losses import LossFn, diffusion_loss
from lorasmith.training.resume import find_checkpoint

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class RunPlan:
    """A LoRA that is going to be trained."""

    config: TrainConfig
    """Its settings."""
    paths: RunPaths
    """Where it writes."""
    lock: RunLock
    """What keeps other runs away from there."""
    split: DatasetSplit
    """Its images."""
    checkpoint: Checkpoint | None = None
    """What it continues from; None for a new run."""
    loss_fn: LossFn = diffusion_loss
    """What is minimised."""

    @property
    def gate(self) -> GateMetadata:
        """What activates the LoRA."""
        return gate_of(self.config.lora, self.config.data)


def gate_of(lora: LoraConfig, data: DataConfig) -> GateMetadata:
    """Return what activates a LoRA with these settings."""
    return GateMetadata(lora.gate, data.tag, data.class_word)


@dataclass(frozen=True)
class DeviceContext:
    """Device and processes of a run."""

    device: torch.device
    accelerator: "Accelerator"

    @classmethod
    def from_settings(cls, train: TrainerConfig) -> "DeviceContext":
        """Choose the device.

        Raises:
            ConfigError: there is no such device, or it cannot do what the settings ask for.
        """
        device = pick_device(train.device)
        accelerator = create_accelerator(train.mixed_precision, device.type, "train")
        if accelerator.num_processes > 1:
            device = torch.device(accelerator.device)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # where kernels are launched and graphs captured
        return cls(device, accelerator)


def reserve_output(paths: RunPaths, resume: str | None) -> Checkpoint | None:
    """Check that a run can write; return the checkpoint that it continues from, if it does.

    Raises:
        OutputError: the name is taken, cannot be written, or has no run to resume.
        ConfigError, WeightsError: see `find_checkpoint`.
    """
    if resume is None:
        paths.check_can_create()
        return None
    paths.check_can_resume()
    return find_checkpoint(paths.checkpoints, resume)
