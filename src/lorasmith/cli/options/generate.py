"""The options of ``lorasmith generate``."""

from pathlib import Path
from typing import Annotated

import typer

from lorasmith.cli.options.common import Precision as PrecisionName

Prompt = Annotated[str, typer.Argument(help="What to generate; `<lora:NAME:WEIGHT>` uses a LoRA.")]
NegativePrompt = Annotated[
    str,
    typer.Option("--negative", "--negative-prompt", help="What the images should not show."),
]
GuidanceScale = Annotated[
    float,
    typer.Option(
        "--guidance",
        "--guidance-scale",
        "--cfg-scale",
        help="CFG scale: how strictly to follow the prompt.",
    ),
]
Seed = Annotated[int, typer.Option(help="Image k has the seed + k; -1 is a random one.")]
NumImages = Annotated[int, typer.Option("-n", "--num-images", help="Number of images.")]
Size = Annotated[
    str | None,
    typer.Option(
        help="Width and height in pixels, such as 128x128.",
        show_default="the model's own, or that of --image",
    ),
]
InitImage = Annotated[
    Path | None,
    typer.Option(help="An image to start from instead of noise; the SDXL refiner needs one."),
]
Mask = Annotated[
    Path | None,
    typer.Option(help="For inpainting models: the image is inpainted where this is white."),
]
Strength = Annotated[
    float | None,
    typer.Option(
        help="Share of the steps that are taken on --image: with 1 nothing of it is left.",
        show_default="0.75; 1 under --mask, 0.3 for the refiner",
    ),
]
Sampler = Annotated[
    str,
    typer.Option(
        help="ddim, ddpm, dpmpp_2m, dpmpp_2m_karras, dpmpp_2m_sde, dpmpp_2m_sde_karras, euler, "
        "euler_a, heun or unipc; A1111's and diffusers' names are accepted."
    ),
]
ClipSkip = Annotated[
    int, typer.Option(help="Text encoder layer, counted from the last, which is 1.")
]
GuidanceRescale = Annotated[
    float, typer.Option(help="0 to 1: how much of the contrast that guidance adds is removed.")
]
OutFolder = Annotated[Path, typer.Option(help="Folder for 0000.png, 0001.png, ... and grid.png.")]
Loras = Annotated[
    list[str] | None,
    typer.Option(help="NAME:WEIGHT or path:WEIGHT, for all images. May be repeated."),
]
LoraDir = Annotated[
    Path,
    typer.Option(help="Where names of LoRAs are looked up, also in the runs' folders in it."),
]
Library = Annotated[
    Path | None,
    typer.Option(help="A folder of LoRAs, each activated where its tag is in the prompt."),
]
Gate = Annotated[
    bool,
    typer.Option(
        "--gate/--no-gate",
        help="Whether requested LoRAs wait for their tags; a library's always do.",
    ),
]
AllowMismatch = Annotated[
    bool,
    typer.Option(
        help="Use LoRAs that fit only in part, have tensors that are not understood, or say that "
        "they are for another family or kind of prediction; what is left out is listed as a "
        "warning."
    ),
]
BatchSize = Annotated[
    int, typer.Option(help="Images generated at once: speed and memory, same images.")
]
Precision = Annotated[
    PrecisionName,
    typer.Option(help="What the model computes in."),
]
Latents = Annotated[
    bool, typer.Option("--latents", help="Write latents.safetensors instead of images.")
]
SafetyChecker = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="The folder safety_checker of a diffusers model; what it refuses becomes black.",
        show_default="nothing is checked",
    ),
]
