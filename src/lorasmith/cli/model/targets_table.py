"""The table of ``lorasmith model info --targets``."""

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lorasmith.adapters.targeting.coverage import CoveredLayer, TargetCoverage


def coverage_table(coverage: "TargetCoverage", targets: str, rank: int) -> Table:
    """Return layers, parameters and share by block."""
    table = Table("block", "layers", title=f"LoRA on {targets}, rank {rank}", title_justify="left")
    for column in ("modules", "their weights", "share", "LoRA"):
        table.add_column(column, justify="right")
    for block, layers in coverage.group_by_block().items():
        table.add_row(block, _kinds(layers), *_cells(coverage, layers))
    table.add_section()
    table.add_row("all", "", *_cells(coverage, coverage.layers))
    return table


def coverage_json(coverage: "TargetCoverage", targets: str, rank: int) -> dict[str, Any]:
    """Return everything about what targets take."""
    return {
        "targets": targets,
        "rank": rank,
        "modules": [asdict(layer) for layer in coverage.layers],
        "blocks": {
            block: _sums(coverage, layers) for block, layers in coverage.group_by_block().items()
        },
        "total": _sums(coverage, coverage.layers),
    }


def _kinds(layers: "Sequence[CoveredLayer]") -> str:
    counted = Counter(layer.kind for layer in layers)
    return ", ".join(f"{count} {kind}" for kind, count in counted.items())


def _sums(coverage: "TargetCoverage", layers: "Sequence[CoveredLayer]") -> dict[str, Any]:
    return {
        "modules": len(layers),
        "parameters": sum(layer.parameters for layer in layers),
        "share": coverage.parameter_share(layers),
        "lora": sum(layer.lora_parameters for layer in layers),
    }


def _cells(coverage: "TargetCoverage", layers: "Sequence[CoveredLayer]") -> tuple[str, ...]:
    sums = _sums(coverage, layers)
    share, lora = f"{sums['share']:.1%}", f"{sums['lora']:,}"
    return str(sums["modules"]), f"{sums['parameters']:,}", share, lora
