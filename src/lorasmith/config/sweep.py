"""Settings of a sweep: one run's settings, and those that vary from one LoRA to the next."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import reduce
from itertools import pairwise, product
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from lorasmith.config.fields import list_fields
from lorasmith.config.reading.load import read_tree, validate_config
from lorasmith.config.reading.read_toml import parse_value
from lorasmith.config.reading.translate_foreign import foreign_changes
from lorasmith.config.train_config import OutputConfig, TrainConfig
from lorasmith.core.errors import ConfigError, did_you_mean

SWEEPABLE: Mapping[str, str] = {
    "lora.rank": "rank",
    "lora.alpha": "alpha",
    "lora.rslora": "rslora-",
    "lora.dropout": "dropout",
    "lora.targets": "",
    "lora.init": "",
    "lora.gate": "gate-",
    "train.learning_rate": "lr",
    "train.text_encoder_lr": "textlr",
    "train.loraplus_lr_ratio": "loraplus",
    "train.lr_scheduler": "",
    "train.lr_warmup_steps": "warmup",
    "train.lr_scheduler_min_lr_ratio": "floor",
    "train.weight_decay": "decay",
    "train.max_grad_norm": "clip",
    "train.ema_decay": "ema",
    "train.seed": "seed",
    "train.loss.min_snr_gamma": "snr",
    "train.loss.noise_offset": "offset",
    "preserve.strength": "preserve",
    "preserve.every_n_steps": "every",
}
"""Settings that may vary, and what stands before their values in file names."""

MAX_VARIANTS = 1000
"""Most LoRAs of a sweep."""
DEFAULT_MAX_PARALLEL = 8
"""Default number of LoRAs that are trained at the same time."""
_LONGEST_VALUE, _LONGEST_NAME = 24, 100


@dataclass(frozen=True)
class Variant:
    """One LoRA of a sweep."""

    name: str
    """What differs, fit for file names: ``lr1e-4-rank8``."""
    settings: Mapping[str, Any]
    """The varied settings by their dotted names, with this LoRA's values."""
    config: TrainConfig
    """Its settings, as those of a separate run."""


def _flat(value: Any) -> Any:
    """Take ``train.seed = [0, 1]`` in TOML, which nests, for the setting of that name."""
    if not isinstance(value, Mapping):
        return value
    return dict(_leaves(value, ""))


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


