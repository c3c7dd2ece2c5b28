"""From settings to the layers that get an adapter, each with its rank, alpha and learning rate."""

from collections.abc import Sequence
from dataclasses import dataclass

from lorasmith.adapters.naming.layer_names import UNET, LayerRef, find_layer_refs
from lorasmith.adapters.targeting.selectors import match_target
from lorasmith.config.lora import LoraConfig, LoraOverride, Targets
from lorasmith.config.optimization import TrainerConfig
from lorasmith.core.errors import ConfigError
from lorasmith.models.families.family import Networks


@dataclass(frozen=True)
class LayerTarget:
    """A layer that gets an adapter."""

    ref: LayerRef
    """The layer."""
    rank: int
    """Rank of its adapter."""
    alpha: float
    """Its alpha, as in the settings."""
    learning_rate: float
    """Its peak learning rate."""
    part: str
    """What it belongs to in logs: ``unet``, ``text``, or the targets of its `lora.overrides`."""


def resolve_targets(model: Networks, lora: LoraConfig, train: TrainerConfig) -> list[LayerTarget]:
    """Return the layers that get an adapter, the U-Net's first, in the order of the networks.

    If several settings select a layer, the last one of `lora.targets` and `lora.overrides` counts.

    Args:
        model: the model; on the meta device is enough.
        lora: settings of the adapters.
        train: settings of the training, with complete learning rates.

    Raises:
        ConfigError: a target is misspelt or selects no layer; the message suggests close names.
        WeightsError: the model's family is unknown.
    """
    refs = list(find_layer_refs(model).values())
    targets: dict[str, LayerTarget] = {}
    for ref in select_layers(lora.targets, refs, "lora.targets"):
        targets[ref.name] = _main_target(ref, lora, train)
    labels = _labels(lora.overrides)
    for index, (override, label) in enumerate(zip(lora.overrides, labels, strict=True)):
        for ref in select_layers(override.targets, refs, f"lora.overrides.{index}.targets"):
            targets[ref.name] = _override_target(ref, lora, train, override, label)
    return [targets[ref.name] for ref in refs if ref.name in targets]


def select_layers(targets: Targets, refs: Sequence[LayerRef], field: str) -> list[LayerRef]:
    """Return the layers that targets select, each once, in the order of ``refs``.

    Raises:
        ConfigError: a target selects no layer.
    """
    names = {
        ref.name for target in split_targets(targets) for ref in match_target(target, refs, field)
    }
    return [ref for ref in refs if ref.name in names]


def split_targets(targets: Targets) -> list[str]:
    """Return single targets; a string may hold several, separated by commas."""
    texts = [targets] if isinstance(targets, str) else targets
    return [target.strip() for text in texts for target in text.split(",") if target.strip()]


def _main_target(ref: LayerRef, lora: LoraConfig, train: TrainerConfig) -> LayerTarget:
    part = "unet" if ref.part == UNET else "text"
    return LayerTarget(ref, lora.rank, lora.effective_alpha, _learning_rate(ref, train), part)


def _override_target(
    ref: LayerRef, lora: LoraConfig, train: TrainerConfig, override: LoraOverride, label: str
) -> LayerTarget:
    rank = override.rank or lora.rank
    inherited_alpha = lora.effective_alpha if override.rank is None else float(rank)
    alpha = override.alpha or inherited_alpha
    learning_rate = override.learning_rate or _learning_rate(ref, train)
    return LayerTarget(ref, rank, alpha, learning_rate, label)


def _learning_rate(ref: LayerRef, train: TrainerConfig) -> float:
    name = "learning_rate" if ref.part == UNET else "text_encoder_lr"
    rate: float | None = getattr(train, name)
    if rate is None:
        raise ConfigError(f"train.{name}: it is not filled in yet")
    return rate


def _labels(overrides: Sequence[LoraOverride]) -> list[str]:
    """Return a unique label for each override: its targets."""
    labels: list[str] = []
    for override in overrides:
        label = ",".join(split_targets(override.targets))
        count = sum(other == label or other.startswith(f"{label}#") for other in labels)
        labels.append(f"{label}#{count + 1}" if count else label)
    return labels
