"""The optimizers that a LoRA can be trained with.

An optimizer is described by an `OptimizerSpec` and looked up in `lorasmith.registries.OPTIMIZERS`.
AdamW is torch's own: fused, so that a step can be skipped and captured in a CUDA graph without
waiting for the device. The others come from packages of the extra ``lorasmith[optimizers]`` and
are imported when they are used; their steps read values on the host.
"""

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from importlib import import_module
from typing import Any

import torch
from torch import nn

from lorasmith.core.errors import ConfigError, did_you_mean
from lorasmith.registries import OPTIMIZERS

_BETAS = (0.9, 0.99)


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that share a learning rate."""

    name: str
    """What the group is called in the log, such as ``unet`` or ``text``."""
    params: list[nn.Parameter]
    lr: float
    """The peak learning rate."""


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer and what the trainer has to know about it.

    ``OptimizerSpec(torch.optim.SGD)`` is a complete one.
    """

    factory: Callable[..., torch.optim.Optimizer] | str
    """Called as ``factory(param_groups, lr=..., weight_decay=..., **arguments)``: an optimizer
    class, or ``"package.module:Class"``, which is imported on first use."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that hold unless the settings give others."""
    has_single_lr: bool = False
    """Whether all parameters must have one learning rate."""
    default_lr: float | None = None
    """The learning rate where the settings give none; None derives it from AdamW's."""
    lr_multiplier: float = 1.0
    """The default learning rate as a multiple of AdamW's."""
    moments: int = 2
    """Float32 numbers that the optimizer keeps for each parameter, at most."""


def create_optimizer(
    name: str,
    groups: Sequence[ParamGroup],
    weight_decay: float = 0.01,
    arguments: Mapping[str, Any] | None = None,
) -> tuple[torch.optim.Optimizer, list[float]]:
    """Return an optimizer and the peak learning rate of each of its groups.

    Args:
        name: a name in `OPTIMIZERS`.
        groups: parameters with their learning rates; empty groups are left out.
        weight_decay: decoupled weight decay.
        arguments: further arguments of the optimizer by name.

    Raises:
        ConfigError: the optimizer's package is missing (the command that installs it is named), an
            argument is unknown or impossible, or it cannot have several learning rates.
    """
    spec: OptimizerSpec = OPTIMIZERS.get(name)
    used = [group for group in groups if group.params]
    base_lrs = [group.lr for group in used]
    if spec.has_single_lr and len(set(base_lrs)) > 1:
        raise ConfigError(
            f"train.optimizer: {name} finds one learning rate for all layers; leave out "
            "train.text_encoder_lr, train.loraplus_lr_ratio and the learning rates of parts"
        )
    given = _lists_to_tuples(arguments or {})
    factory = _import_factory(name, spec.factory)
    _check_argument_names(factory, given)
    param_groups = [{"params": group.params, "lr": group.lr} for group in used]
    common = {"lr": base_lrs[0], "weight_decay": weight_decay}
    with _explain_errors(name):
        return factory(param_groups, **{**spec.defaults, **common, **given}), base_lrs


def skips_on_found_inf(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether an optimizer leaves everything as it is where ``found_inf`` is 1.

    Fused ones do: that is how torch's gradient scaler skips a step without waiting for the device.
    """
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


@wraps(torch.optim.AdamW, assigned=(), updated=())
def fused_adamw(
    param_groups: Iterable[dict[str, Any]], lr: float, **arguments: Any
) -> torch.optim.AdamW:
    """Return AdamW whose learning rates are tensors: a captured step reads their values anew."""
    groups = list(param_groups)
    device = groups[0]["params"][0].device
    for group in groups:
        group["lr"] = torch.tensor(float(group["lr"]), device=device)
    return torch.optim.AdamW(
        groups,
        lr=torch.tensor(float(lr), device=device),
        fused=device.type in ("cpu", "cuda"),
        capturable=device.type == "cuda",
        **arguments,
    )


ADAMW = OptimizerSpec(fused_adamw, {"betas": _BETAS})
ADAMW_8BIT = OptimizerSpec("bitsandbytes.optim:AdamW8bit", {"betas": _BETAS})
PRODIGY = OptimizerSpec(
    "pytorch_optimizer:Prodigy",
    # The warm-up must not shrink Prodigy's estimate of the distance.
    {"safeguard_warmup": True},
    has_single_lr=True,
    default_lr=1.0,
    moments=4,
)
LION = OptimizerSpec(
    "pytorch_optimizer:Lion",
    lr_multiplier=0.25,  # Lion's steps are larger (arXiv:2302.06675)
    moments=1,
)
ADAFACTOR = OptimizerSpec(
    "pytorch_optimizer:AdaFactor",
    # The paper's (arXiv:1804.04235) own step sizes follow the size of the weights, which is zero
    # for the up-matrices of a new LoRA; the learning rate rules instead. No first moment.
    {"betas": (None, 0.999), "scale_parameter": False, "relative_step": False},
    moments=1,
)


def _lists_to_tuples(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """TOML has lists where optimizers expect tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}


def _import_factory(
    name: str, factory: Callable[..., torch.optim.Optimizer] | str
) -> Callable[..., torch.optim.Optimizer]:
    if not isinstance(factory, str):
        return factory
    module, _, attribute = factory.partition(":")
    package = module.partition(".")[0]
    try:
        # bitsandbytes logs which of its kernels for other purposes are not there.
        logging.getLogger(package).setLevel(logging.ERROR)
        imported: Callable[..., torch.optim.Optimizer] = getattr(import_module(module), attribute)
    except ImportError as error:
        raise ConfigError(
            f"train.optimizer: {name} needs the package {package}; install it with "
            "pip install 'lorasmith[optimizers]'"
        ) from error
    return imported


def _check_argument_names(factory: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Refuse unknown arguments; some packages would ignore them silently."""
    known = [
        name
        for name, parameter in inspect.signature(factory).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD and name not in ("params", "lr")
    ]
    for name in arguments:
        if name not in known and name != "lr":
            hint = did_you_mean(name, known) or f"; it takes {', '.join(known)}"
            raise ConfigError(f"train.optimizer_args: no argument {name!r}{hint}")


@contextmanager
def _explain_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"train.optimizer_args: {name} refuses them: {error}") from error
