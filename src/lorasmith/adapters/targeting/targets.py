"""From settings to the layers that get an adapter, each with its rank, alpha and learning rate."""

from collections.abc import Sequence
from dataclasses import dataclass

from lorasmith.adapters.naming.layer_names import UNET, LayerRef, find_layer_refs
from lorasmith.adapters.targeting.selectors import match_target
from lorasmith.config.lora import LoraConfig, LoraOverride, Targets
from lorasmith.config.train_settings import TrainerConfig
from lorasmith.core.errors import ConfigError
from lorasmith.models.family import Networks


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
    """What it belongs to, for logs: ``unet``, ``text``, or the targets of its `lora.overrides`."""


def resolve_targets(model: Networks, lora: LoraConfig, train: TrainerConfig) -> list[LayerTarget]:
    """Return the layers that get an adapter, the U-Net's first, in the order of the networks.

    Where two settings name a layer, the later of `lora.targets` and the `lora.overrides` counts.

    Args:
        model: the model; on the meta device is enough.
        lora: the adapter's settings.
        train: the training's, with its learning rates filled in.

    Raises:
        ConfigError: a target is misspelt or fits no layer; close matches are named.
        WeightsError: the model's family is unknown.
    """
    places = list(find_layer_refs(model).values())
    found: dict[str, LayerTarget] = {}
    for place in select_layers(lora.targets, places, "lora.targets"):
        found[place.name] = _main_target(place, lora, train)
    labels = _labels(lora.overrides)
    for number, (part, label) in enumerate(zip(lora.overrides, labels, strict=True)):
        for place in select_layers(part.targets, places, f"lora.overrides.{number}.targets"):
            found[place.name] = _part_target(place, lora, train, part, label)
    return [found[place.name] for place in places if place.name in found]


def select_layers(targets: Targets, refs: Sequence[LayerRef], field: str) -> list[LayerRef]:
    """Return the layers that one or several targets name, each once, in the order of ``places``.

    Raises:
        ConfigError: one of them fits no layer.
    """
    taken = {
        place.name for one in split_targets(targets) for place in match_target(one, refs, field)
    }
    return [place for place in refs if place.name in taken]


def split_targets(targets: Targets) -> list[str]:
    """Return single targets; a string may hold several, divided by commas."""
    whole = [targets] if isinstance(targets, str) else targets
    return [one.strip() for text in whole for one in text.split(",") if one.strip()]


def _main_target(place: LayerRef, lora: LoraConfig, train: TrainerConfig) -> LayerTarget:
    part = "unet" if place.part == UNET else "text"
    return LayerTarget(place, lora.rank, lora.effective_alpha, _rate(place, train), part)


def _part_target(
    place: LayerRef, lora: LoraConfig, train: TrainerConfig, part: LoraOverride, label: str
) -> LayerTarget:
    rank = part.rank or lora.rank
    inherited = lora.effective_alpha if part.rank is None else float(rank)
    alpha = part.alpha or inherited
    rate = part.learning_rate or _rate(place, train)
    return LayerTarget(place, rank, alpha, rate, label)


def _rate(place: LayerRef, train: TrainerConfig) -> float:
    of_unet = place.part == UNET
    rate = train.learning_rate if of_unet else train.text_encoder_lr
    if rate is None:
        raise ConfigError(
            f"train.{'learning_rate' if of_unet else 'text_learning_rate'}: it is not filled in yet"
        )
    return rate


def _labels(parts: Sequence[LoraOverride]) -> list[str]:
    """Return a name for each part that is its own."""
    labels: list[str] = []
    for part in parts:
        label = ",".join(split_targets(part.targets))
        repeated = sum(one == label or one.startswith(f"{label}#") for one in labels)
        labels.append(f"{label}#{repeated + 1}" if repeated else label)
    return labels
