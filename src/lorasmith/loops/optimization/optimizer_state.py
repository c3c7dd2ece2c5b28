"""An optimizer's exact state as tensors and JSON.

``Optimizer.load_state_dict`` casts to the parameters' dtype, which spoils 8-bit and bf16 moments,
and some optimizers keep numbers and tensors in their groups. Here every tensor keeps its dtype and
every number its value.
"""

from collections.abc import Mapping
from typing import Any

import torch

from lorasmith.core.safetensors_io import Tensors

PREFIX = "optimizer/"
_GROUP = f"{PREFIX}group/"
_DEVICE_OPTIONS = ("fused", "foreach", "capturable", "differentiable")
"""Entries of a group that follow from its device and are not restored."""


def pack_optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[Tensors, dict[str, Any]]:
    """Split an optimizer's state into tensors (named ``optimizer/...``) and JSON."""
    tensors: Tensors = {}
    groups: list[dict[str, Any]] = []
    states: dict[str, dict[str, Any]] = {}
    first_index = 0
    for index, group in enumerate(optimizer.param_groups):
        groups.append(_pack_group(group, f"{_GROUP}{index}/", first_index, tensors))
        first_index += len(group["params"])
    for index, parameter in enumerate(_parameters(optimizer)):
        plain: dict[str, Any] = {}
        for name, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"{PREFIX}{index}/{name}"] = value
            else:
                plain[name] = value
        if plain:
            states[str(index)] = plain
    return _clone_shared(tensors), {"groups": groups, "state": states}


def unpack_optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], plain: dict[str, Any]
) -> None:
    """Restore the result of `pack_optimizer_state`.

    Learning rates that are tensors stay the same tensors and receive the saved values.

    Raises:
        ValueError: the state is of other groups of parameters.
    """
    groups = optimizer.param_groups
    for index, (group, saved) in enumerate(zip(groups, plain["groups"], strict=True)):
        if len(group["params"]) != len(saved["params"]):
            raise ValueError(
                f"group {index} has {len(group['params'])} parameters, the saved one "
                f"{len(saved['params'])}; one is longer"
            )
        _unpack_group(group, saved, f"{_GROUP}{index}/", tensors)
    parameters = _parameters(optimizer)
    optimizer.state.clear()
    for key, value in tensors.items():
        index_text, _, name = key.removeprefix(PREFIX).partition("/")
        if key.startswith(PREFIX) and index_text.isdigit():
            parameter = parameters[int(index_text)]
            optimizer.state[parameter][name] = _to_parameter_layout(
                value, name, parameter, optimizer
            )
    for index_text, entries in plain.get("state", {}).items():
        optimizer.state[parameters[int(index_text)]].update(entries)


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _pack_group(
    group: dict[str, Any], prefix: str, first_index: int, tensors: Tensors
) -> dict[str, Any]:
    plain: dict[str, Any] = {"params": list(range(first_index, first_index + len(group["params"])))}
    for name, value in group.items():
        if name == "params" or name in _DEVICE_OPTIONS:
            continue
        if name == "lr":
            plain[name] = float(value)
        elif isinstance(value, torch.Tensor):
            tensors[prefix + name] = value
        else:
            plain[name] = value
    return plain


def _unpack_group(
    group: dict[str, Any], saved: dict[str, Any], prefix: str, tensors: Mapping[str, torch.Tensor]
) -> None:
    for name, value in saved.items():
        if name == "params" or name in _DEVICE_OPTIONS:
            continue
        if isinstance(group.get(name), torch.Tensor):
            group[name].fill_(float(value))
        else:
            group[name] = tuple(value) if isinstance(value, list) else value
    device = group["params"][0].device
    for key, value in tensors.items():
        if key.startswith(prefix):
            group[key.removeprefix(prefix)] = value.detach().clone().to(device)


def _to_parameter_layout(
    value: torch.Tensor, name: str, parameter: torch.Tensor, optimizer: torch.optim.Optimizer
) -> torch.Tensor:
    """Copy a tensor to the device and in the memory format that its optimizer expects."""
    # torch's optimizers count steps on the host unless they are fused or capturable.
    options = optimizer.defaults
    step_is_on_host = name == "step" and not (options.get("capturable") or options.get("fused"))
    if step_is_on_host:
        return value.detach().clone().to("cpu")
    if value.shape != parameter.shape:
        return value.detach().clone().to(parameter.device)
    # Files hold contiguous tensors. Fused optimizers need moments in the parameter's memory format.
    result = torch.empty_like(parameter, dtype=value.dtype)
    return result.copy_(value.detach())


def _clone_shared(tensors: Tensors) -> Tensors:
    """Clone tensors that share memory with an earlier one, which files do not allow."""
    seen: set[int] = set()
    for name, value in tensors.items():
        if value.data_ptr() in seen and value.numel():
            tensors[name] = value.clone()
        seen.add(value.data_ptr())
    return tensors
