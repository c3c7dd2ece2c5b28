"""Building a model's networks from their configs, and filling them tensor by tensor."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lorasmith.core.errors import WeightsError
from lorasmith.models.files.stored_tensors import TEXT_LEVEL, StoredTensors
from lorasmith.models.suppress_logs import suppress_logs

_SHOWN = 3


def build_empty_network(kind: Any, config: Mapping[str, Any], part: str | None = None) -> Any:
    """Build a network without memory for its weights, in evaluation mode.

    Args:
        kind: a model class of diffusers or transformers.
        config: its config.
        part: the part of a model that it is, for messages.

    Raises:
        WeightsError: the config is of another class or does not fit; says why.
    """
    from accelerate import init_empty_weights

    found = config.get("_class_name", kind.__name__)
    if found != kind.__name__:
        raise WeightsError(f"{part or 'it'} is a {found}, not a {kind.__name__}")
    try:
        # Buffers are not in files; they are computed, so only parameters are left empty.
        with suppress_logs(), init_empty_weights(include_buffers=False):
            return _built(kind, config).eval()
    except (TypeError, ValueError, KeyError, RuntimeError, AttributeError) as error:
        reason = str(error).strip().split("\n")[0]
        file = f"{part}/config.json" if part else "config.json"
        raise WeightsError(f"{file} does not fit: {reason}") from error


def _built(kind: Any, config: Mapping[str, Any]) -> Any:
    if kind.__module__.startswith("transformers"):
        return kind(kind.config_class(**config))
    return kind.from_config(dict(config))


def canonical_state_dict(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return a network's tensors, those of text encoders without ``text_model.``."""
    return {name.removeprefix(TEXT_LEVEL): value for name, value in network.state_dict().items()}


def load_weights(network: nn.Module, tensors: StoredTensors, dtype: torch.dtype | None) -> None:
    """Give a network its weights, one tensor after the other.

    A tensor that is stored in ``dtype`` stays mapped to its file; another one is cast, and its
    file's bytes are let go of. All is checked before anything is read.

    Args:
        network: of `build_empty_network`.
        tensors: its weights by plain names.
        dtype: of all its weights; None leaves each as it is stored.

    Raises:
        WeightsError: see `check_tensors`.
    """
    check_tensors(network, tensors)
    for own in network.state_dict():
        name = own.removeprefix(TEXT_LEVEL)
        value = tensors[name].read()
        if dtype is not None and value.is_floating_point():
            value = value.to(dtype)
        _put(network, own, value)


def check_tensors(network: nn.Module, tensors: StoredTensors) -> None:
    """Compare a network's tensors with those that there are, without reading any.

    Raises:
        WeightsError: they are missing, unknown, of another shape or quantised; says how many and
            which.
    """
    state = canonical_state_dict(network)
    check_tensor_names(state, tensors)
    shapes = [name for name, own in state.items() if tensors[name].shape != own.shape]
    if shapes:
        found, expected = tensors[shapes[0]].shape, state[shapes[0]].shape
        raise WeightsError(
            f"{len(shapes)} of {len(state)} tensors do not fit, first {shapes[0]}: {list(found)} "
            f"where its config says {list(expected)}"
        )
    whole = [name for name, own in state.items() if _is_whole(own, tensors[name].dtype)]
    if whole:
        raise WeightsError(
            f"{len(whole)} of {len(state)} tensors are whole numbers ({tensors[whole[0]].dtype}), "
            f"first {whole[0]}; quantised weights are not supported, use those in fp16 or bf16"
        )


def _is_whole(own: torch.Tensor, stored: str) -> bool:
    """Tell whole numbers where a network has fractions; formats are in safetensors' words."""
    return own.is_floating_point() and stored.startswith(("I", "U", "BOOL"))


def check_tensor_names(wanted: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Compare the names of a network's tensors with those that there are.

    Raises:
        WeightsError: they are not the same.
    """
    missing = [name for name in wanted if name not in given]
    unknown = [name for name in given if name not in wanted]
    if missing:
        raise WeightsError(
            f"{len(missing)} of {len(wanted)} tensors are missing{abbreviate_names(missing)}"
            + (f", {len(unknown)} are unknown{abbreviate_names(unknown)}" if unknown else "")
        )
    if unknown:
        raise WeightsError(f"{len(unknown)} tensors are unknown{abbreviate_names(unknown)}")


def abbreviate_names(names: list[str]) -> str:
    """Return `` (a, b, c, ...)`` of a list of names."""
    more = ", ..." if len(names) > _SHOWN else ""
    return f" ({', '.join(names[:_SHOWN])}{more})"


def _put(network: nn.Module, name: str, value: torch.Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    module = network.get_submodule(path)
    if leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(value, requires_grad=value.is_floating_point())
    else:
        setattr(module, leaf, value)
