"""Settings of the adapter: which layers get one, how wide, how it starts."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lorasmith.config.base import BaseConfig, Positive, PositiveFloat, RegisteredName
from lorasmith.registries import ADAPTER_INITS

Targets = str | tuple[str, ...]

GateKind = Literal["prompt", "token", "token+end", "none"]


class LoraOverride(BaseConfig):
    """Layers with another rank, alpha or learning rate."""

    targets: Targets
    """Presets or patterns over module paths, as in `lora.targets`, in addition to its layers.
    Where several settings name a layer, the last override counts."""
    rank: Positive | None = None
    """Rank here; left out, `lora.rank`."""
    alpha: PositiveFloat | None = None
    """Alpha here; left out, `lora.alpha` where the rank is left out too, else the rank."""
    learning_rate: PositiveFloat | None = None
    """Peak learning rate here; left out, `train.learning_rate`."""


class LoraConfig(BaseConfig):
    """The adapter."""

    rank: Positive = 16
    """Inner width of the adapters: more can learn more, and forgets more."""
    alpha: PositiveFloat | None = None
    """The adapters' output is scaled by alpha / rank; left out, alpha is the rank."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead (arXiv:2312.03732), so that high ranks still learn."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the adapters' inputs set to zero while they are trained."""
    targets: Targets = "all-linear"
    """Layers that get an adapter, one target or a list. A target is `TYPES`, `BLOCKS` or
    `TYPES@BLOCKS`, several joined by `+`. Types: `cross-attention`, `self-attention`, `attention`,
    `ff`, `all-linear` (all layers of the transformers), `conv` (resnets and samplers),
    `text-encoder`; blocks: `down`, `mid`, `up`, `down.1`, `up.0`, `IN04`, `OUT05`, and in SDXL
    `b-lora`, `b-lora-content`, `b-lora-style`. Blocks alone mean `all-linear` there. Module names
    as in PEFT's `target_modules` work too: `to_k`, `to_out.0`, `ff.net.0.proj`, `attn2`, and of the
    text encoders `q_proj`, `fc1`. Or a pattern over module paths (`up_blocks.1.*.attn2.*`; those of
    text encoders begin with `text_encoder`). `lorasmith model info --targets` shows what a target
    selects."""
    overrides: tuple[LoraOverride, ...] = ()
    """Layers with another rank, alpha or learning rate."""
    init: Annotated[str, RegisteredName(ADAPTER_INITS)] = "gaussian"
    """Initialisation of the factors. `gaussian` and `kaiming`: a random down matrix, a zero up
    matrix. `compensated`: both random, their product subtracted. `pissa`: the strongest directions
    of the frozen weight, also subtracted. With each, the model starts as the base model."""
    gate: GateKind = "prompt"
    """What activates the LoRA in lorasmith's own images; the file stores it. `prompt`: its tag in
    the prompt. `token`: the same, but cross-attention keys and values change only at the tag's
    tokens, in training too; `token+end` also from the end token on. `none`: always active."""

    @property
    def effective_alpha(self) -> float:
        """Alpha, or what stands for it."""
        return float(self.rank) if self.alpha is None else self.alpha

    @model_validator(mode="after")
    def _something_is_targeted(self) -> Self:
        if not self.targets and not self.overrides:
            raise ValueError("targets: name at least one preset or pattern")
        return self
