"""From a TOML file and ``--set section.key=value`` overrides to a checked settings tree."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import ValidationError

from lorasmith.config.base import BaseConfig
from lorasmith.config.fields import explain_validation_error, list_fields
from lorasmith.config.reading import old_keys
from lorasmith.config.reading.read_toml import MAX_TABLE_DEPTH, parse_value, read_toml
from lorasmith.config.reading.translate_foreign import translate
from lorasmith.core.errors import ConfigError, LorasmithWarning
from lorasmith.core.text.terminal import shorten

S = TypeVar("S", bound=BaseConfig)
Tree = dict[str, Any]

_LONGEST_OVERRIDE = 200
"""Longer ones are shortened in messages."""


def load_config(
    kind: type[S],
    path: Path | None = None,
    overrides: Sequence[str] = (),
    base: Mapping[str, Any] | None = None,
) -> S:
    """Read settings of one kind.

    Args:
        kind: the settings class.
        path: a TOML file, or None for defaults alone.
        overrides: ``section.key=value`` strings; the value is TOML, or plain text where that
            does not parse, so ``--set run.out=a/b`` needs no quotes.
        base: values laid under the file's, for instance from command-line flags.

    Raises:
        ConfigError: unreadable file, unknown key (with close matches) or invalid value.
    """
    tree = read_tree(kind, path, overrides, base)
    return validate_config(kind, tree, "settings" if path is None else str(path))


def load_saved_config(kind: type[S], path: Path) -> S:
    """Read settings that lorasmith wrote into a run's folder, in this version or an earlier one.

    Raises:
        ConfigError: unreadable file, unknown key or invalid value.
    """
    tree, _ = old_keys.upgrade(read_toml(path))
    return validate_config(kind, tree, str(path))


def read_tree(
    kind: type[BaseConfig],
    path: Path | None = None,
    overrides: Sequence[str] = (),
    base: Mapping[str, Any] | None = None,
) -> Tree:
    """Return settings as a tree, not checked yet; the arguments are those of `load_config`.

    Raises:
        ConfigError: unreadable file, or something that is no override.
    """
    known = {key for key, _, _ in list_fields(kind)}
    tree = _in_our_words(base or {}, known, "settings")
    if path is not None:
        _merge(tree, _in_our_words(read_toml(path), known, str(path)))
    for override in overrides:
        changes = parse_override(override)
        _refuse_old_key(override, known)
        _merge(tree, translate(changes, known))
    return tree


def _in_our_words(tree: Mapping[str, Any], known: Collection[str], source: str) -> Tree:
    """Return settings in which keys of earlier versions and of other programs are ours."""
    try:
        upgraded, renamed = old_keys.upgrade(tree)
        translated = translate(upgraded, known)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
    if renamed:
        more = f" (and {len(renamed) - 1} more)" if len(renamed) > 1 else ""
        name = renamed[0].removeprefix("vary.")
        warnings.warn(
            f"{source}: settings of an earlier version: {name} is {old_keys.new_name(name)} "
            f"now{more}; --print-config writes the new names",
            LorasmithWarning,
            stacklevel=4,
        )
    return _deep_copy(translated)


def _refuse_old_key(override: str, known: Collection[str]) -> None:
    key = override.partition("=")[0].strip()
    new = old_keys.new_name(key)
    if new is not None and new != key and key not in known:
        raise ConfigError(f"{key} is {new} now{old_keys.REMARKS.get(key, '')}")


def validate_config(kind: type[S], tree: Mapping[str, Any], where: str = "settings") -> S:
    """Return a tree as settings of a kind.

    Args:
        kind: the settings class.
        tree: the values.
        where: what errors name as their place.

    Raises:
        ConfigError: unknown key (with close matches) or invalid value.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain_validation_error(kind, error, where)) from error


def parse_override(text: str) -> Tree:
    """Turn ``a.b=value`` into ``{"a": {"b": value}}``."""
    name, equals, value = text.partition("=")
    parts = name.strip().split(".")
    if not equals or not all(parts) or len(parts) > MAX_TABLE_DEPTH:
        raise ConfigError(
            f"--set {shorten(repr(text), _LONGEST_OVERRIDE)}: write it as section.key=value"
        )
    tree: Any = parse_value(value.strip())
    for part in reversed(parts):
        tree = {part: tree}
    return dict(tree)


def dump_toml(settings: BaseConfig) -> str:
    """Return the resolved settings as TOML. Fields that are None are left out: TOML has no null."""
    tree = _without_none(settings.model_dump(mode="json", by_alias=True))
    return tomli_w.dumps({old_keys.VERSION_KEY: old_keys.CONFIG_VERSION, **tree})


def _merge(under: Tree, over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(under.get(key), dict):
            _merge(under[key], value)
        else:
            under[key] = _deep_copy(value) if isinstance(value, Mapping) else value


def _deep_copy(tree: Mapping[str, Any]) -> Tree:
    return {k: _deep_copy(v) if isinstance(v, Mapping) else v for k, v in tree.items()}


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_none(v) for v in value]
    return value
