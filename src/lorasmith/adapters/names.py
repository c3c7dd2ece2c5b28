"""Names of a model's layers: module paths and what LoRA files call them.

The sd-scripts ("kohya") convention writes a module path with underscores for dots. Module names
contain underscores themselves, so the way back is a table of the layers that a model has.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from lorasmith.adapters.layers import Adapted
from lorasmith.core.errors import WeightsError

if TYPE_CHECKING:
    from lorasmith.models.load import Model

UNET_PREFIX = "lora_unet_"
TEXT_PREFIX = "lora_te_"

_TEXT_LEVEL = "text_model."
"""A level of CLIPTextModel that files have in their names and transformers 5 no longer has."""


@dataclass(frozen=True)
class Place:
    """Where an adapter can go."""

    root: nn.Module
    """The network: a U-Net or a text encoder."""
    path: str
    """The layer's module path below it."""
    layer: nn.Module
    """The layer itself, without adapters."""

    @property
    def location(self) -> tuple[nn.Module, str]:
        """Network and path."""
        return self.root, self.path


Places = dict[str, Place]
"""Places by the names that files use."""


def layers_of(root: nn.Module) -> dict[str, nn.Module]:
    """Return the linear and convolution layers of a network by module path, in its order.

    Layers that carry adapters appear under their own path, as what they are without them.
    """
    found: dict[str, nn.Module] = {}
    for path, module in root.named_modules():
        if isinstance(module, Adapted):
            found[path] = module.base
        elif isinstance(module, nn.Linear | nn.Conv2d) and path.rpartition(".")[0] not in found:
            found[path] = module
    return found


def unet_name(path: str) -> str:
    """Return the file name of a U-Net layer: ``lora_unet_down_blocks_0_..._to_q``."""
    return UNET_PREFIX + path.replace(".", "_")


def text_name(path: str) -> str:
    """Return the file name of a text encoder layer: ``lora_te_text_model_encoder_layers_0_...``."""
    return TEXT_PREFIX + (_TEXT_LEVEL + path.removeprefix(_TEXT_LEVEL)).replace(".", "_")


def places_of(model: "Model") -> Places:
    """Return every layer of the U-Net and the text encoder under its file name.

    Raises:
        WeightsError: two layers share a name, so that a file would be ambiguous.
    """
    places: Places = {}
    for root, name_of in ((model.unet, unet_name), (model.text_encoder, text_name)):
        for path, layer in layers_of(root).items():
            name = name_of(path)
            if name in places:
                raise WeightsError(
                    f"{path} and {places[name].path} are both called {name} in files"
                )
            places[name] = Place(root, path, layer)
    return places
