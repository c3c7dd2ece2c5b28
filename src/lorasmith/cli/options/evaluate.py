"""The options of ``lorasmith evaluate``."""

from pathlib import Path
from typing import Annotated

import typer

from lorasmith.cli.options.common import Precision as PrecisionName

Targets = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN|FILE...",
        help="Folders of runs, LoRA files, or names in loras/.",
        show_default=False,
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        help="Captioned images to compare with: a folder or a packed tar. Those with a trigger "
        "word (tag) in their caption belong to it.",
        show_default="the run's validation images",
    ),
]
OutFolder = Annotated[
    Path | None,
    typer.Option(help="Folder for the results.", show_default="the run's, or `evaluation`"),
]
NumSeeds = Annotated[
    int, typer.Option(min=2, help="Images of each kind of prompt, each from its own seed.")
]
FirstSeed = Annotated[int, typer.Option(min=0, help="The first seed.")]
MaxLeak = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        help="Of several files of one tag, evaluate the one with the lowest validation loss "
        "among those whose leak ratio in predictions is at most this.",
        show_default="any",
    ),
]
ClassWord = Annotated[
    str | None,
    typer.Option(
        "--class", help="What the images show without the tag.", show_default="the file's"
    ),
]
FeatureExtractor = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the network that compares images: CLIP as transformers saves it, or "
        "Inception v3.",
        show_default="the embedded image encoder",
    ),
]
ModelOfRun = Annotated[
    Path | None,
    typer.Option(
        "-m",
        "--model",
        help="Folder, .safetensors file or cached id.",
        show_default="the run's",
    ),
]
AllowMismatch = Annotated[
    bool,
    typer.Option(
        help="Use LoRAs that fit only in part or have tensors that are not understood; what is "
        "left out is listed as a warning."
    ),
]
GuidanceScale = Annotated[
    float,
    typer.Option("--guidance", "--guidance-scale", "--cfg-scale", help="CFG scale."),
]
Size = Annotated[
    str | None, typer.Option(help="Size, such as 512x512.", show_default="the model's")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images generated at once.")]
Precision = Annotated[PrecisionName, typer.Option(help="Number format.")]
