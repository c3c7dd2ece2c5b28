"""Settings of `lorasmith train`."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from lorasmith.config.base import Settings, UserPath

Positive = Annotated[int, Field(gt=0)]

SUFFIX = ".safetensors"


def _tag(text: str) -> str:
    words = text.split()
    if not words or not any(character.isalnum() for character in text):
        raise ValueError("the tag is empty; give one or more words, such as inkmono")
    if "," in text:
        raise ValueError("a tag has no comma; captions are divided into parts by them")
    return " ".join(words)


def _name(text: str) -> str:
    stem = text.removesuffix(SUFFIX)
    last = stem.replace("\\", "/").rpartition("/")[2]
    if not last.strip(". ") or not text.isprintable():
        raise ValueError("give the LoRA a name, such as inkmono or some/folder/inkmono")
    return stem


class ModelSettings(Settings):
    """The model that is taught."""

    path: UserPath | None = None
    """A Stable Diffusion 1.x or 2.x model in diffusers' folder layout; left out, the miniature
    model that ships with lorasmith."""


class TrainData(Settings):
    """The pictures that are learned from."""

    path: UserPath
    """A folder of pictures with captions (`name.txt` beside `name.png`, or metadata.jsonl)."""
    tag: Annotated[str, AfterValidator(_tag)]
    """The words that shall call the LoRA. They stand in every caption of the pictures."""
    resolution: int | None = Field(default=None, gt=0)
    """Side of the training pictures in pixels; left out, what the model was trained at."""


class LoraSettings(Settings):
    """The adapter."""

    rank: Positive = 16
    """Inner width of the adapters: more can learn more, and forgets more."""
    alpha: float | None = Field(default=None, gt=0.0)
    """The adapters' output is scaled by alpha / rank; left out, alpha is the rank."""
    targets: str = "attention"
    """Preset of the layers that get an adapter."""
    init: Literal["gaussian", "kaiming"] = "gaussian"
    """How the down-matrices start; the up-matrices start at zero."""

    @property
    def scaled_alpha(self) -> float:
        """Alpha, or what stands for it."""
        return float(self.rank) if self.alpha is None else self.alpha


class TrainSettings(Settings):
    """How it is trained."""

    steps: Positive = 250
    """Optimizer steps."""
    batch_size: Positive = 8
    """Pictures per step."""
    learning_rate: float = Field(default=2e-3, gt=0.0)
    """Peak learning rate of AdamW. The default suits the miniature model that ships with
    lorasmith; a full-size one wants less, about 1e-4."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup: int = Field(default=20, ge=0)
    """Steps over which the learning rate rises from zero."""
    floor: float = Field(default=0.1, ge=0.0, le=1.0)
    """The schedule ends at this share of the peak."""
    weight_decay: float = Field(default=0.01, ge=0.0)
    """AdamW's decoupled weight decay."""
    clip: float = Field(default=1.0, gt=0.0)
    """Largest gradient norm; larger gradients are scaled down to it."""
    precision: Literal["no", "bf16"] = "no"
    """What the frozen model computes in: float32 (no) or bf16. The adapters stay float32."""
    device: str = "auto"
    """Where to train: auto, cpu, cuda, cuda:1, mps."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the adapters' start, the data order and the noise."""
    log_every: Positive = 10
    """Steps between two lines of the log."""


class OutputSettings(Settings):
    """What is written."""

    name: Annotated[str, AfterValidator(_name)]
    """NAME writes `loras/NAME.safetensors`, some/path/NAME writes `some/path/NAME.safetensors`;
    settings and log go to the folder of that name beside it."""


class TrainRun(Settings):
    """Everything about one `lorasmith train` run."""

    data: TrainData
    """The pictures."""
    output: OutputSettings
    """The result."""
    model: ModelSettings = ModelSettings()
    """The base model."""
    lora: LoraSettings = LoraSettings()
    """The adapter."""
    train: TrainSettings = TrainSettings()
    """The training."""
