"""The table of sizes in ``lorasmith model info``."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from lorasmith.models.files.part_sizes import PartSize

_UNKNOWN = "?"


def sizes_table(sizes: Mapping[str, "PartSize"]) -> Table:
    """Return the bytes of each part and of all, as stored, in float16 and in float32."""
    from lorasmith.models.files.part_sizes import add_sizes

    title = "Size of the parts"
    if any(size.parameters is None for size in sizes.values()):
        title += f" ({_UNKNOWN}: pickled or damaged, not opened)"
    table = Table("part", title=title, title_justify="left")
    for column in ("parameters", "as stored", "fp16", "fp32"):
        table.add_column(column, justify="right")
    for part, size in sizes.items():
        table.add_row(part, *_cells(size))
    table.add_section()
    table.add_row("all", *_cells(add_sizes(sizes)))
    return table


def sizes_json(sizes: Mapping[str, "PartSize"]) -> dict[str, dict[str, int | None]]:
    """Return the bytes of each part and of ``all``."""
    from lorasmith.models.files.part_sizes import add_sizes

    return {part: asdict(size) for part, size in {**sizes, "all": add_sizes(sizes)}.items()}


def format_bytes(count: int) -> str:
    """Return a number of bytes in KiB, MiB or GiB."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.{2 if unit == 'GiB' else 1}f} {unit}"
    return f"{count / 2**10:.0f} KiB"


def _cells(size: "PartSize") -> tuple[str, ...]:
    parameters = _UNKNOWN if size.parameters is None else f"{size.parameters:,}"
    in_bytes = (size.stored, size.fp16, size.fp32)
    return parameters, *(_UNKNOWN if n is None else format_bytes(n) for n in in_bytes)
