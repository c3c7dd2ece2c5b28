"""Commands that take settings: their options may have the names of other programs."""

import json
import re
from collections.abc import Collection, Mapping
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import typer.core

from lorasmith.core.errors import ConfigError, close_matches

_STEP = re.compile(r"latest|(step-)?\d+")
_LATEST = "latest"
_SWITCH_VALUES = ("true", "false", "1", "0", "yes", "no", "on", "off")
_EPOCHS = ("epochs", "epoch", "max_train_epochs", "num_train_epochs")
_ARGS = ("optimizer_args", "network_args", "lr_scheduler_args")
"""Options of kohya's that take several texts such as ``eps=1e-8``."""
_LISTS = ("target_modules", "lora_target_modules", "targets", "validation_prompts", "prompts")
"""Options that take several values."""
_DECLARED = {
    "--rank": "lora.rank", "--steps": "train.steps", "--data": "data.path", "--tag": "data.tag",
    "--out": "output.name", "--model": "model.path", "-m": "model.path",
}  # fmt: skip
"""Options that the commands declare, and their settings."""


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
                _refuse_path(args)
                completed += [argument, *([] if args and _STEP.fullmatch(args[0]) else [_LATEST])]
            elif argument == "--resolution" and (sides := _leading_sides(args)):
                completed += ["--set", f"data.resolution={','.join(sides)}"]
                args = args[1 if "," in args[0] else len(sides) :]
            elif not self._is_foreign(argument):
                completed.append(argument)
            else:
                name, value, args = _take_value(argument, args)
                if name in foreign:
                    raise ConfigError(f"{name}: it is there twice")
                foreign[name] = value
        return super().parse_args(ctx, [*completed, *self._to_overrides(foreign, completed)])

    def _is_foreign(self, argument: str) -> bool:
        """Return whether an option is a setting under its own or another name.

        Raises:
            ConfigError: there is no such option or setting.
        """
        name = argument.partition("=")[0]
        if not name.startswith("--") or len(name) < 3:
            return False
        declared = {option for param in self.params for option in param.opts}
        declared |= {option for param in self.params for option in param.secondary_opts}
        if name in declared | {"--help"}:
            return False
        if not _is_known(name):
            raise ConfigError(_explain_unknown(name, declared))
        return True

    def _to_overrides(self, foreign: Mapping[str, Any], arguments: list[str]) -> list[str]:
        from lorasmith.config.reading.foreign_names import normalize
        from lorasmith.config.reading.translate_foreign import translate

        for name in foreign:
            if normalize(name) in _EPOCHS:
                others = {key: value for key, value in foreign.items() if key != name}
                given = _overrides_of(arguments, self._to_overrides(others, arguments))
                file = next((Path(arg) for arg in arguments if arg.endswith(".toml")), None)
                raise ConfigError(f"{name}: {_explain_epochs(foreign[name], given, file)}")
        sets: list[str] = []
        declared = _declared_settings(arguments)
        for name, given in foreign.items():
            for key, value in _leaves(translate({name: given}, _known_keys()), ""):
                option, other = declared.get(key, (name, str(value)))
                if other != str(value):
                    raise ConfigError(f"{option} and {name} are the same setting; give one of them")
        for key, value in _leaves(translate(foreign, _known_keys()), ""):
            sets += ["--set", f"{key}={json.dumps(value, ensure_ascii=False)}"]
        return sets


def _known_keys() -> dict[str, Any]:
    """Return all settings of a training with their defaults."""
    from lorasmith.config.fields import list_fields
    from lorasmith.config.train_config import TrainConfig

    return {key: default for key, default, _ in list_fields(TrainConfig)}


def _declared_settings(arguments: list[str]) -> dict[str, tuple[str, str]]:
    """Return the options that the command declares, and their values, by their settings."""
    options: dict[str, tuple[str, str]] = {}
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        name, equals, value = argument.partition("=")
        if name in _DECLARED:
            options[_DECLARED[name]] = (name, value if equals else following)
    return options


def _overrides_of(arguments: list[str], translated: list[str]) -> list[str]:
    """Return the overrides that a command line stands for, foreign options included."""
    from lorasmith.cli.options.overrides import as_overrides

    declared = {key: value for key, (_, value) in _declared_settings(arguments).items()}
    numbers = {key: int(value) for key, value in declared.items() if value.isdecimal()}
    sets = [value for option, value in pairwise(arguments) if option == "--set"]
    return [*as_overrides({**declared, **numbers}), *sets, *translated[1::2]]


