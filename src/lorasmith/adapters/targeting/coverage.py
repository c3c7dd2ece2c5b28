"""Which layers of a model targets select: parameters and share; no weight is read."""

from collections.abc import Iterable
from dataclasses import dataclass

from lorasmith.adapters.naming.layer_names import UNET, LayerRef, find_layer_refs
from lorasmith.adapters.nn.lora import layer_weight
from lorasmith.adapters.targeting.selectors import block_label
from lorasmith.adapters.targeting.targets import select_layers
from lorasmith.config.lora import Targets
from lorasmith.core.errors import ConfigError
from lorasmith.models.families.family import Networks
from lorasmith.models.model_summary import count_lora_parameters, layer_type


@dataclass(frozen=True)
class CoveredLayer:
    """A layer that gets an adapter."""

    part: str
    """``unet``, ``text_encoder`` or ``text_encoder_2``."""
    path: str
    """Its module path in that part."""
    name: str
    """Its kohya name."""
    block: str
    """Its block (``down.1``), or the part if it is in none."""
    kind: str
    """What it belongs to: attn1, attn2, ff, proj, resnet, ..."""
    shape: tuple[int, ...]
    """Shape of its weight."""
    parameters: int
    """Number of elements of its weight."""
    lora_parameters: int
    """Number of parameters of its adapter."""


@dataclass(frozen=True)
class TargetCoverage:
    """The layers that targets select."""

    layers: tuple[CoveredLayer, ...]
    """The layers, in the order of the networks."""
    parts: dict[str, int]
    """Number of parameters of each part of the model that can have adapters."""

    @property
    def lora_parameters(self) -> int:
        """Number of parameters of all adapters."""
        return sum(layer.lora_parameters for layer in self.layers)

    def parameter_share(self, layers: Iterable[CoveredLayer]) -> float:
        """Return the share, 0 to 1, of their networks' parameters that given layers have."""
        selected = list(layers)
        total = sum(self.parts[part] for part in {layer.part for layer in selected})
        return sum(layer.parameters for layer in selected) / total if total else 0.0

    def group_by_block(self) -> dict[str, list[CoveredLayer]]:
        """Return the layers of each block, from the input to the output."""
        groups: dict[str, list[CoveredLayer]] = {}
        for layer in sorted(self.layers, key=_sort_key):
            groups.setdefault(layer.block, []).append(layer)
        return groups


def compute_coverage(model: Networks, targets: Targets, rank: int) -> TargetCoverage:
    """Return the layers that targets select.

    Args:
        model: the networks; on the meta device is enough.
        targets: as in ``lora.targets``.
        rank: of the adapters.

    Raises:
        ConfigError: a target selects no layer, or the rank is not 1 or more.
        WeightsError: the model's family is unknown.
    """
    if rank < 1:
        raise ConfigError(f"lora: rank {rank} is not possible; use a whole number, 1 or more")
    refs = select_layers(targets, list(find_layer_refs(model).values()), "--targets")
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
    return TargetCoverage(tuple(_cover(ref, rank) for ref in refs), sizes)


def _cover(ref: LayerRef, rank: int) -> CoveredLayer:
    weight = layer_weight(ref.layer)
    is_in_unet = ref.part == UNET
    return CoveredLayer(
        ref.part,
        ref.path,
        ref.name,
        block_label(ref) or ref.part,
        layer_type(ref.path) if is_in_unet else ref.path.split(".")[-2],
        tuple(weight.shape),
        weight.numel(),
        count_lora_parameters(ref.layer, rank),  # type: ignore[arg-type]
    )


def _sort_key(layer: CoveredLayer) -> tuple[int, str]:
    """Return a sort key: down, middle, up, the rest of the U-Net, the text encoders."""
    side = layer.block.partition(".")[0]
    sides = ("down", "mid", "up", UNET)
    return sides.index(side) if side in sides else len(sides), layer.block
