"""Pictures from prompts: encode, denoise under guidance, decode, with LoRAs that wait for tags."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

import torch
from PIL import Image

from lorasmith.core.device import make_generator, pick_device
from lorasmith.inference.denoise import CFGDenoiser, ScheduledDenoiser, denoise
from lorasmith.inference.image_jobs import ImageJob, iter_batches, make_image_jobs
from lorasmith.inference.init_image import ImageInput, InitImage
from lorasmith.inference.init_latents import LatentPreparer
from lorasmith.inference.loras.find import find_lora, resolve_lora
from lorasmith.inference.options import SamplingKeywords, SamplingOptions
from lorasmith.inference.outputs.png_metadata import build_parameters_text, compute_model_hash
from lorasmith.inference.outputs.save import PARAMETERS_KEY
from lorasmith.inference.postprocess import blacken_unsafe, tensor_to_pil
from lorasmith.inference.prompts.lora_syntax import LoraRequest, check_request
from lorasmith.inference.prompts.parser import Prompt, parse_negative_prompt
from lorasmith.inference.samplers import make_scheduler
from lorasmith.inference.unet_inputs import check_components, make_added_conditioning
from lorasmith.models.latents import decode_latents
from lorasmith.models.load import Model, load_model

if TYPE_CHECKING:
    from lorasmith.adapters.nn.inject import AttachedLora
    from lorasmith.inference.loras.library import FolderLoraLibrary
    from lorasmith.inference.loras.router import ActiveLora, EncodedPrompts, LoraRouter
    from lorasmith.inference.safety import SafetyChecker

__all__ = ["Pipeline", "Progress", "load_pipeline", "tensor_to_pil"]

T = TypeVar("T")
Progress = Callable[[int], Any]
"""Called with the number of picture-steps just done; a call makes pictures x steps of them."""


def load_pipeline(
    model: str | Path | None = None,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    lora_dir: str | Path = "loras",
    safety_checker: "str | Path | SafetyChecker | None" = None,
) -> "Pipeline":
    """Open a model for drawing.

    Args:
        model: a diffusers folder, a ``.safetensors`` file with a whole model, or a Hugging Face id
            in the local cache; None is the miniature model that ships with lorasmith.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dtype: what the networks compute in; None is float32.
        lora_dir: where ``<lora:NAME:WEIGHT>`` in a prompt looks for ``NAME.safetensors``, in it and
            in the folders of runs that it holds.
        safety_checker: tells which pictures must not be shown: a function of pictures, or the
            folder ``safety_checker`` of a diffusers model. None is none.

    Raises:
        WeightsError: no such folder, a part is missing or damaged.
        ConfigError: no such device.
    """
    target = pick_device(device)
    dtype = dtype or torch.float32
    pipe = Pipeline(load_model(model, dtype).to(target, dtype), lora_dir)
    if isinstance(safety_checker, str | Path):
        from lorasmith.inference.safety import load_safety_checker

        safety_checker = load_safety_checker(safety_checker, target)
    pipe.safety_checker = safety_checker
    return pipe


@dataclass(frozen=True)
class _Call:
    """What all pictures of one call share."""

    options: SamplingOptions
    starts: LatentPreparer
    progress: Progress | None
    board: "LoraRouter"
    texts: "EncodedPrompts"


class Pipeline:
    """A model that is ready to draw. Call it with a prompt.

    The networks are used where they are and as they are; nothing is moved or cast.
    """

    def __init__(self, model: Model, lora_dir: str | Path = "loras") -> None:
        check_components(model)
        self.model = model
        self.lora_dir = Path(lora_dir).expanduser()
        self.strict = True
        """Whether a LoRA is refused that does not fit as a whole, or says that it is for another
        family or kind of prediction. If not, what fits is used and the rest is warned about.
        A prompt longer than the model reads at once is warned about if strict."""
        self.safety_checker: SafetyChecker | None = None
        """Tells of pictures whether they must not be shown; those are blackened, with a warning."""
        self._loaded: list[ActiveLora] = []
        self._held: list[ActiveLora] = []
        self._library: FolderLoraLibrary | None = None

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        seed: int | Sequence[int] = 0,
        num_images_per_prompt: int = 1,
        image: ImageInput | None = None,
        mask_image: ImageInput | None = None,
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
            num_images_per_prompt: images per prompt.
            image: picture to start from, which the SDXL refiner needs; None starts from noise.
            mask_image: for inpainting models, which part of it is painted anew: the white one.
            progress: called with the number of picture-steps just done.
            keywords: the fields of `SamplingOptions`.

        Returns:
            ``n * number of prompts`` RGB pictures in the order of the prompts.

        Raises:
            ConfigError: an option is unknown or out of range, or a prompt malformed; the model
                cannot do what is asked with a picture.
            DataError: a picture cannot be read.
            WeightsError: a LoRA is unknown or does not fit.
        """
        options = SamplingOptions.of(keywords)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        jobs = make_image_jobs(
            prompts, seed, num_images_per_prompt, InitImage.load(image, mask_image)
        )
        return self.generate(jobs, options, progress)

    @torch.no_grad()
    def generate(
        self, jobs: Sequence[ImageJob], options: SamplingOptions, progress: Progress | None = None
    ) -> list[Image.Image]:
        """Draw the pictures of `make_jobs`; see ``__call__``."""
        return self._each(jobs, options, progress, self._draw_batch)

    @torch.no_grad()
    def generate_latents(
        self, jobs: Sequence[ImageJob], options: SamplingOptions, progress: Progress | None = None
    ) -> torch.Tensor:
        """Return the pictures of `make_jobs` as latents, float32 ``[N, C, h, w]``; see `decode`."""
        latents = self._each(jobs, options, progress, lambda *batch: list(self._denoise(*batch)))
        return torch.stack(latents)

    def _each(
        self,
        jobs: Sequence[ImageJob],
        options: SamplingOptions,
        progress: Progress | None,
        make: "Callable[[Sequence[ImageJob], _Call], Sequence[T]]",
    ) -> list[T]:
        """Return what is made of each job, batch by batch."""
        negative = parse_negative_prompt(options.negative_prompt)
        starts = LatentPreparer(self.model, options, jobs)
        prompts = list(dict.fromkeys(job.prompt for job in jobs))
        made: dict[int, T] = {}
        with self._switched(prompts, options.gate, starts.num_steps) as board:
            texts = board.encode_prompts(negative, options.clip_skip, warn=self.strict)
            call = _Call(options, starts, progress, board, texts)
            # One batch has texts of one length, so that no picture depends on its neighbours'.
            numbers = range(len(jobs))
            for some in iter_batches(
                numbers, options.batch_size, lambda k: texts.num_tokens(jobs[k].prompt)
            ):
                made |= zip(some, make([jobs[k] for k in some], call), strict=True)
        return [made[k] for k in numbers]

    def find_lora(self, name: str) -> Path:
        """Return the file of a LoRA by its name in prompts.

        Raises:
            WeightsError: not in the LoRA folder (close matches are named), or there twice.
        """
        return find_lora(name, self.lora_dir)

    def load_lora(
        self,
        path_or_name: str | Path,
        weight: float = 1.0,
        gate: bool = True,
        *,
        unet_weight: float | None = None,
        lbw: str = "",
        start: int = 1,
        stop: int | None = None,
    ) -> None:
        """Attach a LoRA to every picture from now on, on top of those already there.

        A file that says which tag switches it on is at work for prompts with that tag only.

        Args:
            path_or_name: a path (anything with a slash or the suffix ``.safetensors``), or the
                name of a LoRA in `lora_dir`.
            weight: strength; 1 is as trained.
            gate: False has it at work for every prompt, with its tag or without.
            unet_weight: strength in the U-Net, where it is another than in the text encoders.
            lbw: weights by block, a preset's name or numbers (`parse_block_weights`).
            start: first denoising step that it is at work in, from 1.
            stop: last one; None is the last of all.

        Raises:
            WeightsError: the file is missing, damaged or does not fit the model.
            ConfigError: a weight is not a number from -10 to 10, or another argument impossible.
        """
        from lorasmith.inference.loras.router import ActiveLora

        wanted = LoraRequest(str(path_or_name), weight, unet_weight, lbw, start, stop)
        mention = check_request(wanted, f"LoRA {str(path_or_name)!r}")
        file = resolve_lora(path_or_name, self.lora_dir)
        mention = replace(mention, name=file.stem)
        self._loaded.append(ActiveLora(mention, self._attach(file, mention), "call", gate))

    def unload_lora(self) -> None:
        """Detach every LoRA that `load_lora` attached; the model is as it was before."""
        while self._loaded:
            self._loaded.pop().attached.detach()

    @property
    def loaded_loras(self) -> tuple[LoraRequest, ...]:
        """The LoRAs that `load_lora` attached, in order."""
        return tuple(switch.request for switch in self._loaded)

    def load_library(self, folder: str | Path) -> tuple[str, ...]:
        """Let each LoRA of a folder wake for prompts with its tag, from now on.

        The ``*.safetensors`` that lie directly in the folder are looked at. What the prompts do
        not ask for is not even loaded. May be called for several folders.

        Returns:
            The tags that wake something.

        Raises:
            WeightsError: no such folder, nothing in it that has a tag, or a damaged file.
        """
        from lorasmith.inference.loras.library import FolderLoraLibrary

        if self._library is None:
            self._library = FolderLoraLibrary(self.model)
        self._library.add(Path(folder).expanduser())
        return self.library_tags

    @property
    def library_tags(self) -> tuple[str, ...]:
        """The tags that wake a LoRA of `load_library`, in alphabetical order."""
        return self._library.tags if self._library is not None else ()

    def find_library_tags(self, text: str) -> tuple[str, ...]:
        """Return the library's tags that are in a text, in alphabetical order."""
        return self._library.find_tags(text) if self._library is not None else ()

    def unload_library(self) -> None:
        """Detach and forget every LoRA of `load_library`."""
        if self._library is not None:
            self._library.clear()

    @contextmanager
    def using_adapters(self, attached: "AttachedLora", gate: bool = True) -> Iterator[None]:
        """Draw with adapters that somebody else put into the model, under their gate.

        Without this, adapters that are in the model are at work as their gate stands. Afterwards
        it is open.

        Args:
            attached: the adapters; ``attached.gate_metadata`` says what opens their gate.
            gate: False has them at work for every prompt.
        """
        from lorasmith.inference.loras.router import ActiveLora

        switch = ActiveLora(LoraRequest(attached.gate_metadata.tag), attached, "trainer", gate)
        self._held.append(switch)
        try:
            yield
        finally:
            self._held.remove(switch)

    @cached_property
    def model_hash(self) -> str:
        """First 10 hex digits of the SHA-256 of the U-Net's weights; empty without any."""
        return compute_model_hash(self.model.folder)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return pictures, float32 ``[B, 3, H, W]`` in 0..1.

        Args:
            latents: multiplied by the VAE's scaling factor, ``[B, C, h, w]``.
        """
        return decode_latents(self.model.vae, latents)

    def _draw_batch(self, jobs: Sequence[ImageJob], call: _Call) -> list[Image.Image]:
        """Draw the pictures of one batch."""
        images = tensor_to_pil(self.decode(self._denoise(jobs, call)))
        if self.safety_checker is not None:
            images = blacken_unsafe(images, self.safety_checker)
        for job, image in zip(jobs, images, strict=True):
            image.info[PARAMETERS_KEY] = build_parameters_text(
                _told(job.prompt, call.board), job.seed, call.options, call.starts.size,
                self.model.folder, self.model_hash,
                call.starts.strength if job.init_image is not None else None,
            )  # fmt: skip
        return images

    def _denoise(self, batch: Sequence[ImageJob], call: _Call) -> torch.Tensor:
        """Return the latents of one batch, float32 ``[B, C, h, w]``."""
        options, device = call.options, self.model.unet.device
        config = self.model.scheduler_config
        scheduler = make_scheduler(options.sampler, config, options.num_inference_steps, device)
        generators = [make_generator(job.seed) for job in batch]
        start = call.starts.prepare(batch, generators)

        def begin(phase: int) -> CFGDenoiser:
            guided = self._guided([job.prompt for job in batch], call, phase)
            return replace(guided, inpaint_cond=start.inpaint_cond)

        def on_step(_: int) -> None:
            if call.progress is not None:
                call.progress(len(batch))

        guided = ScheduledDenoiser(begin, call.board.phase_starts)
        first = call.starts.first_step
        return denoise(
            guided, scheduler, start.noise, generators, on_step, start.image_latents, first
        )

    def _guided(self, prompts: Sequence[Prompt], call: _Call, phase: int) -> CFGDenoiser:
        """Return the U-Net for a batch in a phase; its gates are set."""
        options, pairs = call.options, [call.texts.embeds[prompt, phase] for prompt in prompts]
        unwanted, wanted = zip(*pairs, strict=True)
        guided = CFGDenoiser(
            self.model.unet,
            torch.stack([one.context for one in wanted]),
            torch.stack([one.context for one in unwanted]),
            options.guidance_scale,
            options.guidance_rescale,
            make_added_conditioning(self.model, wanted, unwanted, call.starts.size),
        )
        call.board.set_gates(prompts, call.texts, guided.uses_guidance, phase)
        return guided

    @contextmanager
    def _switched(
        self, prompts: Sequence[Prompt], gate: bool, steps: int
    ) -> Iterator["LoraRouter"]:
        """Have everything in the model that the prompts ask for, while the block runs."""
        from lorasmith.inference.loras.router import LoraRouter

        mentioned: list[ActiveLora] = []
        named = [*self._held, *self._loaded]
        try:
            self._attach_mentioned(prompts, mentioned)
            named += mentioned
            yield LoraRouter(self.model, named, self._library, prompts, gate, steps)
        finally:
            for switch in named:
                switch.attached.gate.open()
            if self._library is not None:
                self._library.deactivate_all()
            for switch in reversed(mentioned):
                switch.attached.detach()

    def _attach_mentioned(self, prompts: Sequence[Prompt], mentioned: "list[ActiveLora]") -> None:
        """Attach the LoRAs that prompts mention, once for each weight; ``mentioned`` gets them.

        All names are looked up before the first file is read.
        """
        from lorasmith.inference.loras.router import ActiveLora

        wanted = list(dict.fromkeys(lora for prompt in prompts for lora in prompt.loras))
        files = {lora.name: self.find_lora(lora.name) for lora in wanted}
        for lora in wanted:  # one by one, so that what got in can be taken out again
            attached = self._attach(files[lora.name], lora)
            mentioned.append(ActiveLora(lora, attached, "prompt"))

    def _attach(self, path: Path, mention: LoraRequest) -> "AttachedLora":
        from lorasmith.inference.loras.attach import attach_requested_lora

        return attach_requested_lora(self.model, path, mention, self.strict)


def _told(prompt: Prompt, board: "LoraRouter") -> str:
    """Return a prompt with every LoRA that was at work, as a prompt would ask for it."""
    more = [
        one.request for one in board.active_loras(prompt) if one.requested_by in ("call", "library")
    ]
    return " ".join([prompt.source, *map(str, more)])