def _explain_unknown(name: str, declared: Collection[str]) -> str:
    from lorasmith.config.reading.foreign_names import FOREIGN_NAMES, normalize

    words = {normalize(option): option for option in declared if option.startswith("--")}
    words |= {foreign: f"--{foreign}" for foreign in FOREIGN_NAMES}
    words |= {key.rpartition(".")[2]: f"--{key.rpartition('.')[2]}" for key in _known_keys()}
    close = close_matches(normalize(name), words, limit=2, cutoff=0.8)
    hint = f"; did you mean {' or '.join(words[word] for word in close)}?" if close else ""
    return f"--{normalize(name)}: there is no such option or setting{hint}"


def _is_known(name: str) -> bool:
    from lorasmith.config.reading.translate_foreign import is_foreign

    return is_foreign(name, _known_keys())


def _take_value(argument: str, args: list[str]) -> tuple[str, Any, list[str]]:
    """Return an option's name, its value, and the arguments after it."""
    from lorasmith.config.reading.foreign_names import normalize
    from lorasmith.config.reading.read_toml import parse_value
    from lorasmith.config.reading.translate_foreign import is_switch, is_translated

    name, equals, text = argument.partition("=")
    name = f"--{normalize(name)}"
    if equals:
        return name, parse_value(text), args
    if normalize(name) in _ARGS:
        count = next(
            (k for k, arg in enumerate(args) if "=" not in arg or arg[:2] == "--"), len(args)
        )
        return name, args[:count], args[count:]
    has_value = bool(args) and not args[0].startswith("--")
    if is_switch(name, _known_keys()):
        has_value = has_value and args[0].casefold() in _SWITCH_VALUES
        if not has_value:
            return name, True, args
    if not has_value:
        if is_translated(name, _known_keys()):
            raise ConfigError(f"{name}: it needs a value")
        return name, True, args
    if normalize(name) in _LISTS:
        count = next(
            (k for k, arg in enumerate(args) if arg[:2] == "--" or arg.endswith(".toml")), len(args)
        )
        if count > 1:
            return name, args[:count], args[count:]
    numbers = _leading_numbers(args)
    if len(numbers) > 1:  # kohya's rates of two text encoders, two sides of an image
        return name, numbers, args[len(numbers) :]
    return name, parse_value(args[0]), args[1:]


def _leading_sides(args: list[str]) -> list[str]:
    """Return the sides of an image that arguments begin with, ``512,512`` or ``512 512``."""
    if args and re.fullmatch(r"\d+,\d+", args[0]):
        return args[0].split(",")
    sides = list(takewhile(str.isdecimal, args))
    return sides if len(sides) > 1 else []


def _leading_numbers(args: list[str]) -> list[int | float]:
    """Return the numbers that arguments begin with."""
    from lorasmith.config.reading.read_toml import parse_value

    values = [parse_value(argument) for argument in args]
    return list(takewhile(lambda value: type(value) in (int, float), values))


def _refuse_path(args: list[str]) -> None:
    """Say what --resume takes, where a folder follows it as in other programs."""
    given = args[0] if args else "-"
    if not (given.startswith("-") or given.endswith(".toml") or _STEP.fullmatch(given)):
        raise ConfigError(
            f"--resume {given}: --out names the run; give --resume alone, or a step of it such as "
            "--resume step-120"
        )


def _leaves(tree: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves += _leaves(value, f"{prefix}{key}.")
        else:
            leaves.append((prefix + key, value))
    return leaves


def _explain_epochs(epochs: Any, overrides: list[str], file: Path | None) -> str:
    """Say how many steps so many epochs are, where the settings name the images."""
    from lorasmith.cli.options.run import PLACEHOLDERS
    from lorasmith.config.features import FeaturesConfig, load_train_config
    from lorasmith.config.reading.foreign_names import EPOCHS
    from lorasmith.data.reading.reader import read_rows
    from lorasmith.training.data.split import split_validation

    config = load_train_config(file, overrides, PLACEHOLDERS)
    if isinstance(config, FeaturesConfig) or type(epochs) is not int:
        return EPOCHS
    if str(config.data.path) == PLACEHOLDERS["data"]["path"]:
        return EPOCHS
    rows, _ = split_validation(read_rows(config.data.path), config.data.validation_split)
    count = sum(row.repeats for row in rows) * config.data.num_repeats
    batch = config.train.images_per_step()
    steps = max(1, -(-count // batch))
    return (
        f"{EPOCHS}, here {count} / {batch} = {steps} in an epoch, some more if the images have "
        f"several sizes: --steps {steps * epochs}"
    )
