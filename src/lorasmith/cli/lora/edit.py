"""``lorasmith lora convert|merge|resize|extract``: LoRA files from others."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lorasmith.cli.lora.options import (
    Base,
    Energy,
    File,
    Files,
    IgnoreUnknown,
    Out,
    Precision,
    Rank,
    open_model,
    open_optional_model,
    parse_weighted_lora,
)  # fmt: skip
from lorasmith.cli.options.foreign import ExtractCommand, MergeCommand, ResizeCommand
from lorasmith.cli.output import print_line
from lorasmith.core.text.console import open_console

if TYPE_CHECKING:
    from lorasmith.adapters.tools.file_operations import WriteResult

_EXAMPLES = 5


def register(group: typer.Typer) -> None:
    """Add the commands to ``lorasmith lora``."""
    group.command("convert")(convert)
    group.command("merge", cls=MergeCommand)(merge)
    group.command("resize", cls=ResizeCommand)(resize)
    group.command("extract", cls=ExtractCommand)(extract)


def _check_family(name: str | None) -> str | None:
    from lorasmith.registries import MODEL_FAMILIES

    return None if name is None else MODEL_FAMILIES.check(name)


def convert(
    file: File,
    out: Annotated[Path, typer.Argument(help="The new file; must not exist.", show_default=False)],
    to: Annotated[
        Literal["kohya", "diffusers"],
        typer.Option(help="kohya: for A1111, ComfyUI and most programs. diffusers: for diffusers."),
    ] = "kohya",
    family: Annotated[
        str | None,
        typer.Option(
            callback=_check_family,
            help="The model family, if the file does not say it: sd1, sd2, sdxl, sdxl-refiner.",
            show_default=False,
        ),
    ] = None,
    fold_alpha: Annotated[
        bool,
        typer.Option(
            help="Multiply alpha / rank into the factors, for programs that do not read the "
            "alphas in diffusers' metadata."
        ),
    ] = False,
    ignore_unknown: IgnoreUnknown = False,
) -> None:
    """Write a LoRA file in another key format; its weights stay as they are.

    Example: `lorasmith lora convert loras/inkmono.safetensors inkmono-diffusers.safetensors --to diffusers`
    """  # noqa: E501 (one command, one line)
    from lorasmith.adapters.tools.file_operations import convert_lora

    written = convert_lora(file, out, to, family, fold_alpha, ignore_unknown)
    print_line(f"{_describe(written)}, in the key format of {to}")


def merge(
    files: Files,
    out: Out = ...,  # type: ignore[assignment]
    rank: Rank = None,
    base: Base = None,
    precision: Precision = "fp16",
    ignore_unknown: IgnoreUnknown = False,
) -> None:
    """Add LoRAs into one: exactly, or truncated to a rank; the energy that is kept is printed.

    Example: `lorasmith lora merge loras/inkmono.safetensors:0.7 loras/rank4.safetensors:0.3 --out loras/sum.safetensors`
    """  # noqa: E501
    terms = [parse_weighted_lora(text) for text in files]
    from lorasmith.adapters.tools.file_operations import merge_loras

    with open_console(stderr=True).status("merging"):
        written = merge_loras(
            terms, out, rank, open_optional_model(base), precision, ignore_unknown
        )
    energy = "" if rank is None else f", {_describe_energy(written)}"
    count = f"{len(terms)} LoRA{'' if len(terms) == 1 else 's'}"
    print_line(f"{_describe(written)}, the sum of {count}{energy}")


def resize(
    file: File,
    out: Out = ...,  # type: ignore[assignment]
    rank: Rank = None,
    energy: Energy = None,
    base: Base = None,
    precision: Precision = "fp16",
    ignore_unknown: IgnoreUnknown = False,
) -> None:
    """Write a LoRA with lower ranks; LoHa, LoKr and the like become LoRA.

    Example: `lorasmith lora resize loras/inkmono.safetensors --energy 0.95 --out loras/small.safetensors`
    """  # noqa: E501
    from lorasmith.adapters.tools.file_operations import resize_lora

    with open_console(stderr=True).status("resizing"):
        written = resize_lora(
            file, out, rank, energy, open_optional_model(base), precision, ignore_unknown
        )
    print_line(f"{_describe(written)}, {_describe_energy(written)}")


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
    from lorasmith.adapters.tools.file_operations import extract_lora

    with open_console(stderr=True).status("opening the models"):
        models = open_model(tuned), open_model(base)
    with open_console(stderr=True).status("extracting"):
        written, extraction = extract_lora(*models, out, rank, energy, precision)
    print_line(f"{_describe(written)}, {_describe_energy(written)}")
    if extraction.not_extracted:
        first = ", ".join(extraction.not_extracted[:_EXAMPLES])
        count = len(extraction.not_extracted)
        print_line(f"left out: {count} tensors that no LoRA can hold, first {first}")
    if extraction.only_rounding:
        print_line(
            f"left out: {extraction.only_rounding} layers that differ by rounding between number "
            "formats only"
        )


def _describe(written: "WriteResult") -> str:
    ranks = [f"{rank}" for rank in written.ranks]
    shown = ", ".join(ranks) if len(ranks) <= 3 else f"{ranks[0]}-{ranks[-1]}"
    return f"{written.path}: {written.layers} layers, rank {shown}"


def _describe_energy(written: "WriteResult") -> str:
    return f"{100 * written.energy.share:.2f}% of the energy kept"
