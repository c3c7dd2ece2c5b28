"""Pictures from prompts: encode, denoise under guidance, decode, with LoRAs named in the prompt."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
from PIL import Image

from lorasmith.core.device import generator, pick_device
from lorasmith.core.errors import LorasmithWarning, WeightsError
from lorasmith.inference.denoise import Guided, denoise, initial_noise
from lorasmith.inference.jobs import Job, batches, by_loras, make_jobs
from lorasmith.inference.metadata import describe, hash_of_model
from lorasmith.inference.options import SamplingKeywords, SamplingOptions, Size
from lorasmith.inference.pictures import PARAMETERS
from lorasmith.inference.prompt import LoraMention, check_negative, find_lora
from lorasmith.inference.samplers import make_scheduler
from lorasmith.models.load import Model, load_model
from lorasmith.models.text import encode, tokenize

if TYPE_CHECKING:
    from lorasmith.adapters.inject import Attached

Progress = Callable[[int], Any]
"""Called with the number of picture-steps just done; a call makes pictures x steps of them."""

_TEXTS_AT_ONCE = 32


def load_pipeline(
    model: str | Path | None = None,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    lora_dir: str | Path = "loras",
) -> "Pipeline":
    """Open a model for drawing.

    Args:
        model: a diffusers model folder; None is the miniature model that ships with lorasmith.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dtype: what the networks compute in; None is float32.
        lora_dir: where ``<lora:NAME:WEIGHT>`` in a prompt looks for ``NAME.safetensors``.

    Raises:
        WeightsError: no such folder, a part is missing or damaged.
        ConfigError: no such device.
    """
    target = pick_device(device)
    return Pipeline(load_model(model).to(target, dtype or torch.float32), lora_dir)


@dataclass(frozen=True)
class _Call:
    """What all pictures of one call share."""

    options: SamplingOptions
    size: Size
    progress: Progress | None


class Pipeline:
    """A model that is ready to draw. Call it with a prompt.

    The networks are used where they are and as they are; nothing is moved or cast.
    """

    def __init__(self, model: Model, lora_dir: str | Path = "loras") -> None:
        _check_fits(model)
        self.model = model
        self.lora_dir = Path(lora_dir).expanduser()
        self._attached: list[Attached] = []

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        seed: int | Sequence[int] = 0,
        n: int = 1,
        progress: Progress | None = None,
        **keywords: Unpack[SamplingKeywords],
    ) -> list[Image.Image]:
        """Draw ``n`` pictures for each prompt.

        Picture k of the call belongs to prompt ``k // n`` and is drawn from seed ``seed + k``,
        with random numbers of its own: in float32 the batch size changes it by no more than
        rounding (1/255 a pixel). ``image.info["parameters"]`` says how it was made.

        Args:
            prompt: one prompt or several; ``<lora:NAME:WEIGHT>`` applies a LoRA to that prompt.
            seed: of picture 0; or a list with the seed of every picture.
            n: pictures per prompt.
            progress: called with the number of picture-steps just done.
            keywords: the fields of `SamplingOptions`.

        Returns:
            ``n * number of prompts`` RGB pictures in the order of the prompts.

        Raises:
            ConfigError: an option is unknown or out of range, or a prompt malformed.
            WeightsError: a LoRA is unknown or does not fit.
        """
        options = SamplingOptions.of(keywords)
        jobs = make_jobs([prompt] if isinstance(prompt, str) else list(prompt), seed, n)
        return self.draw(jobs, options, progress)

    @torch.no_grad()
    def draw(
        self, jobs: Sequence[Job], options: SamplingOptions, progress: Progress | None = None
    ) -> list[Image.Image]:
        """Draw the pictures of `make_jobs`; see ``__call__``."""
        check_negative(options.negative)
        size = options.size_for(self.model.default_size, self.model.downscale)
        call = _Call(options, size, progress)
        files = {lora.name: self.find_lora(lora.name) for job in jobs for lora in job.prompt.loras}
        pictures: dict[int, Image.Image] = {}
        # One group per set of LoRAs; the sort is stable, so a group keeps its order.
        for _, group in groupby(sorted(jobs, key=by_loras), key=by_loras):
            members = list(group)
            with self._mentioned(members[0].prompt.loras, files):
                pictures |= self._draw_group(members, call)
        return [pictures[job.index] for job in jobs]

    def find_lora(self, name: str) -> Path:
        """Return the file of a LoRA by its name in prompts.

        Raises:
            WeightsError: not in the LoRA folder; close matches are named.
        """
        return find_lora(name, self.lora_dir)

    def load_lora(self, path: str | Path, weight: float = 1.0) -> None:
        """Attach a LoRA file to every picture from now on.

        Raises:
            WeightsError: the file is missing, damaged or does not fit the model.
        """
        self._attached.append(self._attach(Path(path).expanduser(), weight))

    def unload_lora(self) -> None:
        """Detach every LoRA that `load_lora` attached; the model is as it was before."""
        while self._attached:
            self._attached.pop().detach()

    @cached_property
    def model_hash(self) -> str:
        """First 10 hex digits of the SHA-256 of the U-Net's weights; empty without any."""
        return hash_of_model(self.model.folder)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return pictures, float32 ``[B, 3, H, W]`` in 0..1.

        Args:
            latents: multiplied by the VAE's scaling factor, ``[B, C, h, w]``.
        """
        vae = self.model.vae
        # Some later models also shift their latents; Stable Diffusion's have no shift.
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        unscaled = latents / vae.config.scaling_factor + shift
        pictures: torch.Tensor = vae.decode(unscaled.to(vae.dtype), return_dict=False)[0]
        return (pictures.float() / 2 + 0.5).clamp(0, 1)

    def _draw_group(self, jobs: Sequence[Job], call: _Call) -> dict[int, Image.Image]:
        """Draw pictures that share their LoRAs, batch by batch; the keys are their indices."""
        options, model = call.options, self.model
        texts = self._contexts([options.negative, *(job.prompt.text for job in jobs)], options)
        pictures: dict[int, Image.Image] = {}
        for batch in batches(jobs, options.batch_size):
            images = to_images(self.decode(self._denoise(batch, texts, call)))
            for job, image in zip(batch, images, strict=True):
                image.info[PARAMETERS] = describe(
                    job.prompt.source, job.seed, options, call.size, model.folder, self.model_hash
                )
                pictures[job.index] = image
        return pictures

    def _denoise(
        self, batch: Sequence[Job], texts: dict[str, torch.Tensor], call: _Call
    ) -> torch.Tensor:
        """Return the latents of one batch, float32 ``[B, C, h, w]``."""
        options, unet, scale = call.options, self.model.unet, self.model.downscale
        config = self.model.scheduler_config
        scheduler = make_scheduler(options.sampler, config, options.steps, unet.device)
        generators = [generator(job.seed) for job in batch]
        shape = (int(unet.config.in_channels), call.size[1] // scale, call.size[0] // scale)
        noise = initial_noise(generators, shape, unet.device)
        context = torch.stack([texts[job.prompt.text] for job in batch])
        negative = texts[options.negative].expand_as(context)
        guided = Guided(unet, context, negative, options.guidance, options.guidance_rescale)

        def on_step(_: int) -> None:
            if call.progress is not None:
                call.progress(len(batch))

        return denoise(guided, scheduler, noise, generators, on_step)

    def _contexts(self, texts: Iterable[str], options: SamplingOptions) -> dict[str, torch.Tensor]:
        """Embed each distinct text once, ``[77, width]``; text that is cut off is warned about."""
        distinct = list(dict.fromkeys(texts))
        encoder = self.model.text_encoder
        pieces: list[torch.Tensor] = []
        for some in batches(distinct, _TEXTS_AT_ONCE):
            ids = tokenize(self.model.tokenizer, some).to(encoder.device)
            pieces.append(encode(encoder, ids, options.clip_skip))
        return dict(zip(distinct, torch.cat(pieces), strict=True))

    @contextmanager
    def _mentioned(self, loras: Sequence[LoraMention], files: dict[str, Path]) -> Iterator[None]:
        """Attach a prompt's LoRAs while the block runs."""
        attached: list[Attached] = []
        try:
            for lora in loras:
                attached.append(self._attach(files[lora.name], lora.weight))  # noqa: PERF401 (detach what got in)
            yield
        finally:
            for one in reversed(attached):
                one.detach()

    def _attach(self, path: Path, weight: float) -> "Attached":
        from lorasmith.adapters.formats import load_lora_file
        from lorasmith.adapters.inject import attach

        return attach(self.model, load_lora_file(path), weight)


