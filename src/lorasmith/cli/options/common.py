"""Options that several commands have."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Precision = Literal["fp32", "fp16", "bf16"]

ModelPath = Annotated[
    Path | None,
    typer.Option(
        "-m", "--model", help="Folder, .safetensors file or cached id.", show_default="embedded"
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
InferenceSteps = Annotated[
    int, typer.Option("--steps", "--num-inference-steps", help="Denoising steps.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
