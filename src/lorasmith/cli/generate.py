"""``lorasmith generate``: images from a prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lorasmith.cli.download import Download, fetch
from lorasmith.cli.options import generate as options
from lorasmith.cli.options.common import Device, InferenceSteps, ModelPath, Precision
from lorasmith.cli.options.foreign import GenerateCommand
from lorasmith.cli.output import print_line
from lorasmith.core.errors import ConfigError
from lorasmith.core.files import ensure_writable_folder
from lorasmith.core.text.console import open_console
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
from lorasmith.inference.prompts.parse_prompt import (
    LoraRequest,
    check_negative_prompt,
    parse_prompt,
)
from lorasmith.loops.progress import progress_bar
from lorasmith.models.text.prompt_spans import section_texts

if TYPE_CHECKING:
    from lorasmith.inference.init_image import InitImage
    from lorasmith.inference.pipeline import Pipeline

_TAGS_SHOWN = 12

HELP = """Generate images from a prompt.

Writes `0000.png`, `0001.png`, ... and `grid.png` into the folder `--out`, replacing files of
those names. Each PNG says in its metadata how it was made, as A1111 writes it.

Example: `lorasmith generate "a red apple, noto style" -n 4 --seed 7 --out apples`

Example: `lorasmith generate "a dog face, inkmono style" --lora inkmono:0.8 --out inked`

Example: `lorasmith generate "a dog face, inkmono style" --library loras --out library`
"""
"""The command's help."""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("generate", cls=GenerateCommand, help=HELP)(generate)


def generate(
    prompt: options.Prompt,
    model: ModelPath = None,
    negative: options.NegativePrompt = "",
    steps: InferenceSteps = 20,
    guidance: options.GuidanceScale = 5.0,
    seed: options.Seed = 0,
    n: options.NumImages = 4,
    size: options.Size = None,
    image: options.InitImage = None,
    mask: options.Mask = None,
    strength: options.Strength = None,
    sampler: options.Sampler = "ddim",
    clip_skip: options.ClipSkip = 1,
    guidance_rescale: options.GuidanceRescale = 0.0,
    out: options.OutFolder = Path("outputs"),
    lora: options.Loras = None,
    lora_dir: options.LoraDir = Path("loras"),
    library: options.Library = None,
    gate: options.Gate = True,
    allow_mismatch: options.AllowMismatch = False,
    batch_size: options.BatchSize = 4,
    device: Device = "auto",
    precision: options.Precision = "fp32",
    latents: options.Latents = False,
    safety_checker: options.SafetyChecker = None,
    download: Download = False,
) -> None:
    """Generate images from a prompt; `HELP` says what is written."""
    width, height = parse_optional_size(size)
    sampling = SamplingOptions(
        negative_prompt=negative, num_inference_steps=steps, guidance_scale=guidance,
        width=width, height=height, sampler=sampler, clip_skip=clip_skip,
        guidance_rescale=guidance_rescale, batch_size=batch_size, gate=gate, strength=strength,
    )  # fmt: skip
    loras = _LoraSelection.parse(lora or [], lora_dir, library, allow_mismatch)
    loras.check(prompt, negative)
    init_image = _load_init_image(image, mask, strength)
    outputs = _Outputs.check(out, n, seed, latents, safety_checker)
    if download:
        fetch(model)
    with open_console(stderr=True).status("opening the model"):
        pipe = _open(model, device, precision, lora_dir, safety_checker)
        loras.load_into(pipe)
    result = _write_images(pipe, prompt, init_image, sampling, outputs)
    if library is not None:
        print_line(_describe_active_tags(pipe, section_texts(parse_prompt(prompt).weighted)))
    if seed == RANDOM_SEED:
        print_line(f"seed: {outputs.first_seed}")
    print_line(result)