def to_images(pictures: torch.Tensor) -> list[Image.Image]:
    """Return RGB pictures from floats in 0..1, ``[B, 3, H, W]``, rounded to 8 bits.

    Values that are not finite become black, with a warning.
    """
    if not torch.isfinite(pictures).all():
        warnings.warn(
            "the model returned values that are not numbers, drawn black; use precision no or bf16",
            LorasmithWarning,
            stacklevel=2,
        )
    bytes_ = (pictures.nan_to_num(0.0) * 255).round().to("cpu", torch.uint8)
    return [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in bytes_]


def _check_fits(model: Model) -> None:
    """Refuse models whose parts do not belong together or that want inputs we do not give."""
    unet, where = model.unet.config, f"model {model.folder}: unet"
    if unet.addition_embed_type is not None:
        raise WeightsError(
            f"{where} wants more inputs than a prompt (SDXL); use an SD 1.x or 2.x model"
        )
    if unet.in_channels != model.vae.config.latent_channels:
        raise WeightsError(
            f"{where} takes {unet.in_channels} channels and the vae makes "
            f"{model.vae.config.latent_channels}; inpainting models are not supported"
        )
    width = model.text_encoder.config.hidden_size
    if unet.cross_attention_dim != width:
        raise WeightsError(
            f"{where} reads text of width {unet.cross_attention_dim}, text_encoder writes {width}"
        )
