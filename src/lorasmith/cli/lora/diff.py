"""``lorasmith lora diff``: two LoRA files side by side."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from lorasmith.cli.lora.options import IgnoreUnknown
from lorasmith.cli.options.common import AsJson
from lorasmith.cli.output import print_json
from lorasmith.core.text.console import open_console
from lorasmith.core.text.terminal import escape_control_characters

if TYPE_CHECKING:
    from lorasmith.adapters.tools.diff import BlockDiff, LoraDiff

_FILE_WIDTH = 160
_EXAMPLES = 5
_LONGEST = 60


def register(group: typer.Typer) -> None:
    """Add the command to ``lorasmith lora``."""
    group.command("diff")(diff)


def diff(
    first: Annotated[Path, typer.Argument(help="A LoRA file.", show_default=False)],
    second: Annotated[Path, typer.Argument(help="Another.", show_default=False)],
    as_json: AsJson = False,
    ignore_unknown: IgnoreUnknown = False,
) -> None:
    """Compare two LoRAs: norms by block, distance, and metadata.

    A cosine of 1 is the same direction, 0 has nothing in common. Key format and rank do not matter.

    Example: `lorasmith lora diff loras/inkmono.safetensors loras/rank4.safetensors`
    """
    from lorasmith.adapters.tools.file_operations import diff_loras

    result = diff_loras(first, second, ignore_unknown)
    if as_json:
        print_json(asdict(result))
        return
    console = open_console(file_width=_FILE_WIDTH)
    console.print(_table(result))
    for path, names in ((first, result.only_in_first), (second, result.only_in_second)):
        if names:
            more = ", ..." if len(names) > _EXAMPLES else ""
            text = f"only in {path}: {len(names)} layers, {', '.join(names[:_EXAMPLES])}{more}"
            console.print(Text(text))
    if result.metadata:
        console.print(_metadata(result))


def _table(result: "LoraDiff") -> Table:
    table = Table("block", title="Blocks", title_justify="left")
    for column in ("layers", "norm of the first", "of the second", "of the difference", "cosine"):
        table.add_column(column, justify="right")
    for block in result.blocks:
        table.add_row(*_cells(block))
    table.add_section()
    table.add_row(*_cells(result.total))
    return table


def _cells(block: "BlockDiff") -> tuple[str, ...]:
    norms = (f"{norm:.4g}" for norm in (block.first_norm, block.second_norm, block.diff_norm))
    cosine = "" if block.cosine is None else f"{block.cosine:.4f}"
    return block.block, str(block.layers), *norms, cosine


def _metadata(result: "LoraDiff") -> Table:
    table = Table("key", "first", "second", title="Metadata", title_justify="left")
    for key, values in result.metadata.items():
        table.add_row(*(Text(_shown(value)) for value in (key, *values)))
    return table


def _shown(text: str | None) -> str:
    """Return text without control characters, cut to what fits in a table."""
    plain = escape_control_characters(text or "")
    return plain if len(plain) <= _LONGEST else f"{plain[:_LONGEST]}..."
