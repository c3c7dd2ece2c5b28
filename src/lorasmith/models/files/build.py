"""Building networks from their configs and loading their weights tensor by tensor."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lorasmith.core.errors import WeightsError
from lorasmith.models.files.known_configs import MAX_PARAMETERS, known_config
from lorasmith.models.files.stored_tensors import TEXT_LEVEL, StoredTensors
from lorasmith.models.suppress_logs import suppress_logs

_MAX_NAMES = 3


def build_empty_network(kind: Any, config: Mapping[str, Any], part: str | None = None) -> Any:
    """Build a network without allocating its weights, in evaluation mode.

    Args:
        kind: a model class of diffusers or transformers.
        config: its config.
        part: the part of a model that it is, for messages.

    Raises:
        WeightsError: the config is of another class or does not fit; says why.
    """
    from accelerate import init_empty_weights

    file = f"{part}/config.json" if part else "config.json"
    known = known_config(kind.__name__, config, file)
    class_name = config.get("_class_name", kind.__name__)
    if class_name != kind.__name__:
        raise WeightsError(f"{part or 'it'} is a {class_name}, not a {kind.__name__}")
    try:
        # Buffers are not in files; they are computed, so only parameters are left empty.
        with suppress_logs(), init_empty_weights(include_buffers=False):
            network = _instantiate(kind, known).eval()
    except (TypeError, ValueError, KeyError, RuntimeError, AttributeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise WeightsError(f"{file} does not fit: {reason}") from error
    parameters = sum(parameter.numel() for parameter in network.parameters())
    if parameters > MAX_PARAMETERS:
        raise WeightsError(
            f"{file} does not fit: it says {parameters:,} parameters; networks of at most "
            f"{MAX_PARAMETERS:,} are read"
        )
    return network


def _instantiate(kind: Any, config: Mapping[str, Any]) -> Any:
    if hasattr(kind, "config_class"):  # a class of transformers
        return kind(kind.config_class(**config))
    return kind.from_config(dict(config))


def canonical_state_dict(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return a network's tensors, those of text encoders without ``text_model.``."""
    return {name.removeprefix(TEXT_LEVEL): value for name, value in network.state_dict().items()}


def load_weights(network: nn.Module, tensors: StoredTensors, dtype: torch.dtype | None) -> None:
    """Load a network's weights, one tensor after the other.

    A tensor that is stored in ``dtype`` stays mapped to its file; others are cast. All are checked
    before any is read.

    Args:
        network: from `build_empty_network`.
        tensors: its weights by canonical names.
        dtype: of all its weights; None leaves each as it is stored.

    Raises:
        WeightsError: see `check_tensors`.
    """
    check_tensors(network, tensors)
    for key in network.state_dict():
        name = key.removeprefix(TEXT_LEVEL)
        value = tensors[name].read()
        if dtype is not None and value.is_floating_point():
            value = value.to(dtype)
        _set_tensor(network, key, value)


def check_tensors(network: nn.Module, tensors: StoredTensors) -> None:
    """Check that the stored tensors fit a network, without reading them.

    Raises:
        WeightsError: tensors are missing, unknown, of another shape or quantised.
    """
    state = canonical_state_dict(network)
    check_tensor_names(state, tensors)
    misfits = [name for name, tensor in state.items() if tensors[name].shape != tensor.shape]
    if misfits:
        stored, expected = tensors[misfits[0]].shape, state[misfits[0]].shape
        raise WeightsError(
            f"{len(misfits)} of {len(state)} tensors do not fit, first {misfits[0]}: "
            f"{list(stored)} where its config says {list(expected)}"
        )
    integers = [name for name, tensor in state.items() if _is_integer(tensor, tensors[name].dtype)]
    if integers:
        raise WeightsError(
            f"{len(integers)} of {len(state)} tensors are whole numbers "
            f"({tensors[integers[0]].dtype}), first {integers[0]}; quantised "
            "weights are not supported, use those in fp16 or bf16"
        )


def _is_integer(tensor: torch.Tensor, stored: str) -> bool:
    """Tell integers in a file where the network has floats (quantised weights)."""
    return tensor.is_floating_point() and stored.startswith(("I", "U", "BOOL"))


def check_tensor_names(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> None:
    """Check that the names of the stored tensors are those of a network.

    Raises:
        WeightsError: they are not the same.
    """
    missing = [name for name in expected if name not in actual]
    unknown = [name for name in actual if name not in expected]
    if missing:
        raise WeightsError(
            f"{len(missing)} of {len(expected)} tensors are missing{abbreviate_names(missing)}"
            + (f", {len(unknown)} are unknown{abbreviate_names(unknown)}" if unknown else "")
        )
    if unknown:
        raise WeightsError(f"{len(unknown)} tensors are unknown{abbreviate_names(unknown)}")


def abbreviate_names(names: list[str]) -> str:
    """Return `` (a, b, c, ...)`` of a list of names."""
    more = ", ..." if len(names) > _MAX_NAMES else ""
    return f" ({', '.join(names[:_MAX_NAMES])}{more})"


def _set_tensor(network: nn.Module, name: str, value: torch.Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    module = network.get_submodule(path)
    if leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(value, requires_grad=value.is_floating_point())
    else:
        setattr(module, leaf, value)
