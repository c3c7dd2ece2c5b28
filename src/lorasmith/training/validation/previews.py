"""Preview pictures during training, drawn by the same code as `lorasmith generate`."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from lorasmith.adapters.injection.trainable import TrainableLora
from lorasmith.config.train_config import ValidationConfig
from lorasmith.core.errors import ConfigError, WeightsError
from lorasmith.core.files import write_text
from lorasmith.data.images.decode import decode_image, decode_mask
from lorasmith.data.reading.row import Row
from lorasmith.inference.image_jobs import ImageJob
from lorasmith.inference.init_image import InitImage
from lorasmith.inference.init_latents import REFINER_STRENGTH, count_steps
from lorasmith.inference.loras.attach import attach_requested_lora
from lorasmith.inference.loras.find import find_lora
from lorasmith.inference.options import SamplingOptions, Size, parse_optional_size
from lorasmith.inference.outputs.save import save_png
from lorasmith.inference.pipeline import Pipeline
from lorasmith.inference.prompts.parser import (
    Prompt,
    check_negative_prompt,
    make_plain_prompt,
    parse_prompt,
)
from lorasmith.models.family import detect_family
from lorasmith.models.load import Model, suppress_logs
from lorasmith.runs.paths import LORA_FOLDER

_AT_ONCE = 4

Wanted = Callable[[], bool]
"""Asked between two denoising steps whether the pictures are still wanted."""


class PreviewsCancelledError(Exception):
    """The pictures were given up half way, because somebody wants the run to stop."""


def check_previews(settings: ValidationConfig, model: Model) -> SamplingOptions:
    """Return how previews are drawn; makes sure that they can be, without any pictures.

    Raises:
        ConfigError: a prompt, the size or another setting is not possible.
    """
    try:
        width, height = parse_optional_size(settings.size)
        options = SamplingOptions(
            negative_prompt=settings.negative_prompt,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            width=width,
            height=height,
            batch_size=_AT_ONCE,
        )
        _resolve_size(options, model)
        check_negative_prompt(settings.negative_prompt)
        if detect_family(model).requires_init_image:
            count_steps(settings.num_inference_steps, REFINER_STRENGTH)
        for prompt in settings.prompts or ():
            parse_prompt(prompt)
    except ConfigError as error:
        raise ConfigError(f"validation.{error}") from error
    return options


def _resolve_size(options: SamplingOptions, model: Model) -> Size:
    return options.resolve_size((model.default_size, model.default_size), model.vae_scale_factor)


def check_preview_loras(settings: ValidationConfig, model: Model) -> None:
    """Make sure that the LoRAs which prompts of previews name are there, and fit the model.

    Args:
        settings: of the previews.
        model: stays as it is.

    Raises:
        WeightsError: one is unknown, damaged or for another model.
        ConfigError: its block weights are for another family.
    """
    prompts = settings.prompts or () if settings.every_n_steps else ()
    for mention in dict.fromkeys(one for text in prompts for one in parse_prompt(text).loras):
        try:
            if not LORA_FOLDER.is_dir():
                raise WeightsError(f"LoRA {mention.name!r}: there is no folder {LORA_FOLDER}")
            file = find_lora(mention.name, LORA_FOLDER)
            attach_requested_lora(model, file, mention).detach()
        except (ConfigError, WeightsError) as error:
            raise type(error)(f"validation.prompts: {error}") from error


class Previews:
    """Draws the same prompts from the same seeds again and again."""

    def __init__(
        self, settings: ValidationConfig, model: Model, rows: Sequence[Row], folder: Path
    ) -> None:
        """Decide what is drawn.

        Args:
            settings: of the previews.
            model: the model in training.
            rows: the training pictures. Some of their captions are drawn where there are no
                prompts, and some models draw on them.
            folder: where each look gets a folder ``step-000100``.

        Raises:
            ConfigError: a prompt or the size is not possible.
        """
        self._pipeline = Pipeline(model, LORA_FOLDER)
        self._model = model
        self._folder = folder
        options = check_previews(settings, model)
        # A picture that is drawn on would otherwise say in which size.
        width, height = _resolve_size(options, model)
        self._options = replace(options, width=width, height=height)
        self._jobs = [
            ImageJob(k, prompt, settings.seed + k, canvas)
            for k, (prompt, canvas) in enumerate(_wanted(settings, model, rows))
        ]

    def __len__(self) -> int:
        return len(self._jobs)

    def draw(self, step: int, trained: TrainableLora, wanted: Wanted) -> list[Path]:
        """Draw and save the pictures of a step, adapters without dropout and under their gate.

        Raises:
            NotWantedError: ``wanted`` returned False on the way; nothing was written.
            OutputError: they cannot be written.
        """
        if not self._jobs:
            return []

        def between(_: int) -> None:
            if not wanted():
                raise PreviewsCancelledError

        trained.train(False)
        try:
            with _on_device(self._model), self._pipeline.using_adapters(trained.attached):
                pictures = self._pipeline.generate(self._jobs, self._options, between)
        finally:
            trained.train(True)
        return self._write(step, pictures)

    def _write(self, step: int, pictures: Sequence[Image.Image]) -> list[Path]:
        place = self._folder / f"step-{step:06d}"
        place.mkdir(parents=True, exist_ok=True)
        paths = [place / f"{number:04d}.png" for number in range(len(pictures))]
        for path, picture in zip(paths, pictures, strict=True):
            save_png(picture, path)
        told = [{"prompt": job.prompt.source, "seed": job.seed} for job in self._jobs]
        text = json.dumps(told, indent=2, ensure_ascii=False) + "\n"
        write_text(self._folder / "previews.json", text)
        return paths


def _wanted(
    settings: ValidationConfig, model: Model, rows: Sequence[Row]
) -> list[tuple[Prompt, InitImage | None]]:
    """Return what is drawn, and on what: the prompts of the settings, or captions as they stand.

    Captions are drawn on their own pictures; prompts on some of all, with masks if there are any.
    """
    if settings.prompts is not None:
        prompts = [parse_prompt(prompt) for prompt in settings.prompts]
        masked = [row for row in rows if row.mask_path is not None and model.is_inpainting]
        chosen = _spread(masked or rows, len(prompts))
        return list(zip(prompts, _canvases(model, chosen), strict=True))
    distinct: dict[str, Row] = {}
    for row in rows:
        distinct.setdefault(row.caption, row)
    distinct.pop("", None)
    chosen = _spread(list(distinct.values()), min(settings.num_images, len(distinct)))
    captions = [make_plain_prompt(row.caption) for row in chosen]  # no LoRA is meant by a caption
    return list(zip(captions, _canvases(model, chosen), strict=True))


def _canvases(model: Model, rows: Sequence[Row]) -> list[InitImage | None]:
    """Return the pictures that the SDXL refiner changes, or whose masks a model paints anew."""
    if detect_family(model).requires_init_image:
        return [InitImage.load(decode_image(row.read_bytes(), row.key)) for row in rows]
    if not model.is_inpainting:
        return [None] * len(rows)
    return [None if row.mask_path is None else _masked(row) for row in rows]


def _masked(row: Row) -> InitImage | None:
    picture = decode_image(row.read_bytes(), row.key)
    return InitImage(picture, decode_mask(row.read_mask() or b"", str(row.mask_path), picture.size))


def _spread(rows: Sequence[Row], count: int) -> list[Row]:
    """Return so many rows, evenly spread."""
    return [rows[place * len(rows) // count] for place in range(count)]


@contextmanager
def _on_device(model: Model) -> Iterator[None]:
    """Bring the VAE and text encoders to the U-Net while the block runs; they wait on the CPU."""
    device = model.unet.device
    parts = [model.vae, *model.text_encoders]
    before = [part.device for part in parts]
    with suppress_logs():
        for part in parts:
            part.to(device)
    try:
        yield
    finally:
        with suppress_logs():
            for part, place in zip(parts, before, strict=True):
                part.to(place)
        if device.type == "cuda":
            torch.cuda.empty_cache()
