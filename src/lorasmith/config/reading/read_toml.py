"""Reading TOML: settings files, and single values given as text."""

import codecs
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorasmith.core.errors import ConfigError
from lorasmith.core.regular_files import read_regular_file

MAX_FILE_BYTES = 2**18
"""Longer files are no settings."""
MAX_DOTS = 1000
"""Of a line; tomllib needs quadratic time for dotted keys."""
MAX_TABLE_DEPTH = 16
"""How deep tables and arrays may be nested; settings need four levels."""

_WINDOWS_PATHS = "; write Windows paths in single quotes, 'C:\\Users', or with /"


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file. A byte order mark, as Windows' editors write it, is left out.

    Raises:
        ConfigError: missing, no file, too long, not UTF-8 or not TOML; the message has the line.
    """
    text = _read_text(path)
    try:
        tree = _parse(text)
    except ValueError as error:
        has_backslash = "Unescaped" in str(error) or "hex value" in str(error)
        hint = _WINDOWS_PATHS if has_backslash else ""
        raise ConfigError(f"{path}: not valid TOML: {error}{hint}") from error
    return tree


def parse_value(text: str) -> Any:
    """Read a value as TOML, or as plain text where that does not parse."""
    try:
        tree = _parse(f"value = {text}")
    except ValueError:
        return text
    return tree["value"] if len(tree) == 1 else text  # more than one: it had several lines


def _read_text(path: Path) -> str:
    try:
        content = read_regular_file(path, MAX_FILE_BYTES)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such settings file") from error
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); give a settings file"
        ) from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ConfigError(f"{path}: UTF-16 text; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}: not UTF-8 text (line {line}); save it as UTF-8") from error


def _parse(text: str) -> dict[str, Any]:
    """Parse TOML.

    Raises:
        ValueError: it is none, has a number of thousands of digits, or is nested too deep.
    """
    if any(line.count(".") > MAX_DOTS for line in text.split("\n")):
        raise ValueError(f"a line with more than {MAX_DOTS:,} dots")
    try:
        tree = tomllib.loads(text)
    except RecursionError as error:
        raise ValueError(f"nested deeper than {MAX_TABLE_DEPTH} levels") from error
    _check_depth(tree)
    return tree


def _check_depth(tree: Mapping[str, Any]) -> None:
    level: list[Any] = [tree]
    for _ in range(MAX_TABLE_DEPTH):
        level = [inner for value in level for inner in _inner_values(value)]
        if not level:
            return
    raise ValueError(f"nested deeper than {MAX_TABLE_DEPTH} levels")


def _inner_values(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return value if isinstance(value, list) else []
