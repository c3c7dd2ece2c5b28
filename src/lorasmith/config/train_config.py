"""Settings of `lorasmith train`: everything about one run, in one tree."""

import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from lorasmith.config.base import BaseConfig, Positive, UserPath
from lorasmith.config.lora import LoraConfig, LoraOverride
from lorasmith.config.optimization import LossConfig, TrainerConfig
from lorasmith.config.train_data import DataConfig
from lorasmith.core.text.path_text import describe_path_problem

__all__ = [
    "DataConfig",
    "LoraConfig",
    "LoraOverride",
    "LossConfig",
    "ModelConfig",
    "OutputConfig",
    "PreserveConfig",
    "TrackConfig",
    "TrainConfig",
    "TrainerConfig",
    "ValidationConfig",
]  # fmt: skip


SUFFIX = ".safetensors"
UpToThousand = Annotated[int, Field(gt=0, le=1000)]
MAX_NAME_BYTES = 128
"""Longest name of a LoRA: steps, tags and suffixes follow it in file names of 255 bytes."""


def _name(text: str) -> str:
    stem = text.removesuffix(SUFFIX)
    last = stem.replace("\\", "/").rpartition("/")[2]
    problem = describe_path_problem(text) if text.strip() else None
    if problem is not None:
        raise ValueError(problem)
    if not last.strip(". ") or not text.isprintable():
        raise ValueError("give the LoRA a name, such as inkmono or some/folder/inkmono")
    file_name = Path(stem).name  # with its backslashes, where they separate no folders
    if re.search(r"[<>:\\]|\.\.", file_name) or file_name != file_name.strip():
        raise ValueError(
            "prompts load a LoRA as <lora:NAME:WEIGHT>, so a name has no '<', '>', ':', '\\' or "
            "'..' and no space at its ends"
        )
    if len(last.encode()) > MAX_NAME_BYTES:
        raise ValueError(
            f"the name has {len(last.encode())} bytes; {MAX_NAME_BYTES} are the most, since names "
            "of files are made of it"
        )
    return stem


class ModelConfig(BaseConfig):
    """The base model."""

    path: UserPath | None = None
    """A Stable Diffusion 1.x, 2.x or SDXL model: a folder in diffusers' layout, a .safetensors
    file, or a Hugging Face id in the local cache; left out, the miniature model that ships with
    lorasmith."""


class PreserveConfig(BaseConfig):
    """The preservation loss: images without the tag stay as they are in programs without gates.

    An additional loss on the training images: the mean square of what the adapters change in the
    prediction where they should change nothing.
    """

    strength: float = Field(default=0.0, ge=0.0)
    """Weight of the loss under captions whose tag is replaced by the class word; 0 for none, 1
    weighs it like the training loss."""
    every_n_steps: Positive = 4
    """Steps between two with this loss; each takes about one and a half plain steps more."""
    earlier_features_strength: float = Field(default=0.0, ge=0.0)
    """In later stages of several features: weight of the loss on the images and captions of
    earlier features, with those active; 0 for none."""


class ValidationConfig(BaseConfig):
    """Validation during training: preview images and the validation loss."""

    every_n_steps: int = Field(default=100, ge=0)
    """Steps between two validations; 0 for none."""
    prompts: tuple[str, ...] | None = None
    """Prompts of the preview images; left out, captions of training images. An empty list
    generates none."""
    num_images: UpToThousand = 4
    """How many captions are used when no prompts are given."""
    negative_prompt: str = ""
    """Negative prompt of the previews."""
    num_inference_steps: UpToThousand = 15
    """Denoising steps of a preview."""
    guidance_scale: float = Field(default=5.0, ge=0.0)
    """Guidance scale (CFG) of a preview."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the first preview image; image k has seed + k."""
    size: str | None = None
    """Size of the previews, such as 512x768; left out, the model's own."""
    loss_timesteps: UpToThousand = 4
    """How many noise levels, evenly spread, the validation loss is measured at."""
    loss_seed: int | None = Field(default=None, ge=0, lt=2**63)
    """Seed of the noise of the validation loss; left out, `train.seed`. Losses can be compared
    where this is the same."""


class TrackConfig(BaseConfig):
    """Where metrics are logged, besides `log.jsonl` in the run's folder."""

    tensorboard: bool = True
    """Write TensorBoard event files into the run's folder."""
    wandb: bool = False
    """Log metrics to Weights & Biases (needs the extra `lorasmith[wandb]`)."""
    wandb_project: str = "lorasmith"
    """Its project."""


class OutputConfig(BaseConfig):
    """What is written."""

    name: Annotated[str, AfterValidator(_name)]
    """NAME writes `loras/NAME.safetensors`, some/path/NAME writes `some/path/NAME.safetensors`;
    the run's other files go to the folder of that name beside it."""


class TrainConfig(BaseConfig):
    """Everything about one `lorasmith train` run."""

    data: DataConfig
    """The training images."""
    output: OutputConfig
    """The result."""
    model: ModelConfig = ModelConfig()
    """The base model."""
    lora: LoraConfig = LoraConfig()
    """The adapter."""
    train: TrainerConfig = TrainerConfig()
    """The training."""
    preserve: PreserveConfig = PreserveConfig()
    """The preservation loss: images without the tag stay as they are."""
    validation: ValidationConfig = ValidationConfig()
    """Validation during training."""
    track: TrackConfig = TrackConfig()
    """Where metrics are logged."""

    @model_validator(mode="after")
    def _early_stopping_has_a_loss(self) -> Self:
        if self.train.early_stopping_patience is not None and (
            self.validation.every_n_steps == 0 or self.data.validation_split == 0.0
        ):
            raise ValueError(
                "train.early_stopping_patience watches the validation loss: "
                "validation.every_n_steps and data.validation_split must not be 0"
            )
        return self

    @model_validator(mode="after")
    def _preservation_has_an_effect(self) -> Self:
        if self.preserve.strength and self.lora.gate in ("token", "token+end"):
            raise ValueError(
                f"preserve.strength has nothing to do under lora.gate = {self.lora.gate}: without "
                "the tag nothing changes there; set it to 0"
            )
        return self
