"""An optimizer's state as tensors and JSON, exactly, without pickling.

``Optimizer.state_dict`` casts what it loads to the parameters' dtype, which spoils 8-bit and bf16
moments, and some optimizers keep numbers and tensors in their groups. Here every tensor keeps its
dtype and every number its value.
"""

from collections.abc import Mapping
from typing import Any

import torch

from lorasmith.core.safetensors_io import Tensors

PREFIX = "optimizer/"
_GROUP = f"{PREFIX}group/"
_OF_THE_DEVICE = ("fused", "foreach", "capturable", "differentiable")
"""Entries of a group that follow from where it runs, not from what was learned."""


def pack_optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[Tensors, dict[str, Any]]:
    """Split an optimizer's state into tensors (named ``optimizer/...``) and JSON."""
    tensors: Tensors = {}
    groups: list[dict[str, Any]] = []
    states: dict[str, dict[str, Any]] = {}
    first = 0
    for number, group in enumerate(optimizer.param_groups):
        groups.append(_pack_group(group, f"{_GROUP}{number}/", first, tensors))
        first += len(group["params"])
    for number, parameter in enumerate(_parameters(optimizer)):
        plain: dict[str, Any] = {}
        for name, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"{PREFIX}{number}/{name}"] = value
            else:
                plain[name] = value
        if plain:
            states[str(number)] = plain
    return _unshared(tensors), {"groups": groups, "state": states}


def unpack_optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], plain: dict[str, Any]
) -> None:
    """Put back what ``pack_optimizer`` returned.

    Learning rates that are tensors stay the same tensors, with the saved values in them.

    Raises:
        ValueError: the state is that of other groups of parameters.
    """
    groups = optimizer.param_groups
    for number, (group, saved) in enumerate(zip(groups, plain["groups"], strict=True)):
        if len(group["params"]) != len(saved["params"]):
            raise ValueError(
                f"group {number} has {len(group['params'])} parameters, the saved one "
                f"{len(saved['params'])}; one is longer"
            )
        _unpack_group(group, saved, f"{_GROUP}{number}/", tensors)
    parameters = _parameters(optimizer)
    optimizer.state.clear()
    for key, value in tensors.items():
        place, _, name = key.removeprefix(PREFIX).partition("/")
        if key.startswith(PREFIX) and place.isdigit():
            parameter = parameters[int(place)]
            optimizer.state[parameter][name] = _placed(value, name, parameter, optimizer)
    for place, entries in plain.get("state", {}).items():
        optimizer.state[parameters[int(place)]].update(entries)


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _pack_group(group: dict[str, Any], prefix: str, first: int, tensors: Tensors) -> dict[str, Any]:
    plain: dict[str, Any] = {"params": list(range(first, first + len(group["params"])))}
    for name, value in group.items():
        if name == "params" or name in _OF_THE_DEVICE:
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
        if name == "params" or name in _OF_THE_DEVICE:
            continue
        if isinstance(group.get(name), torch.Tensor):
            group[name].fill_(float(value))
        else:
            group[name] = tuple(value) if isinstance(value, list) else value
    device = group["params"][0].device
    for key, value in tensors.items():
        if key.startswith(prefix):
            group[key.removeprefix(prefix)] = value.detach().clone().to(device)


def _placed(
    value: torch.Tensor, name: str, parameter: torch.Tensor, optimizer: torch.optim.Optimizer
) -> torch.Tensor:
    """Copy a tensor to where its optimizer wants it, laid out as it wants it."""
    # torch's own optimizers count steps on the host unless they run fused or recorded.
    flags = optimizer.defaults
    counts_on_host = name == "step" and not (flags.get("capturable") or flags.get("fused"))
    if counts_on_host:
        return value.detach().clone().to("cpu")
    if value.shape != parameter.shape:
        return value.detach().clone().to(parameter.device)
    # Files hold plain rows. Fused optimizers want the moments in the parameter's memory format.
    placed = torch.empty_like(parameter, dtype=value.dtype)
    return placed.copy_(value.detach())


def _unshared(tensors: Tensors) -> Tensors:
    """Copy tensors that share their memory with one before: a file holds each by itself."""
    seen: set[int] = set()
    for name, value in tensors.items():
        if value.data_ptr() in seen and value.numel():
            tensors[name] = value.clone()
        seen.add(value.data_ptr())
    return tensors
