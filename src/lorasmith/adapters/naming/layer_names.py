"""Names of a model's layers: module paths and what LoRA files call them.

The sd-scripts ("kohya") convention writes a module path with underscores for dots. Module names
contain underscores themselves, so the way back is a table of the layers that a model has.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from lorasmith.adapters.naming.unet_blocks import BlockMap
from lorasmith.adapters.nn.wrapper import LoraWrapper
from lorasmith.core.errors import WeightsError
from lorasmith.models.families.family import Networks, detect_family

UNET_PREFIX = "lora_unet_"
UNET = "unet"
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")

_TEXT_MODEL = "text_model."
"""A level of CLIPTextModel that LoRA files have in their names and transformers 5 does not."""


@dataclass(frozen=True)
class LayerRef:
    """A layer that can have adapters."""

    name: str
    """Its kohya name, which LoRA files use."""
    part: str
    """The part of the model: ``unet``, ``text_encoder`` or ``text_encoder_2``."""
    network: nn.Module
    """The network that it is in."""
    path: str
    """Its module path in the network."""
    layer: nn.Module
    """The layer itself, without adapters."""
    block: str
    """Its block in block weights (BASE, IN04, MID, OUT05); empty outside of all blocks."""


LayerRefs = dict[str, LayerRef]
"""Layers by kohya name."""


def find_adaptable_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Return the linear and convolution layers of a network by module path, in its order.

    Layers that have adapters appear under their own path, without the adapters.
    """
    layers: dict[str, nn.Module] = {}
    for path, module in network.named_modules():
        if isinstance(module, LoraWrapper):
            layers[path] = module.base
        elif isinstance(module, nn.Linear | nn.Conv2d) and path.rpartition(".")[0] not in layers:
            layers[path] = module
    return layers


def kohya_unet_name(path: str) -> str:
    """Return the kohya name of a U-Net layer: ``lora_unet_down_blocks_0_..._to_q``."""
    return UNET_PREFIX + path.replace(".", "_")


def kohya_text_name(path: str, prefix: str = "lora_te_") -> str:
    """Return the kohya name of a text encoder layer: ``lora_te_text_model_encoder_...``."""
    level = "" if path.startswith("text_projection") else _TEXT_MODEL
    return prefix + (level + path.removeprefix(_TEXT_MODEL)).replace(".", "_")


def find_layer_refs(model: Networks) -> LayerRefs:
    """Return every layer of the U-Net and the text encoders by kohya name.

    SDXL's U-Net layers have sgm's names (``lora_unet_input_blocks_4_1_...``), and its text encoders
    the prefixes ``lora_te1_`` and ``lora_te2_``.

    Raises:
        WeightsError: two layers have the same name, so that a file would be ambiguous; or the
            model's family is unknown.
    """
    unet_refs = _unet_refs(model.unet, detect_family(model).uses_sgm_names)
    return _by_name([*unet_refs, *_text_refs(model)])


def find_unet_layer_refs(unet: nn.Module, uses_sgm_names: bool) -> LayerRefs:
    """Return every layer of a diffusers U-Net by kohya name; see `find_layer_refs`.

    Args:
        unet: a ``UNet2DConditionModel``.
        uses_sgm_names: whether its layers are named as in SDXL's LoRA files.
    """
    return _by_name(_unet_refs(unet, uses_sgm_names))


def _by_name(refs: Sequence[LayerRef]) -> LayerRefs:
    by_name: LayerRefs = {}
    for ref in refs:
        if ref.name in by_name:
            raise WeightsError(
                f"{ref.path} and {by_name[ref.name].path} are both called {ref.name} in files"
            )
        by_name[ref.name] = ref
    return by_name


def find_name_aliases(model: Networks) -> dict[str, str]:
    """Return other names that files may use, each with the name in `find_layer_refs`.

    Some programs write diffusers' names for SDXL, and diffusers numbers the text encoder of SD 1.x.
    A file in diffusers' key format does not show how many text encoders there are, and some
    programs call the second one, which is the refiner's only one, the first.
    """
    family = detect_family(model)
    aliases = {}
    if family.uses_sgm_names:
        refs = _unet_refs(model.unet, uses_sgm_names=True)
        aliases = {kohya_unet_name(ref.path): ref.name for ref in refs}
    only = TEXT_ENCODERS[1] if model.text_encoder is None else TEXT_ENCODERS[0]
    own_prefix = family.lora_text_prefixes[TEXT_ENCODERS.index(only)]
    for ref in _text_refs(model):
        if ref.part == only:
            others = [prefix for prefix in ("lora_te_", "lora_te1_") if prefix != own_prefix]
            aliases |= {prefix + ref.name.removeprefix(own_prefix): ref.name for prefix in others}
    return aliases


def _unet_refs(unet: nn.Module, uses_sgm_names: bool) -> list[LayerRef]:
    blocks = BlockMap.from_unet(unet)
    return [
        LayerRef(
            UNET_PREFIX + blocks.sgm_name(path) if uses_sgm_names else kohya_unet_name(path),
            UNET,
            unet,
            path,
            layer,
            blocks.lbw_name(path),
        )
        for path, layer in find_adaptable_layers(unet).items()
    ]


def _text_refs(model: Networks) -> list[LayerRef]:
    encoders = [model.text_encoder, model.text_encoder_2]
    prefixes = detect_family(model).lora_text_prefixes
    return [
        LayerRef(kohya_text_name(path, prefix), part, encoder, path, layer, "BASE")
        for part, encoder, prefix in zip(TEXT_ENCODERS, encoders, prefixes, strict=False)
        if encoder is not None
        for path, layer in find_adaptable_layers(encoder).items()
    ]
