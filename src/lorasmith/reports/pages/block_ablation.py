"""The page of ``lora ablate``: how much each block of a LoRA contributes."""

from pathlib import Path

from lorasmith.evaluation.block_ablation import AblationResult
from lorasmith.reports.charts.bar import BarChart, BarGroup, bar_figure
from lorasmith.reports.html import render_page, write_output

_TEMPLATE = "block_ablation.html.j2"


def write_block_ablation_page(path: Path, name: str, result: AblationResult, grouping: str) -> Path:
    """Write the page and return its path.

    Args:
        path: an HTML file.
        name: the LoRA's file name.
        result: what was measured.
        grouping: what a block is: ``block``, ``piece`` or ``kind``.

    Raises:
        OutputError: it cannot be written.
    """
    chart = BarChart(
        f"Share of the LoRA's effect, by {grouping}",
        ["missing when switched off", "alone"],
        [BarGroup(block.block, [block.switched_off, block.alone]) for block in result.blocks],
    )
    rows = [
        (
            block.block,
            block.layers,
            f"{block.norm:.3g}",
            f"{block.alone:.1%}",
            f"{block.switched_off:.1%}",
        )
        for block in result.blocks
    ]
    page = render_page(
        _TEMPLATE,
        name=name,
        grouping=grouping,
        effect=f"{result.effect:.2%}",
        chart=bar_figure(chart),
        rows=rows,
    )
    return write_output(path, page)
