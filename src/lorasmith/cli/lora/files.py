"""``lorasmith lora convert|merge|resize|extract|diff``: LoRA files from others."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorasmith.core.errors import ConfigError

if TYPE_CHECKING:
    from lorasmith.adapters.tools.diff import BlockDiff, LoraDiff
    from lorasmith.adapters.tools.operations import WeightedLora, WriteResult
    from lorasmith.models.load import Model

EMBEDDED = "embedded"
"""The word for the model that ships with the package."""

_FILE_WIDTH = 160
_EXAMPLES = 5
_LONGEST = 60
_LBW = ":lbw="

File = Annotated[Path, typer.Argument(help="A LoRA file, in any spelling.", show_default=False)]
Files = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE[:WEIGHT[:lbw=BLOCKS]]...",
        help="LoRA files; weight 1 if left out. BLOCKS are weights by block: a preset such as "
        "MIDD, or 12, 17, 20 or 26 numbers with commas.",
        show_default=False,
    ),
]
Out = Annotated[Path, typer.Option(help="The new LoRA file; must not exist.")]
Rank = Annotated[int | None, typer.Option(help="Largest rank of a layer.", show_default=False)]
Energy = Annotated[
    float | None,
    typer.Option(
        help="Share of each layer's energy (squared norm) to keep, such as 0.95; or --rank.",
        show_default=False,
    ),
]
Base = Annotated[
    str | None,
    typer.Option(help="The base model (or `embedded`), which DoRA needs.", show_default=False),
]
Precision = Annotated[
    Literal["fp32", "fp16", "bf16"], typer.Option(help="What numbers are stored in.")
]


def register(room: typer.Typer) -> None:
    """Add the commands to ``lorasmith lora``."""
    for command in (convert, merge, resize, extract, diff):
        room.command(command.__name__)(command)


def convert(
    file: File,
    out: Annotated[Path, typer.Argument(help="The new file; must not exist.", show_default=False)],
    to: Annotated[
        Literal["kohya", "diffusers"],
        typer.Option(help="kohya: for A1111, ComfyUI and most programs. diffusers: for diffusers."),
    ] = "kohya",
    family: Annotated[
        Literal["sd1", "sd2", "sdxl", "sdxl-refiner"] | None,
        typer.Option(help="The models it is for, if nothing in it tells.", show_default=False),
    ] = None,
    fold_alpha: Annotated[
        bool,
        typer.Option(
            help="Multiply alpha / rank into the factors, for programs that do not read the "
            "alphas in diffusers' metadata."
        ),
    ] = False,
) -> None:
    """Write a LoRA file in another program's naming; its numbers stay as they are.

    Example: `lorasmith lora convert loras/inkmono.safetensors inkmono-diffusers.safetensors --to diffusers`
    """  # noqa: E501 (one command, one line)
    from lorasmith.adapters.tools.operations import convert_lora

    written = convert_lora(file, out, to, family, fold_alpha)
    typer.echo(f"{_told(written)}, in {to} naming")


def merge(
    files: Files,
    out: Out = ...,  # type: ignore[assignment]
    rank: Rank = None,
    base: Base = None,
    precision: Precision = "fp16",
) -> None:
    """Add LoRAs up into one: exactly, or cut to a rank with the energy that it keeps printed.

    Example: `lorasmith lora merge loras/inkmono.safetensors:0.7 loras/rank4.safetensors:0.3 --out loras/sum.safetensors`
    """  # noqa: E501
    terms = [weighted(text) for text in files]
    from lorasmith.adapters.tools.operations import merge_loras

    with Console(stderr=True).status("merging"):
        written = merge_loras(terms, out, rank, _model(base), precision)
    told = "" if rank is None else f", {_energy(written)}"
    count = f"{len(terms)} LoRA{'' if len(terms) == 1 else 's'}"
    typer.echo(f"{_told(written)}, the sum of {count}{told}")


def resize(
    file: File,
    out: Out = ...,  # type: ignore[assignment]
    rank: Rank = None,
    energy: Energy = None,
    base: Base = None,
    precision: Precision = "fp16",
) -> None:
    """Write a LoRA with lower ranks; LoHa, LoKr and the like become LoRA.

    Example: `lorasmith lora resize loras/inkmono.safetensors --energy 0.95 --out loras/small.safetensors`
    """  # noqa: E501
    from lorasmith.adapters.tools.operations import resize_lora

    with Console(stderr=True).status("resizing"):
        written = resize_lora(file, out, rank, energy, _model(base), precision)
    typer.echo(f"{_told(written)}, {_energy(written)}")


def extract(
    tuned: Annotated[str, typer.Argument(help="The tuned model.", show_default=False)],
    base: Annotated[
        str,
        typer.Argument(help="The model it was tuned from, or `embedded`.", show_default=False),
    ],
    out: Out = ...,  # type: ignore[assignment]
    rank: Rank = None,
    energy: Energy = None,
    precision: Precision = "fp16",
) -> None:
    """Write the difference of two models as a LoRA.

    Example: `lorasmith lora extract models/merged path/to/model --rank 8 --out loras/taken.safetensors`
    """  # noqa: E501
    from lorasmith.adapters.tools.operations import extract_lora

    with Console(stderr=True).status("opening the models"):
        models = open_model(tuned), open_model(base)
    with Console(stderr=True).status("extracting"):
        written, found = extract_lora(*models, out, rank, energy, precision)
    typer.echo(f"{_told(written)}, {_energy(written)}")
    if found.not_extracted:
        first = ", ".join(found.not_extracted[:_EXAMPLES])
        typer.echo(
            f"left out: {len(found.not_extracted)} tensors that no LoRA can hold, first {first}"
        )


def diff(
    one: Annotated[Path, typer.Argument(help="A LoRA file.", show_default=False)],
    two: Annotated[Path, typer.Argument(help="Another.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Compare two LoRAs: how strong they are in each block, how far apart, and their metadata.

    A cosine of 1 is the same direction, 0 has nothing in common. Spelling and rank do not matter.

    Example: `lorasmith lora diff loras/inkmono.safetensors loras/rank4.safetensors`
    """
    from lorasmith.adapters.tools.operations import diff_loras

    found = diff_loras(one, two)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2, ensure_ascii=False))
        return
    console = Console()
    console = console if console.is_terminal else Console(width=_FILE_WIDTH)
    console.print(_table(found))
    for path, names in ((one, found.only_in_first), (two, found.only_in_second)):
        if names:
            more = ", ..." if len(names) > _EXAMPLES else ""
            told = f"only in {path}: {len(names)} layers, {', '.join(names[:_EXAMPLES])}{more}"
            console.print(Text(told))
    if found.metadata:
        console.print(_metadata(found))


