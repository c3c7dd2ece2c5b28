"""Adapters to be trained: into the model, to the optimizer in groups, and out as a LoRA file's
layers.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from lorasmith.adapters.files.metadata import PartSummary
from lorasmith.adapters.gating.gate_metadata import GateMetadata
from lorasmith.adapters.injection.inject import AttachedLora, inject_adapters
from lorasmith.adapters.kinds.lora import LoraLayer
from lorasmith.adapters.naming.layer_names import UNET
from lorasmith.adapters.nn.init import init_adapter
from lorasmith.adapters.nn.lora import Factors, LoraAdapter
from lorasmith.adapters.targeting.targets import LayerTarget
from lorasmith.config.lora import LoraConfig
from lorasmith.core.device import make_generator

FactorName = Literal["down", "up"]

_START = 0
"""Position of the adapters' start in a run's stream of random numbers."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are trained alike."""

    part: str
    """See `Target.part`."""
    factor: FactorName
    """Which of the two factors they are; LoRA+ gives them rates of their own."""
    learning_rate: float
    """Their peak learning rate, without a LoRA+ ratio."""
    parameters: list[nn.Parameter]
    """The factors, float32."""


class TrainableLora:
    """Untrained adapters in a model, and what they were made from."""

    def __init__(self, targets: Sequence[LayerTarget], attached: AttachedLora) -> None:
        self.targets = tuple(targets)
        self.attached = attached

    @property
    def adapters(self) -> dict[str, LoraAdapter]:
        """The adapters by the names of their layers in files."""
        found = self.attached.adapters
        return {name: one for name, one in found.items() if isinstance(one, LoraAdapter)}

    @property
    def trains_text_encoder(self) -> bool:
        """Whether any of them is in a text encoder."""
        return any(target.ref.part != UNET for target in self.targets)

    def parameters(self) -> list[nn.Parameter]:
        """Return all factors, down before up, in the order of the networks."""
        return [factor for one in self.adapters.values() for factor in (one.down, one.up)]

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the factors by part, learning rate and kind; each is in one group."""
        found: dict[tuple[str, float, FactorName], ParameterGroup] = {}
        adapters = self.adapters
        for target in self.targets:
            one = adapters[target.ref.name]
            factors: tuple[tuple[FactorName, nn.Parameter], ...] = (
                ("down", one.down),
                ("up", one.up),
            )
            for kind, factor in factors:
                key = target.part, target.learning_rate, kind
                group = ParameterGroup(target.part, kind, target.learning_rate, [])
                found.setdefault(key, group).parameters.append(factor)
        return list(found.values())

    def train(self, mode: bool = True) -> None:
        """Turn dropout on, or off for looking at the result."""
        for adapter in self.adapters.values():
            adapter.train(mode)

    def set_strength(self, weight: float) -> None:
        """Set the multiplier of all adapters; at 0 the model is the base model, bit for bit."""
        self.attached.set_strength(weight)

    def detach(self) -> None:
        """Take the adapters out; the model has its original modules again, the same objects."""
        self.attached.detach()


def inject_trainable(
    targets: Sequence[LayerTarget],
    lora: LoraConfig,
    seed: int,
    gate_metadata: GateMetadata | None = None,
) -> TrainableLora:
    """Put untrained adapters on layers, on their device, in float32, in training mode.

    The model's output stays what it is. The same seed and weights make the same adapters.

    Args:
        targets: layers of one model, from `lorasmith.adapters.targeting.targets.resolve`.
        lora: how they start, their dropout, and whether alpha is that of rsLoRA.
        seed: of the random numbers.
        facts: what is to open their gate; None is one that is always open.

    Raises:
        WeightsError: adapters of this kind of layer are not supported.
    """
    draws = make_generator(seed, _START, 0)
    adapters = {
        target.ref.name: init_adapter(
            target.ref.layer,
            target.rank,
            effective_alpha(target, lora.rslora),
            lora.init,
            draws,
            lora.dropout,
        )
        for target in targets
    }
    places = {target.ref.name: target.ref for target in targets}
    return TrainableLora(targets, inject_adapters(places, adapters, gate_metadata))


def effective_alpha(target: LayerTarget, rslora: bool) -> float:
    """Return the alpha whose alpha / rank is the adapter's true scale.

    rsLoRA scales by alpha / sqrt(rank) (arXiv:2312.03732), which files cannot say.
    """
    return target.alpha * float(target.rank**0.5) if rslora else target.alpha


def export_layers(trained: TrainableLora) -> dict[str, LoraLayer]:
    """Return the adapters as an ordinary LoRA file for the unmodified base holds them.

    One with a start of its own (`compensated`, `pissa`) has twice the rank there. All layers have
    the alpha of the largest part, and the up-matrices of others make up for it: diffusers reads
    differing ranks, but looks for differing alphas of attention layers under the wrong names.
    """
    layers = {name: export_layer(adapter) for name, adapter in trained.adapters.items()}
    alpha = next(iter(summarize_parts(trained).values())).alpha
    return {name: change_alpha(layer, alpha) for name, layer in layers.items()}


def change_alpha(layer: LoraLayer, alpha: float) -> LoraLayer:
    """Return a layer that has another alpha and does the same."""
    if layer.alpha == alpha:
        return layer
    return LoraLayer(layer.down, layer.up * (layer.alpha / alpha), alpha)


def summarize_parts(trained: TrainableLora) -> dict[str, PartSummary]:
    """Return what is to be said about each part of trained adapters, the largest first.

    A part whose layers differ in rank is divided by rank.
    """
    counted: Counter[tuple[str, int, float]] = Counter()
    adapters = trained.adapters
    for target in trained.targets:
        layer = export_layer(adapters[target.ref.name])
        counted[target.part, len(layer.down), layer.alpha] += 1
    several = Counter(part for part, _, _ in counted)
    return {
        f"{part} rank {rank}" if several[part] > 1 else part: PartSummary(rank, alpha, count)
        for (part, rank, alpha), count in counted.most_common()
    }


@torch.no_grad()
def export_layer(adapter: LoraAdapter) -> LoraLayer:
    """Return one adapter as a file holds it: factors, and alpha so that the scale stays."""
    factors = Factors(*(factor.detach() for factor in adapter.factors()))
    if adapter.down0 is not None:
        factors = balance_factors(factors)
    return LoraLayer(*factors, alpha=adapter.scale * len(factors.down))


def balance_factors(factors: Factors) -> Factors:
    """Give each row of down and its column of up the same length; the product stays.

    What was learned on top of a large start is small, and would drown in float16 beside it.
    """
    down, up = factors
    rows = down.flatten(1).norm(dim=1)
    columns = up.flatten(1).norm(dim=0)
    useful = (rows > 0) & (columns > 0)
    ratio = torch.where(useful, columns / rows, 1.0).sqrt()
    shape = [1] * (down.ndim - 1)
    return Factors(down * ratio.view(-1, *shape), up / ratio.view(1, -1, *[1] * (up.ndim - 2)))
