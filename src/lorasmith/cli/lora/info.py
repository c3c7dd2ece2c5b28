"""``lorasmith lora info``: what is in a LoRA file."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from lorasmith.cli.options.common import AsJson
from lorasmith.cli.output import print_json
from lorasmith.core.text.console import open_console
from lorasmith.core.text.terminal import escape_control_characters

if TYPE_CHECKING:
    from lorasmith.adapters.files.lora_file import LoraFile
    from lorasmith.adapters.tools.info import BlockInfo, LoraInfo

_FILE_WIDTH = 160
_LONGEST = 100
"""Metadata are cut to so many characters on the screen."""
_MOST_ENTRIES = 200
_LONGEST_LINE = 500


def register(group: typer.Typer) -> None:
    """Add the command to ``lorasmith lora``."""
    group.command("info")(info)


def info(
    file: Annotated[Path, typer.Argument(help="A LoRA file.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Show a LoRA file: the family it is for, ranks, alphas and norms by block, metadata.

    What else is in the file (embeddings, norms, biases) is listed and not used.

    A norm is that of what the adapters add to the weights; the largest is that of a single layer.
    Blocks of SDXL have their names in block weight vectors (IN04, MID, OUT05).

    Example: `lorasmith lora info loras/inkmono.safetensors`
    """
    from lorasmith.adapters.files.lora_file import read_lora_file
    from lorasmith.adapters.tools.info import summarize_lora

    lora = read_lora_file(file.expanduser())
    facts = summarize_lora(lora)
    if as_json:
        size = lora.path.stat().st_size
        tree = {"file": str(file), "bytes": size, **asdict(facts), "metadata": lora.metadata}
        print_json(tree)
        return
    console = open_console(file_width=_FILE_WIDTH)
    console.print(_summary(lora, facts))
    console.print(_blocks(facts))
    if lora.metadata:
        console.print(_metadata(lora.metadata))


def _summary(lora: "LoraFile", facts: "LoraInfo") -> Text:
    from lorasmith.adapters.files.unknown_keys import is_for_later_family
    from lorasmith.models.families.family import get_family

    data, total = lora.metadata, facts.total
    foreign = any(is_for_later_family(name) for name in lora.layers)
    other = "a later one (Flux, SD 3), which lorasmith cannot use" if foreign else "unknown"
    family = get_family(facts.family).title if facts.family else other
    lines = {
        "File": f"{lora.path} ({lora.path.stat().st_size / 2**20:.1f} MiB, "
        f"{', '.join(facts.dtypes)})",
        "Name": data.get("ss_output_name") or data.get("modelspec.title", ""),
        "Tag": data.get("modelspec.trigger_phrase", ""),
        "Family": f"{family} (by its {facts.family_source})" if facts.family_source else family,
        "Kind": f"{', '.join(facts.kinds)}, in the key format of {' and '.join(facts.key_formats)}",
        "Layers": f"{total.layers}, {total.parameters:,} parameters, rank {_listed(total.ranks)}, "
        f"alpha {_listed(total.alphas)}",
        "Norm": f"{total.norm:.4g}, largest layer {total.largest_norm:.4g}",
        "Bundled": _counted(facts.embeddings, "embeddings", lora.embeddings),
        "Unknown": _unknown(lora, facts),
    }
    return Text("\n".join(f"{key:<8}{_cut(value)}" for key, value in lines.items() if value))


def _unknown(lora: "LoraFile", facts: "LoraInfo") -> str:
    """Say which tensors and layers are not understood; empty without any."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in facts.unknown_tensors.items())
    texts = (
        f"{kinds}{_first(lora.unknown_keys)}" if kinds else "",
        _counted(len(facts.unknown_layers), "layers of no known model", facts.unknown_layers),
    )
    return "; ".join(text for text in texts if text)


def _counted(count: int, noun: str, names: Iterable[str]) -> str:
    return f"{count} {noun}{_first(names)}" if count else ""


def _first(names: Iterable[str]) -> str:
    from lorasmith.adapters.files.unknown_keys import example_keys

    return example_keys(list(names))


def _cut(text: str) -> str:
    """Return text without control characters, cut to what fits on a few lines."""
    plain = escape_control_characters(text[:_LONGEST_LINE])
    return plain if len(text) <= _LONGEST_LINE else f"{plain}... ({len(text):,} characters)"


def _blocks(facts: "LoraInfo") -> Table:
    table = Table("block", title="Blocks", title_justify="left")
    for column in ("layers", "rank", "alpha", "parameters", "norm", "largest"):
        table.add_column(column, justify="right")
    for block in facts.blocks:
        table.add_row(block.block, *_cells(block))
    table.add_section()
    table.add_row("all", *_cells(facts.total))
    return table


def _cells(block: "BlockInfo") -> tuple[str, ...]:
    return (
        str(block.layers),
        _listed(block.ranks),
        _listed(block.alphas),
        f"{block.parameters:,}",
        f"{block.norm:.4g}",
        f"{block.largest_norm:.4g}",
    )


def _metadata(data: dict[str, str]) -> Table:
    table = Table("key", "value", title="Metadata", title_justify="left")
    for key in sorted(data)[:_MOST_ENTRIES]:
        value = escape_control_characters(data[key][:_LONGEST])
        if len(data[key]) > _LONGEST:
            value = f"{value}... ({len(data[key])} characters)"
        table.add_row(Text(escape_control_characters(key[:_LONGEST])), Text(value))
    if len(data) > _MOST_ENTRIES:
        table.add_row("...", f"{len(data) - _MOST_ENTRIES:,} more entries")
    return table


def _listed(numbers: Any) -> str:
    """Return 8, or 4-16 for many different ones."""
    shown = [f"{number:g}" for number in numbers]
    return ", ".join(shown) if len(shown) <= 3 else f"{shown[0]}-{shown[-1]}"
