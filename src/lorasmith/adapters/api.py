"""LoRA on any diffusers U-Net, for training loops of your own: `inject` and `save_lora`.

import lorasmith, torch

unet.requires_grad_(False)
with lorasmith.inject(unet, rank=8, targets=["to_q", "to_k", "to_v", "to_out.0"]) as lora:
    optimizer = torch.optim.AdamW(lora.parameters(), lr=1e-4)
    ...  # loss.backward(); optimizer.step()
    lorasmith.save_lora(lora, "my.safetensors")
"""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from lorasmith.adapters.files.derived_metadata import update_metadata
from lorasmith.adapters.files.lora_file import LoraFile, save_lora_file
from lorasmith.adapters.gating.gate_metadata import TRIGGER_PHRASE, GateMetadata
from lorasmith.adapters.injection.inject import AttachedLora, inject_adapters
from lorasmith.adapters.injection.trainable import export_layer
from lorasmith.adapters.kinds.lora import LoraLayer
from lorasmith.adapters.naming.layer_names import find_unet_layer_refs
from lorasmith.adapters.nn.init import init_adapter
from lorasmith.adapters.nn.lora import LoraAdapter
from lorasmith.adapters.nn.wrapper import LoraWrapper
from lorasmith.adapters.targeting.targets import select_layers
from lorasmith.core.errors import ConfigError, WeightsError
from lorasmith.models.families.family import detect_unet_family


