"""``lorasmith model``: what is inside a model, and its conversion."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from lorasmith.cli.download import Download, fetch
from lorasmith.cli.model.convert import convert
from lorasmith.cli.model.sizes_table import format_bytes, sizes_json, sizes_table
from lorasmith.cli.model.targets_table import coverage_json, coverage_table
from lorasmith.cli.options.common import AsJson
from lorasmith.cli.output import print_json
from lorasmith.config.lora import LoraConfig
from lorasmith.core.text.console import open_console

if TYPE_CHECKING:
    from lorasmith.models.files.summary import ModelInfo
    from lorasmith.models.model_summary import LoraCost, ModelSummary
    from lorasmith.models.unet_tree import UnetNode

_SIZE_OF_HALF = 2
"""Bytes per parameter in the float16 that LoRA files are usually saved in."""
_FILE_WIDTH = 160


ModelName = Annotated[
    Path | None,
    typer.Argument(
        help="A diffusers folder, a .safetensors file with a full model, or a Hugging Face id "
        "in the local cache.",
        show_default="the embedded model",
    ),
]
LoraRank = Annotated[
    int | None, typer.Option(metavar="RANK", help="Also show what a LoRA of this rank costs.")
]
Targets = Annotated[
    str | None,
    typer.Option(
        metavar="TARGET[,TARGET]",
        help="Only show what a LoRA on these layers takes: presets such as attention, "
        "all-linear+conv, text-encoder, up.1, or patterns.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the ``model`` commands to the application."""
    room = typer.Typer(help="Look into models, and convert them.", no_args_is_help=True)
    room.command("info")(info)
    room.command("convert")(convert)
    app.add_typer(room, name="model")


def info(
    model: ModelName = None,
    lora: LoraRank = None,
    targets: Targets = None,
    download: Download = False,
    as_json: AsJson = False,
) -> None:
    """Show what a model is and its parts: the U-Net as a tree, its layers by kind, VAE, text side.

    Family, prediction type, number formats and hash come first, the bytes of each part as stored,
    in fp16 and in fp32 last. Weights are not loaded; the hash is the one that A1111 shows for
    single files, and that of the U-Net's weights for folders. In the tree `<-` marks where the
    time, the text and the skip connections enter; the names in brackets (IN01, MID, OUT03) are
    those of block weight vectors.

    `--targets` takes what the setting `lora.targets` takes, with rank 16 unless `--lora` is given.

    Example: `lorasmith model info --lora 16`
    """
    console = _console()
    if download:
        fetch(model)
    if targets is not None:
        rank = LoraConfig().rank if lora is None else lora
        _show_targets(console, model, targets, rank, as_json)
        return
    with open_console(stderr=True).status("reading the model's parts"):
        from lorasmith.inference.outputs.png_metadata import compute_model_hash
        from lorasmith.models.files.summary import read_model_info
        from lorasmith.models.model_summary import summarize_model

        summary, parts = read_model_info(model), summarize_model(model, lora)
        hashed = compute_model_hash(summary.path)
    if as_json:
        tree = _summary_json(summary, hashed) | _as_json(parts, lora)
        print_json(tree)
        return
    _print_model(console, summary, hashed, parts, lora)


def _print_model(
    console: Console, summary: "ModelInfo", hashed: str, parts: "ModelSummary", rank: int | None
) -> None:
    console.print(_summary_text(summary, hashed), soft_wrap=True, highlight=False)
    console.print(_tree(parts.unet))
    console.print(_shares(parts))
    console.print(_brief(parts), soft_wrap=True, highlight=False)
    console.print(sizes_table(summary.sizes))
    if rank is not None:
        console.print(_costs(parts, rank))


def _show_targets(
    console: Console, model: Path | None, targets: str, rank: int, as_json: bool
) -> None:
    with open_console(stderr=True).status("reading the model's parts"):
        from lorasmith.adapters.targeting.coverage import compute_coverage
        from lorasmith.models.model_summary import build_meta_networks

        coverage = compute_coverage(build_meta_networks(model), targets, rank)
    if as_json:
        print_json(coverage_json(coverage, targets, rank))
        return
    console.print(coverage_table(coverage, targets, rank))


def _console() -> Console:
    """Return a console as wide as the terminal, or wide enough for every line of a file."""
    return open_console(file_width=_FILE_WIDTH)


def _summary_json(summary: "ModelInfo", hashed: str) -> dict[str, Any]:
    return {
        "title": summary.title,
        "family": summary.variant.family_name,
        "inpainting": summary.variant.is_inpainting,
        "prediction_type": summary.variant.prediction_type,
        "layout": "single file" if summary.single_file else "folder",
        "hash": hashed,
        "parts": [asdict(part) for part in summary.parts],
        "left_out": list(summary.unused),
        "sizes": sizes_json(summary.sizes),
    }


