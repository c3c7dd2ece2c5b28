"""``lorasmith lora ablate``: how much each block of a LoRA contributes."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from lorasmith.cli.lora.options import IgnoreUnknown
from lorasmith.cli.options.common import AsJson, Device, ModelPath
from lorasmith.cli.output import print_json
from lorasmith.core.errors import ConfigError, DataError
from lorasmith.core.text.console import open_console

if TYPE_CHECKING:
    import torch

    from lorasmith.adapters.files.lora_file import LoraFile
    from lorasmith.evaluation.block_ablation import AblationResult
    from lorasmith.models.model import Model

_FILE_WIDTH = 120
_BAR = 24
"""Characters of the longest bar."""
_NUM_GENERATED = 4
"""Images that are generated where there are no real ones."""
_MAX_IMAGES = 16
"""Real images that are used."""


File = Annotated[Path, typer.Argument(help="A LoRA file.", show_default=False)]
Data = Annotated[
    Path | None,
    typer.Option(
        help="Captioned images, a folder or a packed tar; their captions are the prompts.",
        show_default="images that the LoRA generates",
    ),
]
Prompts = Annotated[
    list[str] | None,
    typer.Option("--prompt", help="Generate this. Repeatable.", show_default="the file's tag"),
]
By = Annotated[
    Literal["block", "lbw", "kind"],
    typer.Option(
        help="block: down.1, mid, up.0; lbw: IN04, MID, OUT05, the blocks of block weights; "
        "kind: cross-attention, ff."
    ),
]
Page = Annotated[
    Path | None,
    typer.Option("--html", help="Also write a page with the bar chart.", show_default="none"),
]
Steps = Annotated[int, typer.Option(help="Denoising steps of generated images.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the images and their noise.")]


def register(group: typer.Typer) -> None:
    """Add the command to those about LoRA files."""
    group.command("ablate")(ablate)


def ablate(
    file: File,
    data: Data = None,
    prompts: Prompts = None,
    by: By = "block",
    model: ModelPath = None,
    page: Page = None,
    as_json: AsJson = False,
    steps: Steps = 20,
    seed: Seed = 0,
    device: Device = "auto",
    ignore_unknown: IgnoreUnknown = False,
) -> None:
    """Block ablation: disable a LoRA block by block and report how much each contributes.

    *switched off* is the share of the LoRA's effect that is missing without the block, *alone* the
    effect of the block alone. Blocks change each other's inputs, so neither adds up to 100%.
    The names are targets for `lora.targets`.

    Example: `lorasmith lora ablate loras/inkmono.safetensors --by kind`
    """
    import torch

    from lorasmith.adapters.files.lora_file import load_lora_file
    from lorasmith.core.device import pick_device
    from lorasmith.evaluation.block_ablation import BlockAblation
    from lorasmith.evaluation.fixed_noise import FixedNoisePredictor
    from lorasmith.loops.progress import progress_bar
    from lorasmith.models.load import load_model
    from lorasmith.reports.pages.block_ablation import write_block_ablation_page

    lora = load_lora_file(file.expanduser(), ignore_unknown)
    if ignore_unknown:
        lora = replace(lora, embeddings={})
    opened = load_model(model).to(pick_device(device), torch.float32)
    ablation = BlockAblation(opened, lora, by)
    if data is not None:
        latents, texts = _encode_images(opened, data.expanduser())
    else:
        latents, texts = _generate_latents(opened, lora, prompts or [], steps, seed, ignore_unknown)
    with progress_bar("switching blocks off", len(ablation)) as advance:
        result = ablation.run(FixedNoisePredictor(opened, latents, seed=seed), texts, advance)
    if page is not None:
        write_block_ablation_page(page.expanduser(), lora.path.name, result, by)
    if as_json:
        print_json({"file": str(file), "by": by, **asdict(result)})
    else:
        _print_result(lora, result, page)


def _print_result(lora: "LoraFile", result: "AblationResult", page: Path | None) -> None:
    console = open_console(file_width=_FILE_WIDTH)
    console.print(_table(lora, result))
    if page is not None:
        console.print(f"{page}")


def _encode_images(model: "Model", data: Path) -> "tuple[torch.Tensor, list[str]]":
    """Return latents of real images ``[N, C, h, w]``, and their captions."""
    from lorasmith.data.images.square_images import load_square_images, uint8_to_signed
    from lorasmith.data.reading.reader import read_rows
    from lorasmith.evaluation.fixed_noise import encode_images

    rows = read_rows(data)
    if not rows:
        raise DataError(f"{data}: it has no captioned images")
    rows = rows[:: -(-len(rows) // _MAX_IMAGES)]
    images = uint8_to_signed(load_square_images(rows, model.default_size))
    return encode_images(model, images), [row.caption for row in rows]


def _generate_latents(
    model: "Model",
    lora: "LoraFile",
    prompts: Sequence[str],
    steps: int,
    seed: int,
    ignore_unknown: bool,
) -> "tuple[torch.Tensor, list[str]]":
    """Return latents of what the LoRA generates ``[N, C, h, w]``, and the prompts."""
    from lorasmith.adapters.gating.gate_metadata import read_gate
    from lorasmith.evaluation.image_generator import ImageGenerator
    from lorasmith.inference.options import SamplingOptions
    from lorasmith.loops.progress import progress_bar

    facts = read_gate(lora)
    given = prompts or [f"{facts.tag} {facts.class_word}".strip()]
    if not any(given):
        raise ConfigError(
            f"{lora.path}: it does not say which tag calls it; give a prompt with --prompt, or "
            "images with --data"
        )
    count = max(_NUM_GENERATED, len(given))
    texts = [given[index % len(given)] for index in range(count)]
    with progress_bar("generating", count * steps) as advance:
        generator = ImageGenerator(
            model, SamplingOptions(num_inference_steps=steps), advance, strict=not ignore_unknown
        )
        result = generator.generate(texts, range(seed, seed + count), [lora.path], gate=False)
    return result.latents, texts


def _table(lora: "LoraFile", result: "AblationResult") -> Table:
    title = f"{lora.path.name}: changes predictions by {result.effect:.2%}"
    table = Table("block", title=title, title_justify="left")
    for column in ("layers", "norm", "alone", "switched off"):
        table.add_column(column, justify="right")
    table.add_column("")
    longest = max(max(block.switched_off for block in result.blocks), 1e-12)
    for block in result.blocks:
        bar = "█" * max(1, round(block.switched_off / longest * _BAR))
        cells = (
            f"{block.layers}",
            f"{block.norm:.3g}",
            f"{block.alone:.1%}",
            f"{block.switched_off:.1%}",
        )
        table.add_row(block.block, *cells, bar if block.switched_off else "")
    return table
