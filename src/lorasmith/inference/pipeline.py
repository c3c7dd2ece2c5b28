"""Images from prompts: `load_pipeline` opens a model, calling the `Pipeline` generates images."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, Unpack

import torch
from PIL import Image

from lorasmith.core.device import pick_device
from lorasmith.inference.diffusers_names import ANSWERS, explain_missing
from lorasmith.inference.generation import Generation, Progress
from lorasmith.inference.image_jobs import ImageJob, iter_batches, make_image_jobs
from lorasmith.inference.init_image import ImageInput, InitImage
from lorasmith.inference.init_latents import LatentPreparer
from lorasmith.inference.loras.encoded_prompts import encode_routed_prompts
from lorasmith.inference.loras.find import find_lora
from lorasmith.inference.loras.manager import LoraManager
from lorasmith.inference.options import SamplingKeywords, SamplingOptions
from lorasmith.inference.outputs.png_metadata import build_parameters_text, compute_model_hash
from lorasmith.inference.outputs.save import PARAMETERS_KEY
from lorasmith.inference.postprocess import blacken_unsafe, tensor_to_pil
from lorasmith.inference.prompts.lora_request import LoraRequest
from lorasmith.inference.prompts.parse_prompt import parse_negative_prompt
from lorasmith.inference.unet_inputs import check_components
from lorasmith.models.latents import decode_latents
from lorasmith.models.load import load_model
from lorasmith.models.model import Model

if TYPE_CHECKING:
    from lorasmith.adapters.injection.inject import AttachedLora
    from lorasmith.inference.safety import SafetyChecker

__all__ = ["CallbackOnStepEnd", "Pipeline", "Progress", "load_pipeline", "tensor_to_pil"]

T = TypeVar("T")
CallbackOnStepEnd = Callable[
    ["Pipeline", int, torch.Tensor, dict[str, torch.Tensor]], Mapping[str, torch.Tensor] | None
]
"""Called after each step of a batch with the pipeline, the step's index from 0, its timestep and
``{"latents": ...}``, float32 ``[B, C, h, w]``. Latents that it returns replace those of the batch.
"""


def load_pipeline(
    model: str | Path | None = None,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    lora_dir: str | Path = "loras",
    safety_checker: "str | Path | SafetyChecker | None" = None,
) -> "Pipeline":
    """Open a model for generating images.

    Args:
        model: a diffusers folder, a ``.safetensors`` file with a full model, or a Hugging Face id
            in the local cache; None is the miniature model that ships with lorasmith.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dtype: what the networks compute in; None is float32.
        lora_dir: where ``<lora:NAME:WEIGHT>`` in a prompt looks for ``NAME.safetensors``, in it and
            in the run folders that it holds.
        safety_checker: says which images are unsafe: a function of images, or the folder
            ``safety_checker`` of a diffusers model. None is none.

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


class _PipelineType(type):
    """The class of `Pipeline`: says what stands for the class methods of diffusers."""

    if not TYPE_CHECKING:  # to mypy, unknown attributes stay unknown

        def __getattr__(cls, name):
            raise AttributeError(explain_missing(f"class {cls.__name__}", name))


