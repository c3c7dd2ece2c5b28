"""``lorasmith model convert``: between a folder and a single file."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from lorasmith.cli.download import Download
from lorasmith.cli.output import print_line
from lorasmith.core.errors import ConfigError
from lorasmith.core.files import check_not_existing, ensure_writable_folder
from lorasmith.core.safetensors_header import PICKLE_SUFFIXES
from lorasmith.core.text.console import open_console

SINGLE = ".safetensors"
EMBEDDED_NAME = "embedded"


Source = Annotated[
    str,
    typer.Argument(
        metavar="IN",
        help="A diffusers folder, a .safetensors file with a full model, a Hugging Face id, "
        "or `embedded`.",
    ),
]
Target = Annotated[
    Path,
    typer.Argument(help="NAME.safetensors writes a single file, anything else a diffusers folder."),
]
Precision = Annotated[
    Literal["keep", "fp32", "fp16", "bf16"],
    typer.Option(help="Number format of all weights; keep leaves each as it is."),
]
Prediction = Annotated[
    Literal["epsilon", "v_prediction", "sample"] | None,
    typer.Option(
        help="What the model predicts, where its file does not say or is wrong.",
        show_default="as the file says, else measured",
    ),
]
IgnoreUnknown = Annotated[
    bool,
    typer.Option(
        help="Leave out tensors of a single file that belong to no part of the model, and list "
        "them."
    ),
]


def convert(
    model: Source,
    out: Target,
    precision: Precision = "keep",
    prediction: Prediction = None,
    download: Download = False,
    ignore_unknown: IgnoreUnknown = False,
) -> None:
    """Turn a diffusers folder into a single file in the original naming, or the other way round.

    Weights stay the same to the last bit unless `--precision` is given. What no image depends on
    (averages beside the weights, the noise schedule, a safety checker) is left out and listed.

    Example: `lorasmith model convert models/photo.safetensors models/photo`

    Example: `lorasmith model convert models/photo photo-fp16.safetensors --precision fp16`
    """
    target = _check_target(out.expanduser())
    with open_console(stderr=True).status("opening the model"):
        from lorasmith.core.device import compute_dtype
        from lorasmith.models.files.convert import read_contents, save_folder, save_single_file
        from lorasmith.models.files.hub import download_model
        from lorasmith.models.files.open import open_source

        if download:
            download_model(model)
        source = open_source(None if model == EMBEDDED_NAME else model)
        contents = read_contents(source, prediction, ignore_unknown)
    with open_console(stderr=True).status("converting"):
        dtype = None if precision == "keep" else compute_dtype(precision)
        single = target.suffix.lower() == SINGLE
        ensure_writable_folder(target.parent)
        (save_single_file if single else save_folder)(contents, target, dtype)
    kind = "single file" if single else "folder"
    print_line(f"{target}: {contents.variant.title} as a {kind}")
    for line in (
        *_left_out(source.unused, "no image depends on it"),
        *_left_out(contents.unknown, "it belongs to no part of the model"),
    ):
        print_line(line)


def _check_target(target: Path) -> Path:
    """Return a target, refusing pickles and what exists."""
    if target.suffix.lower() in PICKLE_SUFFIXES:
        raise ConfigError(
            f"{target}: pickled files are not written; end the name in {SINGLE}, or name a folder"
        )
    check_not_existing(target)
    return target


def _left_out(names: tuple[str, ...], reason: str) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return [f"left out, as {reason}: {', '.join(names[:3])}{more}"]
