"""Writing images with their generation parameters."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lorasmith.core.errors import OutputError
from lorasmith.core.files import atomic_write
from lorasmith.core.safetensors_io import save_tensors
from lorasmith.inference.image_jobs import ImageJob
from lorasmith.inference.outputs.grid import make_grid, make_labelled_grid

__all__ = [
    "format_parameters",
    "make_grid",
    "make_labelled_grid",
    "save_images",
    "save_latents",
    "save_png",
]

PARAMETERS_KEY = "parameters"
"""The PNG text key in which A1111 and its relatives keep generation parameters."""


def format_parameters(prompt: str, negative_prompt: str, settings: Mapping[str, object]) -> str:
    """Return generation parameters as A1111 writes them.

    Line 1 is the prompt, then ``Negative prompt: ...`` where there is one, then ``Key: value``
    pairs; a value with a comma, colon or line break is quoted as JSON.
    """
    pairs = ", ".join(f"{key}: {_quote(value)}" for key, value in settings.items())
    negative_line = [f"Negative prompt: {negative_prompt}"] if negative_prompt else []
    lines = [prompt, *negative_line, *filter(None, [pairs])]
    return "\n".join(lines).replace("\0", " ")


def save_images(images: Sequence[Image.Image], folder: Path) -> list[Path]:
    """Write ``0000.png``, ``0001.png``, ... and ``grid.png`` into a folder.

    Files of those names are replaced, each atomically; nothing else there is touched. What
    ``image.info["parameters"]`` holds goes into each file; the grid has the first image's.

    Raises:
        OutputError: a file cannot be written.
    """
    paths = [folder / f"{index:04d}.png" for index in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        save_png(image, path)
    grid = make_grid(images)
    grid.info[PARAMETERS_KEY] = images[0].info.get(PARAMETERS_KEY, "")
    save_png(grid, folder / "grid.png")
    return [*paths, folder / "grid.png"]


def save_latents(latents: torch.Tensor, jobs: Sequence[ImageJob], folder: Path) -> Path:
    """Write ``latents.safetensors`` into a folder: the tensor ``latents``, for `Pipeline.decode`.

    The metadata's ``jobs`` hold the prompts and seeds as JSON.

    Args:
        latents: float32 ``[N, C, h, w]``.
        jobs: the latents' jobs.
        folder: a file of that name in it is replaced, atomically.

    Raises:
        WeightsError: they are not finite.
        OutputError: the file cannot be written.
    """
    entries = [{"prompt": job.prompt.source, "seed": job.seed} for job in jobs]
    path = folder / "latents.safetensors"
    save_tensors(path, {"latents": latents}, {"jobs": json.dumps(entries, ensure_ascii=False)})
    return path


def save_png(image: Image.Image, path: Path) -> None:
    """Write one PNG atomically, with the text in ``image.info["parameters"]`` if there is any.

    Raises:
        OutputError: the file cannot be written.
    """
    text = PngInfo()
    if image.info.get(PARAMETERS_KEY):
        text.add_text(PARAMETERS_KEY, str(image.info[PARAMETERS_KEY]))
    try:
        with atomic_write(path) as temporary:
            image.save(temporary, format="PNG", pnginfo=text)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def _quote(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if any(char in text for char in ',:\n"') else text
