"""Adapters for training: putting them into a model, grouping their parameters, exporting them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
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

_INIT_STREAM = 0
"""Index of the initialisation in a run's stream of random numbers."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are trained with the same settings."""

    part: str
    """See `LayerTarget.part`."""
    factor: FactorName
    """Which factors they are; LoRA+ trains down and up at different rates."""
    learning_rate: float
    """Their peak learning rate, without a LoRA+ ratio."""
    parameters: list[nn.Parameter]
    """The factors, float32."""


class TrainableLora:
    """Trainable adapters in a model.

    Attributes:
        targets: the layers that they are on.
        attached: the adapters in the network.
    """

    def __init__(self, targets: Sequence[LayerTarget], attached: AttachedLora) -> None:
        self.targets = tuple(targets)
        self.attached = attached

    @property
    def adapters(self) -> dict[str, LoraAdapter]:
        """The adapters by the kohya names of their layers."""
        adapters = self.attached.adapters
        return {name: a for name, a in adapters.items() if isinstance(a, LoraAdapter)}

    @property
    def trains_text_encoder(self) -> bool:
        """Whether an adapter is in a text encoder."""
        return any(target.ref.part != UNET for target in self.targets)

    def parameters(self) -> list[nn.Parameter]:
        """Return all factors, down before up, in the order of the networks."""
        return [factor for a in self.adapters.values() for factor in (a.down, a.up)]

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the factors by part, learning rate and factor; each is in one group."""
        groups: dict[tuple[str, float, FactorName], ParameterGroup] = {}
        adapters = self.adapters
        for target in self.targets:
            adapter = adapters[target.ref.name]
            factors: tuple[tuple[FactorName, nn.Parameter], ...] = (
                ("down", adapter.down),
                ("up", adapter.up),
            )
            for name, factor in factors:
                key = target.part, target.learning_rate, name
                group = ParameterGroup(target.part, name, target.learning_rate, [])
                groups.setdefault(key, group).parameters.append(factor)
        return list(groups.values())

    def train(self, mode: bool = True) -> None:
        """Turn dropout on, or off for validation."""
        for adapter in self.adapters.values():
            adapter.train(mode)

    def set_strength(self, strength: float) -> None:
        """Set the multiplier of all adapters; at 0 the model equals the base model bit for bit."""
        self.attached.set_strength(strength)

    def detach(self) -> None:
        """Take the adapters out; the model has its original module objects again."""
        self.attached.detach()


def inject_trainable(
    targets: Sequence[LayerTarget],
    lora: LoraConfig,
    seed: int,
    gate_metadata: GateMetadata | None = None,
) -> TrainableLora:
    """Put untrained adapters on layers, on their device, in float32, in training mode.

    The model's output does not change. The same seed and weights give the same adapters.

    Args:
        targets: layers of one model (`lorasmith.adapters.targeting.targets.resolve_targets`).
        lora: initialisation, dropout and rsLoRA.
        seed: of the random numbers.
        gate_metadata: what activates the LoRA; None is a LoRA that is always active.

    Raises:
        WeightsError: adapters of this kind of layer are not supported.
    """
    generator = make_generator(seed, _INIT_STREAM, 0)
    adapters = {
        target.ref.name: init_adapter(
            target.ref.layer,
            target.rank,
            effective_alpha(target, lora.rslora),
            lora.init,
            generator,
            lora.dropout,
        )
        for target in targets
    }
    refs = {target.ref.name: target.ref for target in targets}
    return TrainableLora(targets, inject_adapters(refs, adapters, gate_metadata))


def effective_alpha(target: LayerTarget, rslora: bool) -> float:
    """Return the alpha whose alpha / rank is the scale.

    rsLoRA scales by alpha / sqrt(rank) (arXiv:2312.03732), which LoRA files cannot express.
    """
    return target.alpha * float(target.rank**0.5) if rslora else target.alpha


def export_layers(trainable: TrainableLora) -> dict[str, LoraLayer]:
    """Return the layers of an ordinary LoRA file for the unmodified base model.

    Adapters that subtract their start (`compensated`, `pissa`) have twice the rank there. All
    layers get the alpha of the largest part, and their up matrices make up for it: diffusers reads
    differing ranks, but looks for differing alphas of attention layers under wrong names.
    """
    layers = {name: export_layer(adapter) for name, adapter in trainable.adapters.items()}
    alpha = next(iter(summarize_parts(trainable).values())).alpha
    return {name: change_alpha(layer, alpha) for name, layer in layers.items()}


def change_alpha(layer: LoraLayer, alpha: float) -> LoraLayer:
    """Return a layer with another alpha and the same effect."""
    if layer.alpha == alpha:
        return layer
    return replace(layer, up=layer.up * (layer.alpha / alpha), alpha=alpha)


def summarize_parts(trainable: TrainableLora) -> dict[str, PartSummary]:
    """Return a summary of each part, the largest first; a part with several ranks is split."""
    counts: Counter[tuple[str, int, float]] = Counter()
    adapters = trainable.adapters
    for target in trainable.targets:
        layer = export_layer(adapters[target.ref.name])
        counts[target.part, layer.rank, layer.alpha] += 1
    ranks_per_part = Counter(part for part, _, _ in counts)
    return {
        f"{part} rank {rank}" if ranks_per_part[part] > 1 else part: PartSummary(rank, alpha, count)
        for (part, rank, alpha), count in counts.most_common()
    }


@torch.no_grad()
def export_layer(adapter: LoraAdapter) -> LoraLayer:
    """Return one adapter as a file stores it, with the same scale."""
    factors = Factors(*(factor.detach() for factor in adapter.factors()))
    if adapter.down0 is not None:
        factors = balance_factors(factors)
    return LoraLayer(*factors, alpha=adapter.scale * len(factors.down))


def balance_factors(factors: Factors) -> Factors:
    """Give each row of down and its column of up the same norm; the product does not change.

    What was learned on top of a large start is small, and float16 would round it away next to it.
    """
    down, up = factors
    rows = down.flatten(1).norm(dim=1)
    columns = up.flatten(1).norm(dim=0)
    is_nonzero = (rows > 0) & (columns > 0)
    ratio = torch.where(is_nonzero, columns / rows, 1.0).sqrt()
    shape = [1] * (down.ndim - 1)
    return Factors(down * ratio.view(-1, *shape), up / ratio.view(1, -1, *[1] * (up.ndim - 2)))