def weighted(text: str) -> "WeightedLora":
    """Take FILE:WEIGHT:lbw=BLOCKS apart.

    A file whose own name ends in a colon and a number is meant first.

    Raises:
        ConfigError: the weight is not a number from -10 to 10.
    """
    from lorasmith.adapters.tools.operations import WeightedLora

    plain, _, blocks = text.partition(_LBW)
    return WeightedLora(*_path_and_weight(plain), blocks)


def open_model(name: str) -> "Model":
    """Open a model in float32 by its path or the word `embedded`."""
    from lorasmith.models.load import load_model

    return load_model(None if name == EMBEDDED else name)


def _model(name: str | None) -> "Model | None":
    return None if name is None else open_model(name)


def _path_and_weight(text: str) -> tuple[Path, float]:
    from lorasmith.inference.prompts.parser import check_weight

    whole = Path(text).expanduser()
    name, colon, weight = text.rpartition(":")
    if not colon or whole.is_file():
        return whole, 1.0
    path = Path(name).expanduser()
    if not path.is_file() and not _is_number(weight):
        return whole, 1.0  # C:\loras\ink.safetensors, which is then missed by its whole name
    if not _is_number(weight):
        raise ConfigError(f"{text}: {weight!r} is not a number; write FILE or FILE:WEIGHT")
    return path, check_weight(text, weight)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _told(written: "WriteResult") -> str:
    ranks = [f"{rank}" for rank in written.ranks]
    shown = ", ".join(ranks) if len(ranks) <= 3 else f"{ranks[0]}-{ranks[-1]}"
    return f"{written.path}: {written.layers} layers, rank {shown}"


def _energy(written: "WriteResult") -> str:
    return f"{100 * written.energy.share:.2f}% of the energy kept"


def _table(found: "LoraDiff") -> Table:
    table = Table("block", title="Blocks", title_justify="left")
    for column in ("layers", "norm of the first", "of the second", "of the difference", "cosine"):
        table.add_column(column, justify="right")
    for block in found.blocks:
        table.add_row(*_cells(block))
    table.add_section()
    table.add_row(*_cells(found.total))
    return table


def _cells(block: "BlockDiff") -> tuple[str, ...]:
    norms = (f"{norm:.4g}" for norm in (block.first_norm, block.second_norm, block.diff_norm))
    cosine = "" if block.cosine is None else f"{block.cosine:.4f}"
    return block.block, str(block.layers), *norms, cosine


def _metadata(found: "LoraDiff") -> Table:
    table = Table("key", "first", "second", title="Metadata", title_justify="left")
    for key, values in found.metadata.items():
        table.add_row(*(Text(shown(value)) for value in (key, *values)))
    return table


def shown(text: str | None) -> str:
    """Return text that a terminal cannot be steered with, cut to what fits in a table."""
    plain = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text or ""
    )
    return plain if len(plain) <= _LONGEST else f"{plain[:_LONGEST]}..."
