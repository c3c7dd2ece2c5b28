"""What targets take of a model: layers, parameters, share; no weight is read."""

from collections.abc import Iterable
from dataclasses import dataclass

from lorasmith.adapters.naming.layer_names import UNET, LayerRef, find_layer_refs
from lorasmith.adapters.nn.lora import layer_weight
from lorasmith.adapters.targeting.selectors import block_label
from lorasmith.adapters.targeting.targets import select_layers
from lorasmith.config.lora import Targets
from lorasmith.core.errors import ConfigError
from lorasmith.models.family import Networks
from lorasmith.models.model_summary import count_lora_parameters, layer_type


@dataclass(frozen=True)
class CoveredLayer:
    """A layer that gets an adapter."""

    part: str
    """``unet``, ``text_encoder`` or ``text_encoder_2``."""
    path: str
    """Its module path in that part."""
    name: str
    """What LoRA files call it."""
    block: str
    """The block it is in (``down.1``), or the part for what is in none."""
    kind: str
    """What it belongs to: attn1, attn2, ff, proj, resnet, ..."""
    shape: tuple[int, ...]
    """Shape of its weight."""
    parameters: int
    """Parameters of its weight."""
    lora_parameters: int
    """Parameters of its adapter."""


@dataclass(frozen=True)
class TargetCoverage:
    """The layers that targets take of a model."""

    layers: tuple[CoveredLayer, ...]
    """In the order of the networks."""
    parts: dict[str, int]
    """All parameters of each part that adapters can go into."""

    @property
    def lora_parameters(self) -> int:
        """Parameters of all adapters."""
        return sum(layer.lora_parameters for layer in self.layers)

    def parameter_share(self, layers: Iterable[CoveredLayer]) -> float:
        """Return what part of their networks' parameters is in some layers, 0 to 1."""
        some = list(layers)
        whole = sum(self.parts[part] for part in {layer.part for layer in some})
        return sum(layer.parameters for layer in some) / whole if whole else 0.0

    def group_by_block(self) -> dict[str, list[CoveredLayer]]:
        """Return the layers of each block, in the order of the data."""
        found: dict[str, list[CoveredLayer]] = {}
        for layer in sorted(self.layers, key=_order):
            found.setdefault(layer.block, []).append(layer)
        return found


def compute_coverage(model: Networks, targets: Targets, rank: int) -> TargetCoverage:
    """Return what targets take.

    Args:
        model: the networks; on the meta device is enough.
        targets: as in ``lora.targets``.
        rank: of the adapters.

    Raises:
        ConfigError: a target fits no layer, or the rank is not 1 or more.
        WeightsError: the model's family is unknown.
    """
    if rank < 1:
        raise ConfigError(f"lora: rank {rank} is not possible; use a whole number, 1 or more")
    places = select_layers(targets, list(find_layer_refs(model).values()), "--targets")
    networks = {
        UNET: model.unet,
        "text_encoder": model.text_encoder,
        "text_encoder_2": model.text_encoder_2,
    }
    sizes = {
        part: sum(tensor.numel() for tensor in network.parameters())
        for part, network in networks.items()
        if network is not None
    }
    return TargetCoverage(tuple(_covered(place, rank) for place in places), sizes)


def _covered(place: LayerRef, rank: int) -> CoveredLayer:
    weight = layer_weight(place.layer)
    of_unet = place.part == UNET
    return CoveredLayer(
        place.part,
        place.path,
        place.name,
        block_label(place) or place.part,
        layer_type(place.path) if of_unet else place.path.split(".")[-2],
        tuple(weight.shape),
        weight.numel(),
        count_lora_parameters(place.layer, rank),  # type: ignore[arg-type]
    )


def _order(layer: CoveredLayer) -> tuple[int, str]:
    """Sort by the order of the data: down, middle, up, the rest, the text encoders."""
    side = layer.block.partition(".")[0]
    sides = ("down", "mid", "up", UNET)
    return sides.index(side) if side in sides else len(sides), layer.block