class InjectedLora:
    """Trainable adapters in a U-Net; the result of `inject`.

    As a context manager it takes the adapters out at the end.
    """

    def __init__(
        self, adapters: Mapping[str, LoraAdapter], attached: AttachedLora, family: str | None
    ) -> None:
        self.adapters = dict(adapters)
        """The adapters (modules with the parameters ``down`` and ``up``) by the kohya names of
        their layers."""
        self.family = family
        """The family of the U-Net (``sd1``, ``sdxl``, ...); None for an architecture of its own."""
        self._attached = attached

    def __len__(self) -> int:
        return len(self.adapters)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()

    def parameters(self) -> list[nn.Parameter]:
        """Return all factors, float32, down before up, in the order of the U-Net."""
        return [factor for a in self.adapters.values() for factor in (a.down, a.up)]

    def layers(self) -> dict[str, LoraLayer]:
        """Return copies of the adapters as a LoRA file stores them, by kohya name.

        Adapters that subtract their start (``compensated``, ``pissa``) have twice the rank there.
        """
        exported = {name: export_layer(adapter) for name, adapter in self.adapters.items()}
        return {
            name: LoraLayer(layer.down.clone(), layer.up.clone(), layer.alpha)
            for name, layer in exported.items()
        }

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the adapters' state for a checkpoint, ``NAME.down`` and ``NAME.up``."""
        return {
            f"{name}.{key}": tensor
            for name, adapter in self.adapters.items()
            for key, tensor in adapter.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore the state from `state_dict`.

        Raises:
            WeightsError: the state has other tensors.
        """
        current = self.state_dict()
        wrong = sorted(current.keys() ^ state.keys())
        wrong += [
            key for key in current.keys() & state.keys() if current[key].shape != state[key].shape
        ]
        if wrong:
            raise WeightsError(
                f"state_dict: {len(wrong)} tensors are missing, unknown or of another shape, first "
                f"{wrong[0]}; inject with the same rank, targets and init as before"
            )
        with torch.no_grad():
            for key, tensor in current.items():
                tensor.copy_(state[key])

    def train(self, mode: bool = True) -> Self:
        """Turn dropout on, or off for validation."""
        for adapter in self.adapters.values():
            adapter.train(mode)
        return self

    def eval(self) -> Self:
        """Turn dropout off."""
        return self.train(False)

    def set_strength(self, strength: float) -> None:
        """Set the multiplier of all adapters; at 0 the U-Net equals the base bit for bit.

        Raises:
            ConfigError: the strength is not a finite number.
        """
        self._attached.set_strength(strength)

    @property
    def gate_metadata(self) -> GateMetadata:
        """What `save_lora` writes about the trigger word."""
        return self._attached.gate_metadata

    def remove(self) -> None:
        """Take the adapters out; the U-Net has its original module objects again."""
        self._attached.detach()


def inject(
    unet: Any,
    rank: int = 16,
    alpha: float | None = None,
    targets: str | tuple[str, ...] | list[str] = "all-linear",
    init: str = "gaussian",
    dropout: float = 0.0,
    *,
    tag: str = "",
    seed: int = 0,
) -> InjectedLora:
    """Put trainable adapters on a diffusers U-Net. Its output does not change.

    The adapters are float32, on the device of their layers. The U-Net's own parameters are not
    frozen: call ``unet.requires_grad_(False)`` before if an optimizer may get them.

    Args:
        unet: a diffusers ``UNet2DConditionModel`` or one with the same blocks.
        rank: inner width of the adapters.
        alpha: the adapters' output is scaled by alpha / rank; None is the rank.
        targets: layers that get an adapter, as in the setting ``lora.targets``; PEFT's names work.
        init: a name in `lorasmith.registries.ADAPTER_INITS`.
        dropout: share of the adapters' inputs set to zero in training mode, below 1.
        tag: the trigger word (tag) that activates the LoRA in `lorasmith.load_pipeline`. Without
            one the LoRA is always active.
        seed: of the random numbers.

    Raises:
        ConfigError: an argument is impossible, a target selects no layer, or the U-Net has adapters
            already.
        WeightsError: a layer cannot have adapters.
    """
    _check_arguments(unet, rank, alpha, init, dropout)
    family = _find_family(unet)
    refs = find_unet_layer_refs(unet, family is not None and family.uses_sgm_names)
    names = targets if isinstance(targets, str) else tuple(targets)
    selected = select_layers(names, list(refs.values()), "targets")
    generator = torch.Generator().manual_seed(seed)
    adapters = {
        ref.name: init_adapter(
            ref.layer, rank, float(rank if alpha is None else alpha), init, generator, dropout
        )
        for ref in selected
    }
    gate = GateMetadata("prompt", tag) if tag else GateMetadata()
    attached = inject_adapters({ref.name: ref for ref in selected}, adapters, gate)
    return InjectedLora(adapters, attached, family.name if family else None)


def save_lora(
    lora: InjectedLora,
    path: str | Path,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write adapters to a LoRA file in kohya's key format and return its path.

    `lorasmith.load_pipeline`, diffusers' ``load_lora_weights`` and user interfaces read it.

    Args:
        lora: from `inject`.
        path: the file, which is replaced if it exists.
        metadata: more entries of the metadata block, such as ``modelspec.prediction_type``.
        dtype: of the factors; float32 is used, with a warning, if it cannot represent them.

    Raises:
        ConfigError: the name does not end in .safetensors, or ``lora`` is not from `inject`.
        WeightsError: all layers are zero, or a value is not finite.
        OutputError: the file cannot be written.
    """
    target = Path(path).expanduser()
    if target.suffix != ".safetensors":
        raise ConfigError(f"{target}: a LoRA file's name ends in .safetensors; choose such a name")
    if not isinstance(lora, InjectedLora):
        raise ConfigError(f"save_lora takes the result of inject, not {type(lora).__name__}")
    layers, gate = lora.layers(), lora.gate_metadata
    entries = gate.to_metadata() | ({TRIGGER_PHRASE: gate.tag} if gate.tag else {})
    file = LoraFile(target, layers, {**entries, **(metadata or {})})
    save_lora_file(target, layers, update_metadata(file, layers, lora.family, target.stem), dtype)
    return target


def _find_family(unet: Any) -> Any:
    """Return the family of a U-Net, or None for an architecture of its own."""
    try:
        return detect_unet_family(unet.config, "the U-Net")
    except WeightsError:
        return None


def _check_arguments(
    unet: Any, rank: object, alpha: float | None, init: object, dropout: float
) -> None:
    """Refuse impossible arguments of `inject`.

    Raises:
        ConfigError: there are such.
    """
    if not hasattr(unet, "down_blocks") or not hasattr(unet, "up_blocks"):
        raise ConfigError(f"inject: {type(unet).__name__} is no diffusers U-Net (no down_blocks)")
    if any(isinstance(module, LoraWrapper) for module in unet.modules()):
        raise ConfigError(
            "inject: the U-Net has adapters already; take them out first, with remove() of what "
            "inject returned, or with Pipeline.unload_lora()"
        )
    if not isinstance(rank, int) or not isinstance(init, str):
        raise ConfigError(
            f"inject: rank {rank!r} must be a whole number and init {init!r} a name, such as "
            "gaussian"
        )
    if alpha is not None and not alpha > 0:
        raise ConfigError(f"inject: alpha {alpha} must be above 0; None is the rank")
    if rank < 1 or not 0.0 <= dropout < 1.0:
        raise ConfigError(f"inject: rank {rank} must be 1 or more, dropout {dropout} from 0 to 1")
