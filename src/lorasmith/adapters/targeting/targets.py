"""From settings to the layers that get an adapter, each with its rank, alpha and learning rate."""

from collections.abc import Sequence
from dataclasses import dataclass

from lorasmith.adapters.naming.layer_names import UNET, Place, places_of
from lorasmith.adapters.targeting.selectors import pick
from lorasmith.config.lora import LoraSettings, PartSettings, Targets
from lorasmith.config.train_settings import TrainSettings
from lorasmith.core.errors import ConfigError
from lorasmith.models.family import Networks


@dataclass(frozen=True)
class Target:
    """A layer that gets an adapter."""

    place: Place
    """The layer."""
    rank: int
    """Rank of its adapter."""
    alpha: float
    """Its alpha, as in the settings."""
    learning_rate: float
    """Its peak learning rate."""
    part: str
    """What it belongs to, for logs: ``unet``, ``text``, or the targets of its `lora.parts`."""


def resolve(model: Networks, lora: LoraSettings, train: TrainSettings) -> list[Target]:
    """Return the layers that get an adapter, the U-Net's first, in the order of the networks.

    Where two settings name a layer, the later of `lora.targets` and the `lora.parts` counts.

    Args:
        model: the model; on the meta device is enough.
        lora: the adapter's settings.
        train: the training's, with its learning rates filled in.

    Raises:
        ConfigError: a target is misspelt or fits no layer; close matches are named.
        WeightsError: the model's family is unknown.
    """
    places = list(places_of(model).values())
    found: dict[str, Target] = {}
    for place in named(lora.targets, places, "lora.targets"):
        found[place.name] = _main_target(place, lora, train)
    labels = _labels(lora.parts)
    for number, (part, label) in enumerate(zip(lora.parts, labels, strict=True)):
        for place in named(part.targets, places, f"lora.parts.{number}.targets"):
            found[place.name] = _part_target(place, lora, train, part, label)
    return [found[place.name] for place in places if place.name in found]


def named(targets: Targets, places: Sequence[Place], field: str) -> list[Place]:
    """Return the layers that one or several targets name, each once, in the order of ``places``.

    Raises:
        ConfigError: one of them fits no layer.
    """
    taken = {place.name for one in split(targets) for place in pick(one, places, field)}
    return [place for place in places if place.name in taken]


def split(targets: Targets) -> list[str]:
    """Return single targets; a string may hold several, divided by commas."""
    whole = [targets] if isinstance(targets, str) else targets
    return [one.strip() for text in whole for one in text.split(",") if one.strip()]


def _main_target(place: Place, lora: LoraSettings, train: TrainSettings) -> Target:
    part = "unet" if place.part == UNET else "text"
    return Target(place, lora.rank, lora.scaled_alpha, _rate(place, train), part)


def _part_target(
    place: Place, lora: LoraSettings, train: TrainSettings, part: PartSettings, label: str
) -> Target:
    rank = part.rank or lora.rank
    inherited = lora.scaled_alpha if part.rank is None else float(rank)
    alpha = part.alpha or inherited
    rate = part.learning_rate or _rate(place, train)
    return Target(place, rank, alpha, rate, label)


def _rate(place: Place, train: TrainSettings) -> float:
    of_unet = place.part == UNET
    rate = train.learning_rate if of_unet else train.text_learning_rate
    if rate is None:
        raise ConfigError(
            f"train.{'learning_rate' if of_unet else 'text_learning_rate'}: it is not filled in yet"
        )
    return rate


def _labels(parts: Sequence[PartSettings]) -> list[str]:
    """Return a name for each part that is its own."""
    labels: list[str] = []
    for part in parts:
        label = ",".join(split(part.targets))
        repeated = sum(one == label or one.startswith(f"{label}#") for one in labels)
        labels.append(f"{label}#{repeated + 1}" if repeated else label)
    return labels
