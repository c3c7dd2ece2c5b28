"""Settings about how a LoRA is trained."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from lorasmith.config.base import Settings

Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]

Optimizer = Literal["adamw", "adamw8bit", "prodigy", "lion", "adafactor"]


def _steps_or_share(value: int | float) -> int | float:
    """Take 20 as steps and 0.1 as a share of all steps."""
    if value < 0 or (value >= 1 and value != int(value)):
        raise ValueError("give a number of steps, such as 20, or a share below 1, such as 0.05")
    return int(value) if value >= 1 or value == 0 else value


def _memory(value: str) -> str:
    """Take 12GB, 12.5 GiB, 8000MB."""
    bytes_of(value)
    return value


def bytes_of(memory: str) -> int:
    """Return how many bytes a text such as ``12GB`` means; GB and GiB are both 2^30 bytes, as
    graphics cards are sold.

    Raises:
        ValueError: it is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([GM])i?B?\s*", memory, re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise ValueError("give an amount of memory, such as 12GB")
    return int(float(found[1]) * 2 ** (30 if found[2].upper() == "G" else 20))


Memory = Annotated[str, AfterValidator(_memory)]


class LossSettings(Settings):
    """What is minimised."""

    min_snr: float = Field(default=5.0, ge=0.0)
    """Gamma of min-SNR weighting (arXiv:2303.09556): low noise levels, being easy, count less. 0
    weighs all alike."""
    noise_offset: float = Field(default=0.0, ge=0.0, le=1.0)
    """Strength of noise that is the same all over a channel, for darker darks; usually 0.05."""
    zero_terminal_snr: bool = False
    """Rescale the noise so that its last level holds no signal (arXiv:2305.08891). Wants a model
    with v-prediction, and is always on for one whose own scheduler says so."""
    masked: bool = True
    """Weigh the loss by `name.mask.png` (white counts, black does not) where that file exists."""


class TrainSettings(Settings):
    """How it is trained."""

    steps: Positive = 200
    """Optimizer steps."""
    batch_size: Positive = 8
    """Pictures per optimizer step, over all processes and accumulated parts together."""
    accumulate: Positive = 1
    """Split each batch into so many parts, one after the other, to save memory."""

    optimizer: Optimizer = "adamw"
    """adamw; adamw8bit (bitsandbytes), prodigy, lion and adafactor need the extra
    `lorasmith[optimizers]`."""
    optimizer_args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the optimizer by name, such as `{ betas = [0.9, 0.99] }`."""
    learning_rate: PositiveFloat | None = None
    """Peak learning rate. Left out, by the size of the model: 6e-3 for miniatures such as the one
    that ships with lorasmith, 1e-4 for full-size Stable Diffusion; a quarter of that for lion, and
    1.0 for prodigy, which finds its own."""
    text_learning_rate: PositiveFloat | None = None
    """Peak learning rate of text encoder layers; left out, half of `learning_rate` (with prodigy
    the same)."""
    loraplus_ratio: float = Field(default=1.0, ge=1.0)
    """Learning rate of up-matrices over that of down-matrices (LoRA+, arXiv:2402.12354)."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup: Annotated[int | float, AfterValidator(_steps_or_share)] = 20
    """Steps over which the learning rate rises from zero; below 1, a share of all steps."""
    floor: float = Field(default=0.1, ge=0.0, le=1.0)
    """The schedule ends at this share of the peak."""
    weight_decay: float = Field(default=0.01, ge=0.0)
    """Decoupled weight decay."""
    clip: float = Field(default=1.0, ge=0.0)
    """Largest gradient norm; larger gradients are scaled down to it. 0 leaves them alone."""
    ema: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Decay of an average of the adapters' weights, which is then what is shown and saved."""

    loss: LossSettings = LossSettings()
    """What is minimised."""

    precision: Literal["no", "fp16", "bf16"] = "no"
    """What the frozen model computes in: float32 (no), fp16 or bf16. The adapters stay float32."""
    gradient_checkpointing: bool = False
    """Compute activations again instead of keeping them: less memory, about a third slower."""
    memory: Memory | None = None
    """What a run may take of a GPU, such as 12GB: as few blocks as possible then compute their
    activations again. Left out, none does, unless `gradient_checkpointing` says so."""
    cuda_graph: bool = True
    """On a CUDA GPU, record a step once for each size of pictures and replay it: the same results,
    without the time that launching its kernels one by one takes."""
    fp8: bool = False
    """On a GPU that can (RTX 40, H100 and later), multiply with the largest frozen layers in 8 bits
    where batches are large: faster, slightly inexact. Adapters stay as they are."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the U-Net's blocks, which takes one to two minutes the first time; auto does it for
    long runs on GPUs that are too old for the package's own, faster kernels (before RTX 30)."""
    device: str = "auto"
    """Where to train: auto, cpu, cuda, cuda:1, mps."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the adapters' start, the data order and the noise."""

    log_every: Positive = 10
    """Steps between two lines of the log."""
    checkpoint_every: Positive = 100
    """Steps between two checkpoints, from which `--resume` goes on."""
    keep_checkpoints: Positive = 2
    """How many of them stay on disk."""
    save_every: Positive | None = None
    """Steps between two LoRA files `NAME-000100.safetensors` in the run's folder; left out, none
    but the last and the best."""
    patience: Positive | None = None
    """Stop when the held-out loss has not improved for so many measurements; left out, never."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} does not divide into {self.accumulate} "
                "accumulated parts"
            )
        return self
