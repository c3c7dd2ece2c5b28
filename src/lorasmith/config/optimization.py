"""Settings of `[train]`: steps, optimizer, loss, precision, and what is logged and saved."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from lorasmith.config.base import BaseConfig, Positive, PositiveFloat, RegisteredName
from lorasmith.config.reading import foreign_values
from lorasmith.registries import LOSS_WEIGHTINGS, LR_SCHEDULERS, OPTIMIZERS, TRAINING_METHODS

MixedPrecision = Annotated[
    Literal["fp32", "fp16", "bf16"], BeforeValidator(foreign_values.precision)
]
OptimizerName = Annotated[
    str, RegisteredName(OPTIMIZERS), BeforeValidator(foreign_values.optimizer)
]
LrSchedulerName = Annotated[
    str, RegisteredName(LR_SCHEDULERS), BeforeValidator(foreign_values.lr_scheduler)
]


def _steps_or_share(value: int | float) -> int | float:
    """Take 20 as steps and 0.1 as a share of all steps."""
    if value < 0 or (value >= 1 and value != int(value)):
        raise ValueError("give a number of steps, such as 20, or a share below 1, such as 0.05")
    return int(value) if value >= 1 or value == 0 else value


def _memory(value: str) -> str:
    """Take 12GB, 12.5 GiB, 8000MB."""
    parse_memory_size(value)
    return value


_LARGEST_MEMORY = 1e6
"""Largest number before the unit."""


def parse_memory_size(memory: str) -> int:
    """Return how many bytes a text such as ``12GB`` means; GB and GiB are both 2^30 bytes, as
    graphics cards are sold.

    Raises:
        ValueError: it is none.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([GM])i?B?\s*", memory, re.IGNORECASE)
    if match is None or not 0 < float(match[1]) <= _LARGEST_MEMORY:
        raise ValueError("give an amount of memory, such as 12GB")
    return int(float(match[1]) * 2 ** (30 if match[2].upper() == "G" else 20))


Memory = Annotated[str, AfterValidator(_memory)]


class LossConfig(BaseConfig):
    """What is minimised."""

    weighting: Annotated[str, RegisteredName(LOSS_WEIGHTINGS)] = "min_snr"
    """How much each noise level counts: min_snr (with `min_snr_gamma`) or constant."""
    min_snr_gamma: float = Field(default=5.0, ge=0.0)
    """Gamma of min-SNR weighting (arXiv:2303.09556): low noise levels, being easy, count less. 0
    weighs all alike."""
    noise_offset: float = Field(default=0.0, ge=0.0, le=1.0)
    """Strength of noise that is the same all over a channel, for darker darks; usually 0.05."""
    zero_terminal_snr: bool = False
    """Rescale the noise so that its last level holds no signal (arXiv:2305.08891). Wants a model
    that predicts v or x0 (`sample`), and is always on for one whose own scheduler says so."""
    masked: bool = True
    """Weigh the loss by `name.mask.png` (white counts, black does not) where that file exists."""