def _summary_text(summary: "ModelInfo", hashed: str) -> str:
    prediction = summary.variant.prediction_type
    predicts = (
        f"predicts {prediction}"
        if prediction
        else "what it predicts is not said (measured when loaded)"
    )
    layout = "single file" if summary.single_file else "folder"
    parts = [f"{part.name} {'+'.join(part.formats)} ({part.tensors})" for part in summary.parts]
    lines = [
        f"Model      {summary.title}, {predicts}, {layout}, hash {hashed}",
        f"Parts      {', '.join(parts)}",
    ]
    if summary.unused:
        more = ", ..." if len(summary.unused) > 3 else ""
        first = ", ".join(summary.unused[:3])
        lines.append(f"Not used   {len(summary.unused)} further: {first}{more}")
    return "\n".join(lines)


def _as_json(parts: "ModelSummary", rank: int | None) -> dict[str, Any]:
    tree = asdict(parts) | {"folder": str(parts.folder), "parameters": parts.parameters}
    del tree["variant"]  # said in the summary
    costs = [asdict(cost) | {"reduction": cost.reduction} for cost in parts.lora]
    tree["lora"] = None if rank is None else {"rank": rank, "costs": costs}
    return tree


def _tree(node: "UnetNode", above: str = "") -> Tree:
    """Return the rich tree of a node; names are shown relative to the parent's."""
    # "transformer_blocks.0" says nothing where there is only one.
    name = node.path.removeprefix(f"{above}.").removeprefix("transformer_blocks.0.")
    line = Text.assemble((name, "bold"))
    for part, style in (
        (node.kind if node.kind != name.replace("_", " ") else "", ""),
        (short(node.parameters), "green"),
        (node.detail, "cyan"),
        (f"[{node.block}]" if node.block else "", "dim"),
        (f"<- {node.note}" if node.note else "", "yellow"),
    ):
        line.append(f"  {part}" if part else "", style)
    tree = Tree(line, guide_style="dim")
    for child in node.children:
        tree.children.append(_tree(child, node.path))
    return tree


def _shares(parts: "ModelSummary") -> Table:
    from lorasmith.models.model_summary import LAYER_TYPES

    table = Table("kind of layer", title="The U-Net by kind", title_justify="left")
    for column in ("layers", "parameters", "share"):
        table.add_column(column, justify="right")
    for share in parts.shares:
        row = str(share.layers), f"{share.parameters:,}", f"{share.share:.1%}"
        table.add_row(LAYER_TYPES[share.kind], *row)
    table.add_section()
    layers = sum(share.layers for share in parts.shares)
    table.add_row("all", str(layers), f"{parts.unet.parameters:,}", "100.0%")
    return table


def _brief(parts: "ModelSummary") -> str:
    vae, noise = parts.vae, parts.scheduler
    lines = [
        f"VAE        {short(vae['parameters'])} (encoder {short(vae['encoder'])}, decoder "
        f"{short(vae['decoder'])}), channels {_listed(vae['channels'])}, one latent of "
        f"{vae['latent_channels']} channels per {vae['downscale']}x{vae['downscale']} pixels, "
        f"scaling factor {vae['scaling_factor']:g}",
        *(_text_line(text) for text in parts.text),
        f"Scheduler  {noise['class']}: predicts {noise['prediction_type'] or 'what is not said'}, "
        f"{noise['timesteps']} timesteps, {_betas(noise)}"
        + (", zero terminal SNR" if noise["zero_terminal_snr"] else ""),
        f"Networks   {short(parts.parameters)} parameters in all",
    ]
    return "\n".join(lines)


def _betas(noise: Mapping[str, Any]) -> str:
    schedule = f"{noise['beta_schedule']} betas"
    if noise["beta_schedule"].startswith("squaredcos"):
        return schedule  # beta_start and beta_end have no effect
    return f"{schedule} {noise['beta_start']:g} to {noise['beta_end']:g}"


def _text_line(text: Mapping[str, Any]) -> str:
    return (
        f"Text       {short(text['parameters'])} ({text['part']}, {text['class']}), "
        f"{text['layers']} layers of width {text['width']}, {text['heads']} heads, "
        f"{text['tokens']} tokens, vocabulary {text['vocabulary']:,}"
    )


def _costs(parts: "ModelSummary", rank: int) -> Table:
    from lorasmith.models.model_summary import LAYER_TYPES

    table = Table("LoRA on", title=f"A LoRA of rank {rank}", title_justify="left")
    for column in ("layers", "their weights", "LoRA", "fewer", "file (fp16)"):
        table.add_column(column, justify="right")
    single = [cost for cost in parts.lora if cost.name in LAYER_TYPES]
    for cost in single:
        table.add_row(LAYER_TYPES[cost.name], *_cost_cells(cost))
    table.add_section()
    for cost in parts.lora[len(single) :]:
        name = "text encoder" if cost.name == "text" else f"all of: {cost.name}"
        table.add_row(name, *_cost_cells(cost))
    return table


def _cost_cells(cost: "LoraCost") -> tuple[str, ...]:
    return (
        str(cost.layers),
        f"{cost.weights:,}",
        f"{cost.lora:,}",
        f"{cost.reduction:.1f}x",
        format_bytes(cost.lora * _SIZE_OF_HALF),
    )


def short(number: int) -> str:
    """Return a count in three or four digits: 859.5 M, 296."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.{1 if number >= 10 * size else 2}f} {unit}"
    return str(number)


def _listed(numbers: list[int]) -> str:
    return ", ".join(str(number) for number in numbers)
