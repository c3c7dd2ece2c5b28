"""``lorasmith lora``: look into LoRA files, and merge them into a model.

The commands that make LoRA files from others are in `lorasmith.cli.lora.files`.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorasmith.cli.lora import files as file_commands
from lorasmith.cli.lora import probe, project
from lorasmith.cli.lora.files import EMBEDDED, Files, Precision, weighted
from lorasmith.core.errors import ConfigError

if TYPE_CHECKING:
    from lorasmith.adapters.files.lora_file import LoraFile
    from lorasmith.adapters.tools.info import BlockInfo, LoraInfo

_FILE_WIDTH = 160
_LONGEST = 100
"""Metadata values are cut to so many characters on the screen."""


def register(app: typer.Typer) -> None:
    """Add the ``lora`` commands to the application."""
    room = typer.Typer(
        help="Look into LoRA files, convert, merge and resize them.", no_args_is_help=True
    )
    room.command("info")(info)
    room.command("bake")(bake)
    file_commands.register(room)
    probe.register(room)
    project.register(room)
    app.add_typer(room, name="lora")


def info(
    file: Annotated[Path, typer.Argument(help="A LoRA file.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Show a LoRA file: the family it is for, ranks, alphas and norms by block, metadata.

    A norm is that of what the adapters add to the weights; the largest is that of a single layer.
    Blocks of SDXL have their names in block weight vectors (IN04, MID, OUT05).

    Example: `lorasmith lora info loras/inkmono.safetensors`
    """
    from lorasmith.adapters.files.lora_file import load_lora_file
    from lorasmith.adapters.tools.info import summarize_lora

    lora = load_lora_file(file.expanduser())
    facts = summarize_lora(lora)
    if as_json:
        size = lora.path.stat().st_size
        tree = {"file": str(file), "bytes": size, **asdict(facts), "metadata": lora.metadata}
        typer.echo(json.dumps(tree, indent=2, ensure_ascii=False))
        return
    console = Console()
    console = console if console.is_terminal else Console(width=_FILE_WIDTH)
    console.print(_brief(lora, facts))
    console.print(_blocks(facts))
    if lora.metadata:
        console.print(_metadata(lora.metadata))


def bake(
    model: Annotated[
        str,
        typer.Argument(
            help="A diffusers folder, a .safetensors file with a whole model, a Hugging Face id in "
            "the local cache, or `embedded` for the model that ships with lorasmith.",
            show_default=False,
        ),
    ],
    files: Files,
    out: Annotated[Path, typer.Option(help="The new model folder; must not exist.")] = ...,  # type: ignore[assignment]
    precision: Precision = "fp32",
    allow_mismatch: Annotated[
        bool,
        typer.Option(
            help="Merge LoRAs that fit only in part, or say that they are for another family or "
            "kind of prediction; what does not fit is listed as a warning."
        ),
    ] = False,
) -> None:
    """Merge LoRAs into a model and save it as a new diffusers folder.

    It draws what the model draws with these LoRAs, of any kind. Parts that no LoRA changes are
    copied as they are; `--precision` is about the others. If anything fails, nothing is written.

    Example: `lorasmith lora bake embedded loras/inkmono.safetensors:0.8 --out models/inkmono`
    """
    chosen = [weighted(file) for file in files]
    with Console(stderr=True).status("opening model and LoRAs"):
        from lorasmith.adapters.tools.fuse import fuse_into_model as merge
        from lorasmith.core.device import compute_dtype
        from lorasmith.core.safetensors_header import PICKLE_SUFFIXES
        from lorasmith.models.files.save import refuse_taken, save_modified_model
        from lorasmith.models.load import load_model, resolve_model_path

        folder = resolve_model_path(None if model == EMBEDDED else model)
        target = out.expanduser()
        if target.suffix.lower() in (".safetensors", *PICKLE_SUFFIXES):
            raise ConfigError(
                f"--out {target}: a merged model is a folder; name one, and make a single file of "
                "it with `lorasmith model convert`"
            )
        refuse_taken(target)
        terms = [one.load() for one in chosen]
        opened = load_model(folder)
    with Console(stderr=True).status("merging and saving"):
        changed = merge(opened, terms, compute_dtype(precision), not allow_mismatch)
        save_modified_model(opened, changed, target, compute_dtype(precision))
    count = f"{len(terms)} LoRA{'' if len(terms) == 1 else 's'}"
    typer.echo(f"{target}: {count} merged into {', '.join(sorted(changed))}")


def _brief(lora: "LoraFile", facts: "LoraInfo") -> Text:
    from lorasmith.adapters.files.key_formats import is_for_later_family
    from lorasmith.models.family import FAMILIES

    data, total = lora.metadata, facts.total
    foreign = any(is_for_later_family(name) for name in lora.layers)
    other = "a later one (Flux, SD 3), which lorasmith does not draw" if foreign else "unknown"
    family = FAMILIES[facts.family].title if facts.family else other
    lines = {
        "File": f"{lora.path} ({lora.path.stat().st_size / 2**20:.1f} MiB, "
        f"{', '.join(facts.dtypes)})",
        "Name": data.get("ss_output_name") or data.get("modelspec.title", ""),
        "Tag": data.get("modelspec.trigger_phrase", ""),
        "Family": f"{family} (by its {facts.family_source})" if facts.family_source else family,
        "Kind": f"{', '.join(facts.kinds)}, in the naming of {' and '.join(facts.key_formats)}",
        "Layers": f"{total.layers}, {total.parameters:,} parameters, rank {_listed(total.ranks)}, "
        f"alpha {_listed(total.alphas)}",
        "Norm": f"{total.norm:.4g}, largest layer {total.largest_norm:.4g}",
    }
    return Text("\n".join(f"{key:<8}{_shown(value)}" for key, value in lines.items() if value))


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
    for key in sorted(data):
        value = _shown(data[key])
        if len(value) > _LONGEST:
            value = f"{value[:_LONGEST]}... ({len(value)} characters)"
        table.add_row(Text(_shown(key)), Text(value))
    return table


def _shown(text: str) -> str:
    """Return text that a terminal cannot be steered with."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _listed(numbers: Any) -> str:
    """Return 8, or 4-16 for many different ones."""
    shown = [f"{number:g}" for number in numbers]
    return ", ".join(shown) if len(shown) <= 3 else f"{shown[0]}-{shown[-1]}"