class Pipeline(metaclass=_PipelineType):
    """A model that generates images. Call it with a prompt.

    The networks stay on their device and in their dtype. An AttributeError for a name of diffusers,
    such as ``load_lora_weights``, says what to use here.
    """

    if not TYPE_CHECKING:

        def __getattr__(self, name):
            raise AttributeError(explain_missing("Pipeline", name))

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse attributes of a diffusers pipeline: setting ``scheduler`` would do nothing."""
        if name in ANSWERS:
            raise AttributeError(explain_missing("Pipeline", name))
        super().__setattr__(name, value)

    def __init__(self, model: Model, lora_dir: str | Path = "loras") -> None:
        check_components(model)
        self.model = model
        self.strict = True
        """Whether a LoRA is refused that fits only in part, or says that it is for another family
        or prediction type. If not, what fits is used and a warning names the rest. Strict also
        warns of prompts that are longer than the model was trained to read."""
        self.safety_checker: SafetyChecker | None = None
        """Says which images are unsafe; those are blackened, with a warning."""
        self._loras = LoraManager(model, Path(lora_dir).expanduser())

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        seed: int | Sequence[int] = 0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        num_images_per_prompt: int = 1,
        image: ImageInput | None = None,
        mask_image: ImageInput | None = None,
        progress: Progress | None = None,
        callback_on_step_end: CallbackOnStepEnd | None = None,
        **keywords: Unpack[SamplingKeywords],
    ) -> list[Image.Image]:
        """Generate ``num_images_per_prompt`` images for each prompt.

        Image k of the call has the seed ``seed + k`` and its own random numbers: in float32 the
        batch size changes it by no more than rounding (1/255 a pixel).
        ``image.info["parameters"]`` says how it was made.

        Args:
            prompt: one prompt or several; ``<lora:NAME:WEIGHT>`` applies a LoRA to that prompt.
            seed: of image 0, -1 for a random one; or a list with the seed of every image.
            generator: in place of seeds, one for each image.
            num_images_per_prompt: images per prompt.
            image: what to start from, which the SDXL refiner needs; None starts from noise.
            mask_image: for inpainting models: the image is inpainted where this is white.
            progress: called with the number of image-steps just done.
            callback_on_step_end: called after each step, as in diffusers; see `CallbackOnStepEnd`.
            keywords: the fields of `SamplingOptions`.

        Returns:
            RGB images in the order of the prompts.

        Raises:
            ConfigError: an option is unknown or out of range, a prompt malformed, or the model
                cannot start from an image or inpaint.
            DataError: an image cannot be read.
            WeightsError: a LoRA is unknown or does not fit.
        """
        options = SamplingOptions.from_keywords(keywords)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        init_image = InitImage.load(image, mask_image)
        jobs = make_image_jobs(prompts, seed, num_images_per_prompt, init_image, generator)
        return self.generate(jobs, options, progress, callback_on_step_end)

    @torch.no_grad()
    def generate(
        self,
        jobs: Sequence[ImageJob],
        options: SamplingOptions,
        progress: Progress | None = None,
        callback_on_step_end: CallbackOnStepEnd | None = None,
    ) -> list[Image.Image]:
        """Generate the images of `make_image_jobs`; see ``__call__``."""
        return self._run(jobs, options, self._generate_batch, progress, callback_on_step_end)

    @torch.no_grad()
    def generate_latents(
        self,
        jobs: Sequence[ImageJob],
        options: SamplingOptions,
        progress: Progress | None = None,
        callback_on_step_end: CallbackOnStepEnd | None = None,
    ) -> torch.Tensor:
        """Return the images of `make_image_jobs` as latents for `decode`, ``[N, C, h, w]``."""

        def make_latents(generation: Generation, batch: Sequence[ImageJob]) -> list[torch.Tensor]:
            return list(generation.denoise_batch(batch))

        return torch.stack(self._run(jobs, options, make_latents, progress, callback_on_step_end))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return images, float32 ``[B, 3, H, W]`` in 0..1.

        Args:
            latents: multiplied by the VAE's scaling factor, ``[B, C, h, w]``.
        """
        return decode_latents(self.model.vae, latents)

    @property
    def lora_dir(self) -> Path:
        """Where ``<lora:NAME:WEIGHT>`` in a prompt looks for ``NAME.safetensors``."""
        return self._loras.lora_dir

    @lora_dir.setter
    def lora_dir(self, folder: str | Path) -> None:
        self._loras.lora_dir = Path(folder).expanduser()

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
        """Apply a LoRA to every image from now on, on top of those already loaded.

        A file with a trigger word (tag) is active for prompts with that tag only.

        Args:
            path_or_name: a path (anything with a slash or the suffix ``.safetensors``), or the
                name of a LoRA in `lora_dir`.
            weight: strength; 1 is as trained.
            gate: False makes it active for every prompt, with its tag or without.
            unet_weight: strength in the U-Net, where it differs from the text encoders'.
            lbw: block weights, a preset's name or numbers (`parse_block_weights`).
            start: first denoising step that it is active in, from 1.
            stop: last one; None is the last of all.

        Raises:
            WeightsError: the file is missing, damaged or does not fit the model.
            ConfigError: a weight is not a number from -10 to 10, or another argument impossible.
        """
        request = LoraRequest(str(path_or_name), weight, unet_weight, lbw, start, stop)
        self._loras.load(path_or_name, request, gate, self.strict)

    def unload_lora(self) -> None:
        """Detach every LoRA that `load_lora` attached; the model is as it was before."""
        self._loras.unload_all()

    @property
    def loaded_loras(self) -> tuple[LoraRequest, ...]:
        """The LoRAs that `load_lora` attached, in order."""
        return self._loras.loaded

    def load_library(self, folder: str | Path) -> tuple[str, ...]:
        """Activate each LoRA of a folder for prompts with its tag, from now on.

        The library holds the ``*.safetensors`` that lie directly in the folder. Their weights are
        read when a prompt first has their tag. May be called for several folders.

        Returns:
            The tags of the library's LoRAs.

        Raises:
            WeightsError: no such folder, nothing in it that has a tag, or a damaged file.
        """
        self._loras.library.add(Path(folder).expanduser())
        return self.library_tags

    @property
    def library_tags(self) -> tuple[str, ...]:
        """The tags that activate a LoRA of `load_library`, in alphabetical order."""
        return self._loras.library.tags

    def find_library_tags(self, *texts: str) -> tuple[str, ...]:
        """Return the library's tags that are in one of some texts, in alphabetical order."""
        return self._loras.library.find_tags(texts)

    def unload_library(self) -> None:
        """Detach and forget every LoRA of `load_library`."""
        self._loras.library.clear()

    @contextmanager
    def using_adapters(self, attached: "AttachedLora", gate: bool = True) -> Iterator[None]:
        """Generate with adapters that somebody else attached to the model, under their gate.

        Without this, such adapters are active as their gate stands. Afterwards it is open.

        Args:
            attached: the adapters; ``attached.gate_metadata`` says what opens their gate.
            gate: False makes them active for every prompt.
        """
        with self._loras.using_adapters(attached, gate):
            yield

    @cached_property
    def model_hash(self) -> str:
        """First 10 hex digits of the SHA-256 of the U-Net's weights; empty without any."""
        return compute_model_hash(self.model.path)

    def _run(
        self,
        jobs: Sequence[ImageJob],
        options: SamplingOptions,
        make_batch: Callable[[Generation, Sequence[ImageJob]], Sequence[T]],
        progress: Progress | None,
        callback: CallbackOnStepEnd | None,
    ) -> list[T]:
        """Return what ``make_batch`` makes of each job, batch by batch."""
        negative = parse_negative_prompt(options.negative_prompt)
        preparer = LatentPreparer(self.model, options, jobs)
        prompts = list(dict.fromkeys(job.prompt for job in jobs))

        def on_step_end(step: int, timestep: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
            outputs = callback(self, step, timestep, {"latents": latents}) if callback else None
            return (outputs or {}).get("latents", latents)

        results: dict[int, T] = {}
        with self._loras.activated(
            prompts, options.gate, preparer.num_steps, self.strict
        ) as router:
            encoded = encode_routed_prompts(
                self.model, router, negative, options.clip_skip, warn=self.strict
            )
            generation = Generation(
                self.model, options, preparer, router, encoded, progress, on_step_end
            )
            # A batch has texts of one length, so that no image depends on the rest of its batch.
            lengths = [encoded.num_tokens(job.prompt) for job in jobs]
            for indices in iter_batches(range(len(jobs)), options.batch_size, lengths.__getitem__):
                batch = make_batch(generation, [jobs[index] for index in indices])
                results |= zip(indices, batch, strict=True)
        return [results[index] for index in range(len(jobs))]

    def _generate_batch(
        self, generation: Generation, jobs: Sequence[ImageJob]
    ) -> list[Image.Image]:
        images = tensor_to_pil(self.decode(generation.denoise_batch(jobs)))
        if self.safety_checker is not None:
            images = blacken_unsafe(images, self.safety_checker)
        preparer = generation.preparer
        for job, image in zip(jobs, images, strict=True):
            image.info[PARAMETERS_KEY] = build_parameters_text(
                generation.prompt_with_loras(job.prompt), job.seed, generation.options,
                preparer.size, self.model.path, self.model_hash,
                preparer.strength if job.init_image is not None else None,
            )  # fmt: skip
        return images