class SweepConfig(TrainConfig):
    """Everything about one `lorasmith sweep`: a run's settings, and what varies."""

    vary: Annotated[dict[str, list[Any]], BeforeValidator(_flat)] = Field(default_factory=dict)
    """Settings by their dotted names, each with its values; a LoRA for each combination."""
    max_parallel: Annotated[int, Field(gt=0)] = DEFAULT_MAX_PARALLEL
    """How many LoRAs are trained at the same time at most."""

    @model_validator(mode="after")
    def _something_varies(self) -> Self:
        check_sweepable(self.vary)
        check_variant_count(self.vary)
        for name, values in self.vary.items():
            _check_values(name, [_value_of(self._with({name: value}), name) for value in values])
        self.variants()  # combinations that do not fit are refused before anything is done
        return self

    def variants(self) -> list[Variant]:
        """Return all combinations; the setting that was named last varies fastest."""
        combinations = [
            dict(zip(self.vary, values, strict=True)) for values in product(*self.vary.values())
        ]
        runs = [self._with(changes) for changes in combinations]
        settings = [{name: _value_of(run, name) for name in self.vary} for run in runs]
        return [
            Variant(name, own, _renamed(run, f"{self.output.name}/{name}"))
            for name, own, run in zip(variant_names(settings), settings, runs, strict=True)
        ]

    def groups(self) -> list[list[Variant]]:
        """Return the combinations in groups that are trained at the same time, nearly equal."""
        variants = self.variants()
        count = -(-len(variants) // self.max_parallel)
        edges = [len(variants) * k // count for k in range(count + 1)]
        return [variants[first:last] for first, last in pairwise(edges)]

    def _with(self, changes: Mapping[str, Any]) -> TrainConfig:
        """Return the run with other values of some settings.

        Raises:
            ConfigError: they do not fit.
        """
        tree = self.model_dump(exclude={"vary", "max_parallel"}, exclude_unset=True, by_alias=True)
        for name, value in changes.items():
            *sections, key = name.split(".")
            section = reduce(lambda inner, name: inner.setdefault(name, {}), sections, tree)
            section[key] = value
        # Validation losses under different seeds are to be comparable.
        tree.setdefault("validation", {}).setdefault("loss_seed", self.train.seed)
        described = ", ".join(f"{name}={value}" for name, value in changes.items())
        return validate_config(TrainConfig, tree, f"vary {described}")


def load_sweep(
    path: Path | None,
    overrides: Sequence[str] = (),
    vary: Mapping[str, Sequence[Any]] | None = None,
    max_parallel: int | None = None,
    base: Mapping[str, Any] | None = None,
) -> SweepConfig:
    """Read the settings of a sweep.

    Args:
        path: a TOML file, of a run or of a sweep.
        overrides: ``section.key=value``, as for a run.
        vary: values of settings by their dotted names; they replace those that the file has for
            the same settings.
        max_parallel: how many LoRAs are trained at the same time at most; None leaves it as it is.
        base: values laid under the file's.

    Raises:
        ConfigError: unreadable file, unknown key, invalid value, or nothing to vary.
    """
    tree = read_tree(SweepConfig, path, overrides, base)
    if "feature" in tree:
        raise ConfigError(
            "the settings have [[feature]] tables, which cannot be swept; give settings of a "
            "single tag, or train the features with lorasmith train"
        )
    vary = _in_our_words(vary or {})
    check_sweepable(vary, none=True)
    known = _flat(tree.get("vary", {}))
    if isinstance(known, Mapping) and (known or vary):
        tree["vary"] = {**_in_our_words(known), **vary}
    if max_parallel is not None:
        tree["max_parallel"] = max_parallel
    return validate_config(SweepConfig, tree, "settings" if path is None else str(path))


def _in_our_words(vary: Mapping[str, Any]) -> dict[str, Any]:
    """Return varied settings in which names of other programs are ours: ``lr``, ``network_dim``.

    Raises:
        ConfigError: such a name has another meaning here, or two name one setting.
    """
    known = {key for key, _, _ in list_fields(TrainConfig)}
    result: dict[str, Any] = {}
    for name, values in vary.items():
        key, ours = name, values
        if name not in known and isinstance(values, list | tuple):
            last = name.rpartition(".")[2]
            changes = [foreign_changes(last, value, known) for value in values]
            keys = {key for change in changes for key in change or ()}
            if len(keys) == 1 and all(changes):
                key = keys.pop()
                ours = [change[key] for change in changes if change]
        if key in result:
            raise ConfigError(f"vary: {key} is there twice, once under another name")
        result[key] = ours
    return result


def parse_vary(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Read ``section.key=value,value,...``; each value as that of an override.

    Commas within quotes and brackets divide nothing.

    Raises:
        ConfigError: it is not written like that, or a setting is there twice.
    """
    vary: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip()
        if not (name and equals and values.strip()):
            raise ConfigError(f"--vary {text!r}: write it as section.key=value,value")
        if name in vary:
            raise ConfigError(f"--vary {name}: it is there twice; give all its values at once")
        vary[name] = [parse_value(part.strip()) for part in _divided(values)]
    return vary


def check_variant_count(vary: Mapping[str, Sequence[Any]]) -> None:
    """Refuse a sweep of more combinations than anyone trains.

    Raises:
        ConfigError: there are more than `MAX_VARIANTS`, or a setting has as many values.
    """
    count = math.prod(len(values) for values in vary.values())
    if max(count, *map(len, vary.values())) > MAX_VARIANTS:
        raise ConfigError(
            f"vary: {count:,} combinations; a sweep takes up to {MAX_VARIANTS:,}: give fewer values"
        )


def check_sweepable(names: Iterable[str], none: bool = False) -> None:
    """Make sure that settings exist and may vary.

    Args:
        names: dotted.
        none: whether there may be none.

    Raises:
        ConfigError: one does not or may not.
    """
    for name in names:
        if name in SWEEPABLE:
            continue
        known = [field for field, _, _ in list_fields(TrainConfig)]
        if name not in known:
            raise ConfigError(f"vary: there is no setting {name!r}{did_you_mean(name, known)}")
        raise ConfigError(
            f"vary: {name} is the same for all LoRAs of a sweep, which share the images, the "
            f"model and the steps; what may vary is {', '.join(SWEEPABLE)}"
        )
    if not (names or none):
        raise ConfigError(
            "nothing to vary: name at least one setting with its values, such as "
            "--vary train.learning_rate=1e-4,2e-4"
        )


def variant_names(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a name for each combination of settings, fit for file names and all different."""
    slugs = {name: _slugs([own[name] for own in settings]) for name in settings[0]}
    names = [
        "-".join(f"{SWEEPABLE[name]}{slugs[name][number]}" for name in own)
        for number, own in enumerate(settings)
    ]
    if max(map(len, names)) <= _LONGEST_NAME and len({name.casefold() for name in names}) == len(
        names
    ):
        return names
    digits = len(str(len(names)))
    return [f"variant{number + 1:0{digits}}" for number in range(len(names))]


def format_number(value: float) -> str:
    """Return a number as it is written shortest, without rounding: 8, 0.01, 1e-4."""
    plain = format(Decimal(repr(value)).normalize(), "f")
    mantissa, _, power = f"{Decimal(repr(value)).normalize():e}".partition("e")
    scientific = f"{mantissa}e{int(power)}"
    return scientific if len(scientific) < len(plain) else plain


def _slugs(values: Sequence[Any]) -> list[str]:
    """Return the values of one setting as parts of file names; different ones stay different."""
    distinct = list(dict.fromkeys(values))
    words = [_slug(value) for value in distinct]
    if len({word.casefold() for word in words}) < len(words):
        words = [f"{word}-{number}" for number, word in enumerate(words, start=1)]
    by_value = dict(zip(distinct, words, strict=True))
    return [by_value[value] for value in values]


def _slug(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int | float):
        return format_number(value)
    parts = value if isinstance(value, tuple) else (str(value),)
    words = (re.sub(r"[^\w.+-]+", "-", part).strip("-.") for part in parts)
    return "+".join(words)[:_LONGEST_VALUE].strip("-.") or "x"


def _check_values(name: str, values: Sequence[Any]) -> None:
    """Make sure that there are several different ones."""
    for number, value in enumerate(values):
        if value in values[:number]:
            raise ConfigError(f"vary {name}: the value {value} is there twice")
    if len(values) < 2:
        given = f"{values[0]} alone" if values else "no value"
        raise ConfigError(f"vary {name}: {given} is nothing to vary; give several, or use --set")


def _value_of(run: TrainConfig, name: str) -> Any:
    return reduce(getattr, name.split("."), run)


def _renamed(run: TrainConfig, name: str) -> TrainConfig:
    return run.model_copy(update={"output": OutputConfig(name=name)})


def _divided(text: str) -> list[str]:
    """Cut a text at its commas, but for those within quotes and brackets."""
    pieces, start, quote, depth = [], 0, "", 0
    for index, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter == "," and not depth:
            pieces.append(text[start:index])
            start = index + 1
        else:
            depth += (letter in "[{") - (letter in "]}")
    return [*pieces, text[start:]]
