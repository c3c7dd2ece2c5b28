"""kohya's ``network_args``: arguments of its LoRA module, such as ``conv_dim=4``."""

from collections.abc import Mapping, Sequence
from typing import Any

from lorasmith.config.reading.read_toml import parse_value
from lorasmith.core.errors import ConfigError, did_you_mean

_SAME = {
    "dropout": "lora.dropout",
    "loraplus_lr_ratio": "train.loraplus_lr_ratio",
    "loraplus_unet_lr_ratio": "train.loraplus_lr_ratio",
}
_DROPOUT = "the adapters have one kind of dropout: lora.dropout"
_BLOCK_RANKS = "give blocks a rank of their own: [[lora.overrides]] with targets such as down.1"
_BLOCK_RATES = (
    "give blocks a learning rate of their own: [[lora.overrides]] with targets such as down.1"
)
_ONLY_LORA = "only LoRA is trained; leave it out"
_ANSWERS = {
    "rank_dropout": _DROPOUT,
    "module_dropout": _DROPOUT,
    "block_dims": _BLOCK_RANKS,
    "block_alphas": _BLOCK_RANKS,
    "conv_block_dims": _BLOCK_RANKS,
    "conv_block_alphas": _BLOCK_RANKS,
    "block_lr": _BLOCK_RATES,
    "down_lr_weight": _BLOCK_RATES,
    "mid_lr_weight": _BLOCK_RATES,
    "up_lr_weight": _BLOCK_RATES,
    "block_lr_zero_threshold": _BLOCK_RATES,
    "loraplus_text_encoder_lr_ratio": "there is one ratio for all: train.loraplus_lr_ratio",
    "preset": "say which layers are trained with lora.targets, such as all-linear",
    "dora_wd": "DoRA files can be used, but only LoRA is trained; leave it out",
    "train_norm": _ONLY_LORA,
    "use_tucker": _ONLY_LORA,
}
_KNOWN = (*_SAME, *_ANSWERS, "conv_dim", "conv_alpha", "algo", "rank", "alpha")


def translate_network_args(value: Any) -> Mapping[str, Any]:
    """Return the settings that the arguments stand for, by their dotted keys.

    Args:
        value: a list of ``name=value`` texts, one such text or several in one, or a table.

    Raises:
        ConfigError: an argument has another meaning here; the message has the answer.
    """
    arguments = _parse(value)
    if "conv_dim" in arguments or "conv_alpha" in arguments:
        raise ConfigError(_explain_convolutions(arguments))
    changes: dict[str, Any] = {}
    for name, given in arguments.items():
        if name == "algo" and str(given).casefold() in ("lora", "locon"):
            continue
        if name == "algo":
            raise ConfigError(f"algo={given}: {_ONLY_LORA}")
        if name in ("rank", "alpha"):
            changes[f"lora.{name}"] = given
        elif name in _SAME:
            changes[_SAME[name]] = given
        else:
            raise ConfigError(f"{name}: {_ANSWERS.get(name) or _explain_unknown(name)}")
    return changes


def _parse(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {str(name).casefold(): given for name, given in value.items()}
    texts: Sequence[Any] = value.split() if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all("=" in str(text) for text in texts):
        raise ConfigError('write a list of name=value, such as ["dropout=0.1"]')
    pairs = (str(text).partition("=") for text in texts)
    return {name.strip().casefold(): parse_value(given.strip()) for name, _, given in pairs}


def _explain_convolutions(arguments: Mapping[str, Any]) -> str:
    """Say how convolutions get the rank and alpha of kohya's arguments; its alpha is 1."""
    rank, alpha = arguments.get("conv_dim", 4), arguments.get("conv_alpha", 1)
    override = f'targets = "conv", rank = {rank}, alpha = {alpha}'
    return (
        f"convolutions are trained with --set 'lora.overrides=[{{{override}}}]', in a file "
        "[[lora.overrides]] with these keys"
    )


def _explain_unknown(name: str) -> str:
    hint = did_you_mean(name, _KNOWN)
    return f"there is no such argument{hint or '; set rank, alpha, targets and dropout in [lora]'}"
