"""``lorasmith lora fuse``: a model with LoRAs merged into its weights."""

from pathlib import Path
from typing import Annotated

import typer

from lorasmith.cli.lora.options import EMBEDDED, Files, Precision, parse_weighted_lora
from lorasmith.cli.options.foreign import FuseCommand
from lorasmith.cli.output import print_line
from lorasmith.core.errors import ConfigError
from lorasmith.core.text.console import open_console

ModelName = Annotated[
    str,
    typer.Argument(
        help="A diffusers folder, a .safetensors file with a full model, a Hugging Face id in "
        "the local cache, or `embedded` for the model that ships with lorasmith.",
        show_default=False,
    ),
]
OutFolder = Annotated[Path, typer.Option(help="The new model folder; must not exist.")]
AllowMismatch = Annotated[
    bool,
    typer.Option(
        help="Fuse LoRAs that fit only in part, have tensors that are not understood, or say that "
        "they are for another family or kind of prediction; what is left out is listed as a "
        "warning."
    ),
]


def register(group: typer.Typer) -> None:
    """Add the command to ``lorasmith lora``."""
    group.command("fuse", cls=FuseCommand)(fuse)


def fuse(
    model: ModelName,
    files: Files,
    out: OutFolder = ...,  # type: ignore[assignment]
    precision: Precision = "fp32",
    allow_mismatch: AllowMismatch = False,
) -> None:
    """Fuse LoRAs into a model and save it as a new diffusers folder.

    It generates what the model generates with these LoRAs, of any kind. Parts that no LoRA changes
    are copied as they are; `--precision` is about the others. If anything fails, nothing is
    written.

    Example: `lorasmith lora fuse embedded loras/inkmono.safetensors:0.8 --out models/inkmono`
    """
    weighted_files = [parse_weighted_lora(file) for file in files]
    with open_console(stderr=True).status("opening model and LoRAs"):
        from lorasmith.adapters.tools.fuse_into_model import fuse_into_model
        from lorasmith.core.device import compute_dtype
        from lorasmith.core.files import check_not_existing
        from lorasmith.core.safetensors_header import PICKLE_SUFFIXES
        from lorasmith.models.files.open import resolve_model_path
        from lorasmith.models.files.save import save_modified_model
        from lorasmith.models.load import load_model

        folder = resolve_model_path(None if model == EMBEDDED else model)
        target = out.expanduser()
        if target.suffix.lower() in (".safetensors", *PICKLE_SUFFIXES):
            raise ConfigError(
                f"--out {target}: a fused model is a folder; name one, and make a single file of "
                "it with `lorasmith model convert`"
            )
        check_not_existing(target)
        loras = [lora.load(ignore_unknown=allow_mismatch) for lora in weighted_files]
        opened = load_model(folder)
    with open_console(stderr=True).status("fusing and saving"):
        changed = fuse_into_model(opened, loras, compute_dtype(precision), not allow_mismatch)
        save_modified_model(opened, changed, target, compute_dtype(precision))
    count = f"{len(loras)} LoRA{'' if len(loras) == 1 else 's'}"
    print_line(f"{target}: {count} fused into {', '.join(sorted(changed))}")
