"""``lorasmith generate``: images from a prompt."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from lorasmith.cli.download import Download, fetch
from lorasmith.core.errors import ConfigError
from lorasmith.core.files import ensure_writable_folder
from lorasmith.inference.loras.find import (
    find_lora,
    list_lora_files,
    parse_lora_option,
    resolve_lora,
)
from lorasmith.inference.options import (
    RANDOM_SEED,
    SamplingOptions,
    check_num_images,
    parse_optional_size,
    resolve_seed,
)
from lorasmith.inference.prompts.parser import LoraRequest, check_negative_prompt, parse_prompt
from lorasmith.loops.progress import progress_bar

if TYPE_CHECKING:
    from lorasmith.inference.init_image import InitImage
    from lorasmith.inference.pipeline import Pipeline

_TAGS_SHOWN = 12


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("generate")(generate)


def generate(
    prompt: Annotated[
        str, typer.Argument(help="What to generate; `<lora:NAME:WEIGHT>` uses a LoRA.")
    ],
    model: Annotated[
        Path | None,
        typer.Option(
            "-m", "--model", help="Folder, .safetensors file or cached id.", show_default="embedded"
        ),
    ] = None,
    negative: Annotated[
        str,
        typer.Option("--negative", "--negative-prompt", help="What the images should not show."),
    ] = "",
    steps: Annotated[
        int, typer.Option("--steps", "--num-inference-steps", help="Denoising steps.")
    ] = 20,
    guidance: Annotated[
        float,
        typer.Option(
            "--guidance",
            "--guidance-scale",
            "--cfg-scale",
            help="CFG scale: how strictly to follow the prompt.",
        ),
    ] = 5.0,
    seed: Annotated[int, typer.Option(help="Image k has the seed + k; -1 is a random one.")] = 0,
    n: Annotated[int, typer.Option("-n", "--num-images", help="Number of images.")] = 4,
    size: Annotated[
        str | None,
        typer.Option(
            help="Width and height in pixels, such as 128x128.",
            show_default="the model's own, or that of --image",
        ),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(help="An image to start from instead of noise; the SDXL refiner needs one."),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(help="For inpainting models: the image is inpainted where this is white."),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            help="Share of the steps that are taken on --image: 1 leaves nothing of it.",
            show_default="0.75; 1 under --mask, 0.3 for the refiner",
        ),
    ] = None,
    sampler: Annotated[
        str,
        typer.Option(
            help="ddim, ddpm, dpmpp_2m, dpmpp_2m_karras, dpmpp_2m_sde, dpmpp_2m_sde_karras, euler, "
            "euler_a, heun or unipc; A1111's and diffusers' names are accepted."
        ),
    ] = "ddim",
    clip_skip: Annotated[
        int, typer.Option(help="Text encoder layer, counted from the last, which is 1.")
    ] = 1,
    guidance_rescale: Annotated[
        float, typer.Option(help="0 to 1: takes back the contrast that guidance adds.")
    ] = 0.0,
    out: Annotated[
        Path, typer.Option(help="Folder for 0000.png, 0001.png, ... and grid.png.")
    ] = Path("outputs"),
    lora: Annotated[
        list[str] | None,
        typer.Option(help="NAME:WEIGHT or path:WEIGHT, for all images. May be repeated."),
    ] = None,
    lora_dir: Annotated[
        Path,
        typer.Option(help="Where names of LoRAs are looked up, also in the runs' folders in it."),
    ] = Path("loras"),
    library: Annotated[
        Path | None,
        typer.Option(help="A folder of LoRAs, each activated where its tag is in the prompt."),
    ] = None,
    gate: Annotated[
        bool,
        typer.Option(
            "--gate/--no-gate",
            help="Whether requested LoRAs wait for their tags; a library's always do.",
        ),
    ] = True,
    allow_mismatch: Annotated[
        bool,
        typer.Option(
            help="Use LoRAs that fit only in part, or say that they are for another family or kind "
            "of prediction; what does not fit is listed as a warning."
        ),
    ] = False,
    batch_size: Annotated[
        int, typer.Option(help="Images generated at once: speed and memory, same images.")
    ] = 4,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    precision: Annotated[
        Literal["fp32", "fp16", "bf16"],
        typer.Option(help="What the model computes in."),
    ] = "fp32",
    latents: Annotated[
        bool, typer.Option("--latents", help="Write latents.safetensors instead of images.")
    ] = False,
    safety_checker: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="The folder safety_checker of a diffusers model; what it refuses becomes black.",
            show_default="nothing is checked",
        ),
    ] = None,
    download: Download = False,
) -> None:
    """Generate images from a prompt.

    Writes `0000.png`, `0001.png`, ... and `grid.png` into the folder `--out`, replacing files of
    those names. Each PNG says in its metadata how it was made, as A1111 writes it.

    Example: `lorasmith generate "a red apple, noto style" -n 4 --seed 7 --out apples`

    Example: `lorasmith generate "a dog face, inkmono style" --lora inkmono:0.8 --out inked`

    Example: `lorasmith generate "a dog face, inkmono style" --library loras --out library`
    """
    width, height = parse_optional_size(size)
    options = SamplingOptions(
        negative_prompt=negative, num_inference_steps=steps, guidance_scale=guidance,
        width=width, height=height, sampler=sampler, clip_skip=clip_skip,
        guidance_rescale=guidance_rescale, batch_size=batch_size, gate=gate, strength=strength,
    )  # fmt: skip
    loras = [parse_lora_option(text) for text in lora or []]
    first_seed = resolve_seed(seed)
    check_num_images(n)
    _check(prompt, options, loras, lora_dir)
    if latents and safety_checker is not None:
        raise ConfigError("--safety-checker needs images, and --latents makes none; drop one")
    if library is not None:
        list_lora_files(library.expanduser())
    init_image = _load_init_image(image, mask, strength)
    folder = ensure_writable_folder(out.expanduser())
    if download:
        fetch(model)
    with Console(stderr=True).status("opening the model"):
        from lorasmith.inference.image_jobs import make_image_jobs
        from lorasmith.inference.init_latents import LatentPreparer
        from lorasmith.inference.outputs.save import save_images, save_latents

        pipe = _open(model, device, precision, lora_dir, safety_checker)
        pipe.strict = not allow_mismatch
        for request in loras:
            pipe.load_lora(
                request.name,
                request.weight,
                unet_weight=request.unet_weight,
                lbw=request.lbw,
                start=request.start,
                stop=request.stop,
            )
        if library is not None:
            pipe.load_library(library)
    jobs = make_image_jobs([prompt], first_seed, n, init_image)
    with progress_bar(
        "drawing", total=n * LatentPreparer(pipe.model, options, jobs).num_steps
    ) as advance:
        if latents:
            file = save_latents(pipe.generate_latents(jobs, options, advance), jobs, folder)
            result = f"latents of {n} {'image' if n == 1 else 'images'} in {file}"
        else:
            save_images(pipe.generate(jobs, options, advance), folder)
            result = f"{n} {'image' if n == 1 else 'images'} and grid.png in {folder}"
    if library is not None:
        typer.echo(_describe_active_tags(pipe, jobs[0].prompt.text))
    if seed == RANDOM_SEED:
        typer.echo(f"seed: {first_seed}")
    typer.echo(result)


def _check(
    prompt: str, options: SamplingOptions, loras: Sequence[LoraRequest], lora_dir: Path
) -> None:
    """Check the prompts and LoRAs before the model is loaded, which takes seconds."""
    check_negative_prompt(options.negative_prompt)
    for request in parse_prompt(prompt).loras:
        find_lora(request.name, lora_dir.expanduser())
    for request in loras:
        resolve_lora(request.name, lora_dir.expanduser())


def _load_init_image(
    image: Path | None, mask: Path | None, strength: float | None
) -> "InitImage | None":
    """Read the image to start from and its mask; None without an image."""
    if strength is not None and image is None:
        raise ConfigError("--strength goes with --image FILE")
    if mask is not None and image is None:
        raise ConfigError("--mask goes with --image FILE")
    if image is None:
        return None
    from lorasmith.inference.init_image import InitImage

    return InitImage.load(image, mask)


def _describe_active_tags(pipe: "Pipeline", text: str) -> str:
    """Say which of a library's tags are in a prompt."""
    active, tags = pipe.find_library_tags(text), pipe.library_tags
    if active:
        return f"activated: {', '.join(active)}"
    shown = ", ".join(tags[:_TAGS_SHOWN]) + (", ..." if len(tags) > _TAGS_SHOWN else "")
    return f"no LoRA of the library is activated; its tags are {shown}"


def _open(
    model: Path | None,
    device: str,
    precision: Literal["fp32", "fp16", "bf16"],
    lora_dir: Path,
    safety_checker: Path | None,
) -> "Pipeline":
    from lorasmith.core.device import compute_dtype
    from lorasmith.inference.pipeline import load_pipeline

    return load_pipeline(model, device, compute_dtype(precision), lora_dir, safety_checker)
