"""Arguments that commands about LoRA files have in common."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lorasmith.core.errors import ConfigError

if TYPE_CHECKING:
    from lorasmith.adapters.tools.file_operations import WeightedLora
    from lorasmith.models.model import Model

EMBEDDED = "embedded"
"""The word for the model that ships with the package."""

_LBW = ":lbw="

File = Annotated[Path, typer.Argument(help="A LoRA file, in any key format.", show_default=False)]
Files = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE[:WEIGHT[:lbw=BLOCKS]]...",
        help="LoRA files; weight 1 if left out. BLOCKS are weights by block: a preset such as "
        "MIDD, or 12, 17, 20 or 26 numbers separated by commas.",
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
    Literal["fp32", "fp16", "bf16"], typer.Option(help="Number format of the file.")
]
IgnoreUnknown = Annotated[
    bool,
    typer.Option(
        help="Use the LoRA and leave out tensors and layers of the file that are not understood; "
        "a warning lists them."
    ),
]


def parse_weighted_lora(text: str) -> "WeightedLora":
    """Parse FILE:WEIGHT:lbw=BLOCKS.

    An existing file whose name ends in a colon and a number has precedence.

    Raises:
        ConfigError: the weight is not a number from -10 to 10.
    """
    from lorasmith.adapters.tools.file_operations import WeightedLora

    plain, _, blocks = text.partition(_LBW)
    return WeightedLora(*_path_and_weight(plain), blocks)


def open_model(name: str) -> "Model":
    """Open a model in float32 by its path or the word `embedded`."""

    from lorasmith.models.load import load_model

    return load_model(None if name == EMBEDDED else name)


def open_optional_model(name: str | None) -> "Model | None":
    return None if name is None else open_model(name)


def _path_and_weight(text: str) -> tuple[Path, float]:
    from lorasmith.inference.prompts.parse_prompt import check_weight

    full_path = Path(text).expanduser()
    name, colon, weight = text.rpartition(":")
    if not colon or full_path.is_file():
        return full_path, 1.0
    path = Path(name).expanduser()
    if not path.is_file() and not _is_number(weight):
        return full_path, 1.0  # C:\loras\ink.safetensors, which the error then names in full
    if not _is_number(weight):
        raise ConfigError(f"{text}: {weight!r} is not a number; write FILE or FILE:WEIGHT")
    return path, check_weight(text, weight)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
