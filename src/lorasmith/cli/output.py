"""What commands write, besides tables: lines, JSON and TOML, without what steers a terminal.

All text of the commands leaves here, in `lorasmith.core.text.console` or in
`lorasmith.cli.log_handler`.
"""

import json
import re
from typing import Any

import typer

from lorasmith.core.text.terminal import escape_control_characters, is_unsafe, shorten

LONGEST_LINE = 8192
"""Paths of 4,096 bytes fit twice."""
LONGEST_ERROR = 2000

_NOT_ASCII = re.compile(r"[^ -~\n]")


def print_line(text: object) -> None:
    """Write one line to standard output."""
    typer.echo(shorten(escape_control_characters(str(text)), LONGEST_LINE))


def print_error(text: str) -> None:
    """Write one line to standard error; line breaks become spaces."""
    line = " ".join(text.split())
    typer.echo(shorten(escape_control_characters(line), LONGEST_ERROR), err=True)


def print_error_block(text: str) -> None:
    """Write several lines to standard error."""
    typer.echo(escape_control_characters(text, kept="\n").rstrip("\n"), err=True)


def print_json(tree: Any) -> None:
    """Write values as JSON to standard output."""
    text = json.dumps(tree, indent=2, ensure_ascii=False)
    typer.echo(_NOT_ASCII.sub(_escape_in_json, text))


def print_toml(text: str) -> None:
    """Write TOML whose strings are basic ones, as `dump_toml` returns it."""
    typer.echo(_NOT_ASCII.sub(_escape_in_toml, text), nl=False)


def _escape_in_json(match: re.Match[str]) -> str:
    if not is_unsafe(match[0]):
        return match[0]
    return "\\u007f" if match[0] == "\x7f" else json.dumps(match[0])[1:-1]


def _escape_in_toml(match: re.Match[str]) -> str:
    code = ord(match[0])
    escape = f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"
    return escape if is_unsafe(match[0]) else match[0]