@dataclass(frozen=True)
class _Outputs:
    """Which images are written, and where."""

    folder: Path
    num_images: int
    first_seed: int
    as_latents: bool
    """Whether latents are written instead of images."""

    @classmethod
    def check(
        cls, folder: Path, num_images: int, seed: int, as_latents: bool, safety_checker: Path | None
    ) -> "_Outputs":
        """Check the options, and that the folder can be written.

        Raises:
            ConfigError: one is impossible, or two do not go together.
            OutputError: the folder cannot be written.
        """
        if as_latents and safety_checker is not None:
            raise ConfigError("--safety-checker needs images, and --latents makes none; drop one")
        check_num_images(num_images)
        return cls(
            ensure_writable_folder(folder.expanduser()), num_images, resolve_seed(seed), as_latents
        )


@dataclass(frozen=True)
class _LoraSelection:
    """The LoRAs of the options, checked before the model is loaded, which takes seconds."""

    requests: Sequence[LoraRequest]
    """Those for all images."""
    folder: Path
    """Where names are looked up."""
    library: Path | None
    """The folder of LoRAs that are activated by their tags."""
    allows_mismatch: bool
    """Whether LoRAs that fit only in part are used."""

    @classmethod
    def parse(
        cls, texts: Sequence[str], folder: Path, library: Path | None, allows_mismatch: bool
    ) -> "_LoraSelection":
        """Parse NAME:WEIGHT texts."""
        requests = [parse_lora_option(text) for text in texts]
        return cls(requests, folder.expanduser(), library, allows_mismatch)

    def check(self, prompt: str, negative_prompt: str) -> None:
        """Check that the LoRAs of a prompt, of the options and of the library exist.

        Raises:
            ConfigError: the prompt is malformed, or the negative prompt has a LoRA.
            WeightsError: a LoRA is missing.
        """
        check_negative_prompt(negative_prompt)
        for request in parse_prompt(prompt).loras:
            find_lora(request.name, self.folder)
        for request in self.requests:
            resolve_lora(request.name, self.folder)
        if self.library is not None:
            list_lora_files(self.library.expanduser())

    def load_into(self, pipe: "Pipeline") -> None:
        """Load the LoRAs for all images, and those of the library."""
        pipe.strict = not self.allows_mismatch
        for request in self.requests:
            pipe.load_lora(
                request.name,
                request.weight,
                unet_weight=request.unet_weight,
                lbw=request.lbw,
                start=request.start,
                stop=request.stop,
            )
        if self.library is not None:
            pipe.load_library(self.library)


def _write_images(
    pipe: "Pipeline",
    prompt: str,
    init_image: "InitImage | None",
    sampling: SamplingOptions,
    outputs: _Outputs,
) -> str:
    """Generate images, or their latents, into a folder; return a sentence about them."""
    from lorasmith.inference.image_jobs import make_image_jobs
    from lorasmith.inference.init_latents import LatentPreparer
    from lorasmith.inference.outputs.save import save_images, save_latents

    count, folder = outputs.num_images, outputs.folder
    jobs = make_image_jobs([prompt], outputs.first_seed, count, init_image)
    total = count * LatentPreparer(pipe.model, sampling, jobs).num_steps
    images = f"{count} {'image' if count == 1 else 'images'}"
    with progress_bar("generating", total=total) as advance:
        if outputs.as_latents:
            file = save_latents(pipe.generate_latents(jobs, sampling, advance), jobs, folder)
            return f"latents of {images} in {file}"
        save_images(pipe.generate(jobs, sampling, advance), folder)
        return f"{images} and grid.png in {folder}"


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


def _describe_active_tags(pipe: "Pipeline", texts: Sequence[str]) -> str:
    """Say which of a library's tags are in a prompt."""
    active, tags = pipe.find_library_tags(*texts), pipe.library_tags
    if active:
        return f"activated: {', '.join(active)}"
    shown = ", ".join(tags[:_TAGS_SHOWN]) + (", ..." if len(tags) > _TAGS_SHOWN else "")
    return f"no LoRA of the library is activated; its tags are {shown}"


def _open(
    model: Path | None,
    device: str,
    precision: Precision,
    lora_dir: Path,
    safety_checker: Path | None,
) -> "Pipeline":
    from lorasmith.core.device import compute_dtype
    from lorasmith.inference.pipeline import load_pipeline

    return load_pipeline(model, device, compute_dtype(precision), lora_dir, safety_checker)
