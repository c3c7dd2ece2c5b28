"""Names of a model's layers: module paths and what LoRA files call them.

The sd-scripts ("kohya") convention writes a module path with underscores for dots. Module names
contain underscores themselves, so the way back is a table of the layers that a model has.
"""

from dataclasses import dataclass

from torch import nn

from lorasmith.adapters.naming.unet_blocks import BlockMap
from lorasmith.adapters.nn.wrapper import LoraWrapper
from lorasmith.core.errors import WeightsError
from lorasmith.models.family import Networks, detect_family

UNET_PREFIX = "lora_unet_"
UNET = "unet"
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")

_TEXT_LEVEL = "text_model."
"""A level of CLIPTextModel that files have in their names and transformers 5 no longer has."""


@dataclass(frozen=True)
class LayerRef:
    """Where an adapter can go."""

    name: str
    """What LoRA files call it."""
    part: str
    """The part of the model: ``unet``, ``text_encoder`` or ``text_encoder_2``."""
    network: nn.Module
    """The network."""
    path: str
    """The layer's module path below it."""
    layer: nn.Module
    """The layer itself, without adapters."""
    block: str
    """Its name in block weight vectors (BASE, IN04, MID, OUT05), or nothing."""

    @property
    def location(self) -> tuple[nn.Module, str]:
        """Network and path."""
        return self.network, self.path


LayerRefs = dict[str, LayerRef]
"""Places by the names that files use."""


def find_adaptable_layers(root: nn.Module) -> dict[str, nn.Module]:
    """Return the linear and convolution layers of a network by module path, in its order.

    Layers that carry adapters appear under their own path, as what they are without them.
    """
    found: dict[str, nn.Module] = {}
    for path, module in root.named_modules():
        if isinstance(module, LoraWrapper):
            found[path] = module.base
        elif isinstance(module, nn.Linear | nn.Conv2d) and path.rpartition(".")[0] not in found:
            found[path] = module
    return found


def kohya_unet_name(path: str) -> str:
    """Return the file name of a U-Net layer: ``lora_unet_down_blocks_0_..._to_q``."""
    return UNET_PREFIX + path.replace(".", "_")


def kohya_text_name(path: str, prefix: str = "lora_te_") -> str:
    """Return the file name of a text encoder layer: ``lora_te_text_model_encoder_layers_0_...``."""
    inner = "" if path.startswith("text_projection") else _TEXT_LEVEL
    return prefix + (inner + path.removeprefix(_TEXT_LEVEL)).replace(".", "_")


def find_layer_refs(model: Networks) -> LayerRefs:
    """Return every layer of the U-Net and the text encoders under its file name.

    SDXL's U-Net layers have sgm's names (``lora_unet_input_blocks_4_1_...``), its text encoders
    ``lora_te1_`` and ``lora_te2_``.

    Raises:
        WeightsError: two layers share a name, so that a file would be ambiguous; or the model's
            family is unknown.
    """
    facts = detect_family(model)
    places: LayerRefs = {}
    for place in [*_unet_places(model.unet, facts.uses_sgm_names), *_text_places(model)]:
        if place.name in places:
            raise WeightsError(
                f"{place.path} and {places[place.name].path} are both called {place.name} in files"
            )
        places[place.name] = place
    return places


def find_name_aliases(model: Networks) -> dict[str, str]:
    """Return further names that files may use, each with the one in `places_of`.

    Some programs write diffusers' names for SDXL, and diffusers itself numbers the text encoder of
    SD 1.x. A file in diffusers' naming does not tell how many text encoders there are.
    """
    facts = detect_family(model)
    other = {}
    if facts.uses_sgm_names:
        other = {
            kohya_unet_name(place.path): place.name for place in _unet_places(model.unet, sgm=True)
        }
    first = facts.lora_text_prefixes[0]
    for place in _text_places(model):
        if place.part == TEXT_ENCODERS[0]:
            prefix = "lora_te1_" if first == "lora_te_" else "lora_te_"
            other[prefix + place.name.removeprefix(first)] = place.name
    return other


def _unet_places(unet: nn.Module, sgm: bool) -> list[LayerRef]:
    blocks = BlockMap.from_unet(unet)
    return [
        LayerRef(
            UNET_PREFIX + blocks.sgm_name(path) if sgm else kohya_unet_name(path),
            UNET,
            unet,
            path,
            layer,
            blocks.lbw_name(path),
        )
        for path, layer in find_adaptable_layers(unet).items()
    ]


def _text_places(model: Networks) -> list[LayerRef]:
    encoders = [model.text_encoder, model.text_encoder_2]
    prefixes = detect_family(model).lora_text_prefixes
    return [
        LayerRef(kohya_text_name(path, prefix), part, encoder, path, layer, "BASE")
        for part, encoder, prefix in zip(TEXT_ENCODERS, encoders, prefixes, strict=False)
        if encoder is not None
        for path, layer in find_adaptable_layers(encoder).items()
    ]
