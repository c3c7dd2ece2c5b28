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
from lorasmith.inference.denoise import Added, Guided, denoise, initial_noise
from lorasmith.inference.jobs import Job, batches, by_loras, make_jobs
from lorasmith.inference.loras import find_lora, resolve_lora
from lorasmith.inference.metadata import describe, hash_of_model
from lorasmith.inference.options import SamplingKeywords, SamplingOptions, Size
from lorasmith.inference.pictures import PARAMETERS
from lorasmith.inference.prompt import LoraMention, check_negative, check_weight
from lorasmith.inference.samplers import make_scheduler
from lorasmith.models.family import family_of
from lorasmith.models.load import Model, load_model
from lorasmith.models.text import Conditioning, encode_captions

if TYPE_CHECKING:
    from lorasmith.adapters.inject import Attached

Progress = Callable[[int], Any]
"""Called with the number of picture-steps just done; a call makes pictures x steps of them."""


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
        lora_dir: where ``<lora:NAME:WEIGHT>`` in a prompt looks for ``NAME.safetensors``, in it and
            in the folders of runs that it holds.

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
        self._loaded: list[tuple[LoraMention, Attached]] = []

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
            WeightsError: not in the LoRA folder (close matches are named), or there twice.
        """
        return find_lora(name, self.lora_dir)

    def load_lora(self, path_or_name: str | Path, weight: float = 1.0) -> None:
        """Attach a LoRA to every picture from now on, on top of those already there.

        Args:
            path_or_name: a path (anything with a slash or the suffix ``.safetensors``), or the
                name of a LoRA in `lora_dir`.
            weight: strength; 1 is as trained.

        Raises:
            WeightsError: the file is missing, damaged or does not fit the model.
            ConfigError: the weight is not a number from -10 to 10.
        """
        strength = check_weight(f"LoRA {str(path_or_name)!r}", weight, "give a weight such as 0.8")
        file = resolve_lora(path_or_name, self.lora_dir)
        self._loaded.append((LoraMention(file.stem, strength), self._attach(file, strength)))

    def unload_lora(self) -> None:
        """Detach every LoRA that `load_lora` attached; the model is as it was before."""
        while self._loaded:
            self._loaded.pop()[1].detach()

    @property
    def loaded(self) -> tuple[LoraMention, ...]:
        """The LoRAs that `load_lora` attached, in order."""
        return tuple(mention for mention, _ in self._loaded)

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
                    self._told(job), job.seed, options, call.size, model.folder, self.model_hash
                )
                pictures[job.index] = image
        return pictures

    def _told(self, job: Job) -> str:
        """Return the prompt with every LoRA that is at work, as a prompt would ask for it."""
        loaded = (f"<lora:{lora.name}:{lora.weight:g}>" for lora in self.loaded)
        return " ".join([job.prompt.source, *loaded])

    def _denoise(
        self, batch: Sequence[Job], texts: dict[str, Conditioning], call: _Call
    ) -> torch.Tensor:
        """Return the latents of one batch, float32 ``[B, C, h, w]``."""
        options, unet, scale = call.options, self.model.unet, self.model.downscale
        config = self.model.scheduler_config
        scheduler = make_scheduler(options.sampler, config, options.steps, unet.device)
        generators = [generator(job.seed) for job in batch]
        shape = (int(unet.config.in_channels), call.size[1] // scale, call.size[0] // scale)
        noise = initial_noise(generators, shape, unet.device)
        wanted = [texts[job.prompt.text] for job in batch]
        unwanted = texts[options.negative]
        context = torch.stack([one.context for one in wanted])
        negative = unwanted.context.expand_as(context)
        added = _added(wanted, unwanted, call.size)
        guided = Guided(unet, context, negative, options.guidance, options.guidance_rescale, added)

        def on_step(_: int) -> None:
            if call.progress is not None:
                call.progress(len(batch))

        return denoise(guided, scheduler, noise, generators, on_step)

    def _contexts(self, texts: Iterable[str], options: SamplingOptions) -> dict[str, Conditioning]:
        """Embed each distinct text once; text that is cut off is warned about."""
        distinct = list(dict.fromkeys(texts))
        found = encode_captions(self.model, distinct, options.clip_skip)
        return dict(zip(distinct, found, strict=True))

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
    if (family_of(model) == "sdxl") != (model.text_encoder_2 is not None):
        raise WeightsError(
            f"model {model.folder}: unet and text encoders are not of one family; SDXL has two "
            "text encoders and a U-Net that reads sizes, other models have neither"
        )
    if unet.in_channels != model.vae.config.latent_channels:
        raise WeightsError(
            f"{where} takes {unet.in_channels} channels and the vae makes "
            f"{model.vae.config.latent_channels}; inpainting models are not supported"
        )
    width = sum(encoder.config.hidden_size for encoder in model.text_encoders)
    if unet.cross_attention_dim != width:
        raise WeightsError(
            f"{where} reads text of width {unet.cross_attention_dim}, text_encoder writes {width}"
        )


def _added(wanted: Sequence[Conditioning], unwanted: Conditioning, size: Size) -> Added | None:
    """Return SDXL's further inputs for one batch: whole pictures of the size that is drawn."""
    pooled = [one.pooled for one in wanted if one.pooled is not None]
    if unwanted.pooled is None or not pooled:
        return None
    summaries = torch.stack(pooled)
    width, height = size
    sizes = torch.tensor([height, width, 0, 0, height, width], device=summaries.device)
    return Added(summaries, unwanted.pooled.expand_as(summaries), sizes.expand(len(pooled), 6))