class TrainerConfig(BaseConfig):
    """How it is trained."""

    steps: Positive = 200
    """Optimizer steps."""
    batch_size: Positive = 8
    """Images that one process takes at once. An optimizer step takes this times
    `gradient_accumulation_steps` times the number of processes."""
    gradient_accumulation_steps: Annotated[int, Field(gt=0, le=65536)] = 1
    """How many batches of each process add up to one optimizer step: a larger effective batch in
    the memory of one."""

    method: Annotated[str, RegisteredName(TRAINING_METHODS)] = "lora"
    """What is trained: lora, or a method of another package."""
    optimizer: OptimizerName = "adamw"
    """adamw; adamw8bit (bitsandbytes), prodigy, lion and adafactor need the extra
    `lorasmith[optimizers]`."""
    optimizer_args: Annotated[dict[str, Any], BeforeValidator(foreign_values.optimizer_args)] = (
        Field(default_factory=dict)
    )
    """Further arguments of the optimizer by name, such as `{ betas = [0.9, 0.99] }`."""
    learning_rate: PositiveFloat | None = None
    """Peak learning rate. Left out, by the size of the model: 6e-3 for miniatures such as the one
    that ships with lorasmith, 1e-4 for full-size Stable Diffusion; a quarter of that for lion, and
    1.0 for prodigy, which finds its own."""
    text_encoder_lr: Annotated[
        PositiveFloat | None, BeforeValidator(foreign_values.text_encoder_lr)
    ] = None
    """Peak learning rate of text encoder layers; left out, half of `learning_rate` (with prodigy
    the same)."""
    loraplus_lr_ratio: float = Field(default=1.0, ge=1.0)
    """Learning rate of up-matrices over that of down-matrices (LoRA+, arXiv:2402.12354)."""
    lr_scheduler: LrSchedulerName = "cosine"
    """How the learning rate falls after the warm-up."""
    lr_warmup_steps: Annotated[int | float, AfterValidator(_steps_or_share)] = 20
    """Steps over which the learning rate rises from zero; below 1, a share of all steps."""
    lr_scheduler_min_lr_ratio: float = Field(default=0.1, ge=0.0, le=1.0)
    """The schedule ends at this share of the peak."""
    weight_decay: float = Field(default=0.01, ge=0.0)
    """Decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, ge=0.0)
    """Largest gradient norm; larger gradients are scaled down to it. 0 leaves them alone."""
    ema_decay: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Decay of an exponential moving average (EMA) of the adapters' weights, which is then
    validated and saved; 0 for none."""

    loss: LossConfig = LossConfig()
    """What is minimised."""

    mixed_precision: MixedPrecision = "fp32"
    """What the frozen model computes in: fp32, fp16 or bf16. The adapters stay float32."""
    gradient_checkpointing: bool = False
    """Compute activations again instead of keeping them: less memory, about a third slower."""
    vram_limit: Memory | None = None
    """GPU memory limit of a run, such as 12GB: as few blocks as possible then recompute their
    activations. Left out, none does, unless `gradient_checkpointing` is set."""
    cuda_graph: bool = True
    """On a CUDA GPU, capture a step as a CUDA graph for each image size and replay it: the same
    results, without the time of launching its kernels one by one."""
    fp8: bool = False
    """Compute the largest frozen layers in FP8 where batches are large, on RTX 40, H100 and later
    GPUs: faster, slightly inexact. Adapters are not quantized."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the U-Net's blocks, which takes one to two minutes the first time; auto does it for
    long runs on GPUs that are too old for the package's own, faster kernels (before RTX 30)."""
    device: str = "auto"
    """Where to train: auto, cpu, cuda, cuda:1, mps."""
    seed: Annotated[int, BeforeValidator(foreign_values.seed)] = Field(default=0, ge=0, lt=2**63)
    """Seed of the adapters' initialisation, the data order and the noise; -1 chooses one."""

    log_every_n_steps: Positive = 10
    """Steps between two lines of the log."""
    checkpoint_every_n_steps: Positive = 100
    """Steps between two checkpoints, from which `--resume` continues."""
    keep_checkpoints: Positive = 2
    """How many checkpoints stay on disk."""
    save_every_n_steps: Positive | None = None
    """Steps between two LoRA files `NAME-000100.safetensors` in the run's folder; left out, none
    but the last and the best."""
    early_stopping_patience: Positive | None = None
    """Stop when the validation loss has not improved in this many validations; left out, never."""

    def images_per_step(self, num_processes: int = 1) -> int:
        """Return the effective batch size: the images of one optimizer step."""
        return self.batch_size * self.gradient_accumulation_steps * num_processes

    def describe_batch(self, num_processes: int = 1) -> str:
        """Return how the effective batch size comes about, for the log."""
        steps, processes = self.gradient_accumulation_steps, num_processes
        return (
            f"batch size {self.batch_size} x {steps} accumulation step{'s' * (steps != 1)} x "
            f"{processes} process{'es' * (processes != 1)} = {self.images_per_step(processes)} "
            "images per optimizer step"
        )
