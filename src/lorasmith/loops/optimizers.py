"""The optimizers that a LoRA can be trained with, by name.

AdamW is torch's own: fused, so that a step can be skipped and recorded without asking the device.
The others come from packages of the extra ``lorasmith[optimizers]``, are imported when they are
asked for, and read values on the host.
"""

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import nn

from lorasmith.config.train_settings import TrainerConfig
from lorasmith.core.errors import ConfigError, did_you_mean

_BETAS = (0.9, 0.99)


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that share a learning rate."""

    name: str
    """What they are called in the log, such as ``unet`` or ``text``."""
    params: list[nn.Parameter]
    """The parameters."""
    lr: float
    """Their peak learning rate."""


@dataclass(frozen=True)
class _Kind:
    """Where an optimizer comes from and what it is given."""

    package: str
    attribute: str
    defaults: Mapping[str, Any]


_KINDS: Mapping[str, _Kind] = {
    "adamw8bit": _Kind("bitsandbytes.optim", "AdamW8bit", {"betas": _BETAS}),
    # The warm-up must not shrink Prodigy's estimate of the distance.
    "prodigy": _Kind("pytorch_optimizer", "Prodigy", {"safeguard_warmup": True}),
    "lion": _Kind("pytorch_optimizer", "Lion", {}),
    # The paper's (arXiv:1804.04235) own step sizes follow the size of the weights, which is zero
    # for the up-matrices of a new LoRA; the learning rate rules instead. No first moment.
    "adafactor": _Kind(
        "pytorch_optimizer", "AdaFactor",
        {"betas": (None, 0.999), "scale_parameter": False, "relative_step": False},
    ),
}  # fmt: skip


def create_optimizer(
    settings: TrainerConfig, groups: Sequence[ParamGroup]
) -> tuple[torch.optim.Optimizer, list[float]]:
    """Return the optimizer that the settings name, and the peak learning rate of its groups.

    Raises:
        ConfigError: its package is missing (the command that installs it is named), an argument
            is unknown or impossible, or it cannot have several learning rates.
    """
    full = [group for group in groups if group.params]
    peaks = [group.lr for group in full]
    given = _arguments(settings.optimizer_args)
    common = {"lr": peaks[0], "weight_decay": settings.weight_decay}
    if settings.optimizer == "adamw":
        return _adamw(full, {"betas": _BETAS, **common, **given}), peaks
    if settings.optimizer == "prodigy" and len(set(peaks)) > 1:
        raise ConfigError(
            "train.optimizer: prodigy finds one learning rate for all layers; leave out "
            "train.text_encoder_lr, train.loraplus_lr_ratio and the learning rates of parts"
        )
    kind = _KINDS[settings.optimizer]
    make = _imported(settings.optimizer, kind)
    _check_names(make, given)
    with _named_errors(settings.optimizer):
        return make(_tree(full), **{**kind.defaults, **common, **given}), peaks


def skips_on_found_inf(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether an optimizer leaves everything as it is where ``found_inf`` is 1.

    Fused ones do: it is how torch's gradient scaler skips a step without asking the device.
    """
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def _adamw(groups: Sequence[ParamGroup], arguments: dict[str, Any]) -> torch.optim.Optimizer:
    device = groups[0].params[0].device
    _check_names(torch.optim.AdamW, arguments)
    on_gpu = device.type == "cuda"
    tree = [
        # One tensor per group: a recorded step reads it, so it can be changed in between.
        {**one, "lr": torch.tensor(float(one["lr"]), device=device)}
        for one in _tree(groups)
    ]
    with _named_errors("adamw"):
        rate = torch.tensor(float(arguments.pop("lr")), device=device)
        return torch.optim.AdamW(
            tree, lr=rate, fused=device.type in ("cpu", "cuda"), capturable=on_gpu, **arguments
        )


def _tree(groups: Sequence[ParamGroup]) -> list[dict[str, Any]]:
    return [{"params": group.params, "lr": group.lr} for group in groups]


def _arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """TOML has lists where optimizers want tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}


def _imported(name: str, kind: _Kind) -> Callable[..., torch.optim.Optimizer]:
    package = kind.package.partition(".")[0]
    try:
        # bitsandbytes logs which of its kernels for other purposes are not there.
        logging.getLogger(package).setLevel(logging.ERROR)
        module = import_module(kind.package)
    except ImportError as error:
        raise ConfigError(
            f"train.optimizer: {name} needs the package {package}; install it with "
            "pip install 'lorasmith[optimizers]'"
        ) from error
    made: Callable[..., torch.optim.Optimizer] = getattr(module, kind.attribute)
    return made


def _check_names(make: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Refuse unknown arguments; some packages would take them without a word."""
    taken = inspect.signature(make).parameters
    known = [
        name
        for name, one in taken.items()
        if one.kind is not inspect.Parameter.VAR_KEYWORD and name not in ("params", "lr")
    ]
    for name in given:
        if name not in known and name != "lr":
            hint = did_you_mean(name, known) or f"; it takes {', '.join(known)}"
            raise ConfigError(f"train.optimizer_args: no argument {name!r}{hint}")


@contextmanager
def _named_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"train.optimizer_args: {name} refuses them: {error}") from error
