"""Commands that take settings: their options may have the names of other programs."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer.core

from lorasmith.core.errors import ConfigError

_STEP = re.compile(r"latest|(step-)?\d+")
_LATEST = "latest"
_SWITCH_VALUES = ("true", "false", "1", "0", "yes", "no", "on", "off")
_EPOCHS = ("epochs", "epoch", "max_train_epochs", "num_train_epochs")
_LISTS = ("optimizer_args",)
"""Options of kohya's that take several values."""


class SettingsCommand(typer.core.TyperCommand):
    """Takes any setting as an option, also under its name in kohya's scripts or diffusers.

    ``--network_dim 8 --lr 1e-4`` becomes ``--set lora.rank=8 --set train.learning_rate=1e-4``.
    ``--resume`` may stand alone: what follows is its value only if it names a step.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Replace what the command does not declare."""
        completed: list[str] = []
        foreign: dict[str, Any] = {}
        while args:
            argument, *args = args
            if argument == "--resume":
                completed += [argument, *([] if args and _STEP.fullmatch(args[0]) else [_LATEST])]
            elif not self._is_foreign(argument):
                completed.append(argument)
            else:
                name, value, args = _take_value(argument, args)
                if name in foreign:
                    raise ConfigError(f"{name}: it is there twice")
                foreign[name] = value
        return super().parse_args(ctx, [*completed, *self._to_overrides(foreign, completed)])

    def _is_foreign(self, argument: str) -> bool:
        name = argument.partition("=")[0]
        if not name.startswith("--") or len(name) < 3:
            return False
        declared = {option for param in self.params for option in param.opts}
        declared |= {option for param in self.params for option in param.secondary_opts}
        return name not in declared | {"--help"} and _is_known(name)

    def _to_overrides(self, foreign: Mapping[str, Any], arguments: list[str]) -> list[str]:
        from lorasmith.config.foreign_names import normalize, translate

        for name in foreign:
            if normalize(name) in _EPOCHS:
                raise ConfigError(f"{name}: {_explain_epochs(foreign[name], arguments, foreign)}")
        sets: list[str] = []
        for key, value in _leaves(translate(foreign, _known_keys()), ""):
            sets += ["--set", f"{key}={json.dumps(value, ensure_ascii=False)}"]
        return sets


def _known_keys() -> dict[str, Any]:
    """Return all settings of a training with their defaults."""
    from lorasmith.config.base import list_fields
    from lorasmith.config.train_config import TrainConfig

    return {key: default for key, default, _ in list_fields(TrainConfig)}


def _is_known(name: str) -> bool:
    from lorasmith.config.foreign_names import is_foreign

    return is_foreign(name, _known_keys())


def _take_value(argument: str, args: list[str]) -> tuple[str, Any, list[str]]:
    """Return an option's name, its value, and the arguments after it."""
    from lorasmith.config.foreign_names import is_switch, normalize
    from lorasmith.config.read_toml import parse_value

    name, equals, text = argument.partition("=")
    name = f"--{normalize(name)}"
    if equals:
        return name, parse_value(text), args
    if normalize(name) in _LISTS:
        count = next(
            (k for k, arg in enumerate(args) if "=" not in arg or arg[:2] == "--"), len(args)
        )
        return name, args[:count], args[count:]
    has_value = bool(args) and not args[0].startswith("--")
    if is_switch(name, _known_keys()):
        has_value = has_value and args[0].casefold() in _SWITCH_VALUES
    if not has_value:
        return name, True, args
    return name, parse_value(args[0]), args[1:]


def _leaves(tree: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves += _leaves(value, f"{prefix}{key}.")
        else:
            leaves.append((prefix + key, value))
    return leaves


def _explain_epochs(epochs: Any, arguments: list[str], foreign: Mapping[str, Any]) -> str:
    """Say how many steps so many epochs are, where the images are named."""
    from lorasmith.config.foreign_names import EPOCHS, normalize
    from lorasmith.data.reading.reader import read_rows

    given = {normalize(name): value for name, value in foreign.items()}
    folder = given.get("train_data_dir", given.get("instance_data_dir"))
    if "--data" in arguments[:-1]:
        folder = arguments[arguments.index("--data") + 1]
    if folder is None or not isinstance(epochs, int):
        return EPOCHS
    images = sum(row.repeats for row in read_rows(Path(str(folder)).expanduser()))
    batch = int(given.get("train_batch_size", given.get("batch_size", 8)))
    batch *= int(given.get("gradient_accumulation_steps", 1))
    steps = max(1, -(-images * epochs // batch))
    return f"{EPOCHS}, here {images} x {epochs} / {batch}: --steps {steps}"
