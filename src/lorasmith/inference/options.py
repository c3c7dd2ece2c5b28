"""The options of one call that generates images, checked before anything heavy is imported."""

import math
import re
import secrets
from dataclasses import dataclass, fields
from typing import Any, TypedDict

from lorasmith.core.errors import ConfigError, did_you_mean
from lorasmith.inference.diffusers_names import KEYWORD_ANSWERS
from lorasmith.inference.samplers import resolve_sampler

MAX_STEPS = 1000
"""Stable Diffusion is trained on 1000 noise levels; a sampler cannot take more steps."""
MAX_SIDE = 8192
"""Longest side in pixels."""
MAX_SEED = 2**63 - 1
RANDOM_SEED = -1
"""Stands for a random seed, as in A1111."""

_MIN_STRENGTH = 1.0 / MAX_STEPS

Size = tuple[int, int]
"""Width and height in pixels."""


class SamplingKeywords(TypedDict, total=False):
    """The fields of `SamplingOptions` as keywords of a call."""

    negative_prompt: str
    num_inference_steps: int
    guidance_scale: float
    width: int | None
    height: int | None
    sampler: str
    clip_skip: int
    guidance_rescale: float
    batch_size: int
    gate: bool
    strength: float | None


@dataclass(frozen=True)
class SamplingOptions:
    """How images are generated.

    Raises:
        ConfigError: on construction, where a value is out of range; the field is named.
    """

    negative_prompt: str = ""
    """What the images should not show."""
    num_inference_steps: int = 20
    """Denoising steps, 1 to 1000."""
    guidance_scale: float = 5.0
    """Classifier-free guidance scale (arXiv:2207.12598); 1 is none and takes half the time."""
    width: int | None = None
    """Width in pixels; None is the size the model was trained at, or that of the init image."""
    height: int | None = None
    """Height in pixels, likewise."""
    sampler: str = "ddim"
    """A name in `lorasmith.registries.SAMPLERS`, or A1111's or diffusers' name of one."""
    clip_skip: int = 1
    """Which text layer is used, counted from the last (1), as A1111 counts."""
    guidance_rescale: float = 0.0
    """Share of the rescaled guidance, phi in eq. 16 of arXiv:2305.08891; 0 is none."""
    batch_size: int = 4
    """Images generated at once. It changes speed and memory, never the images."""
    gate: bool = True
    """Whether requested LoRAs wait for their trigger words; those of a library always do."""
    strength: float | None = None
    """Share of the steps that are taken on an init image, above 0 to 1; 1 leaves nothing.
    None is 1 under a mask, 0.3 for the SDXL refiner, 0.75 otherwise."""

    def __post_init__(self) -> None:
        _check_int("num_inference_steps", self.num_inference_steps, 1, MAX_STEPS)
        _check_int("batch_size", self.batch_size, 1, None)
        _check_int("clip_skip", self.clip_skip, 1, None)
        _check_number("guidance_scale", self.guidance_scale, 0.0, 1000.0)
        _check_number("guidance_rescale", self.guidance_rescale, 0.0, 1.0)
        if self.strength is not None:
            _check_number("strength", self.strength, _MIN_STRENGTH, 1.0)
        if self.width is not None:
            _check_int("width", self.width, 1, MAX_SIDE)
        if self.height is not None:
            _check_int("height", self.height, 1, MAX_SIDE)
        object.__setattr__(self, "sampler", resolve_sampler(self.sampler))

    @classmethod
    def from_keywords(cls, keywords: SamplingKeywords) -> "SamplingOptions":
        """Build the options from a call's keywords.

        Raises:
            ConfigError: a keyword is unknown (close matches are named) or out of range.
        """
        names = [field.name for field in fields(cls)]
        unknown = [name for name in keywords if name not in names]
        if unknown:
            answer = KEYWORD_ANSWERS.get(unknown[0])
            hint = f"; {answer}" if answer else did_you_mean(unknown[0], names)
            hint = hint or "; use " + ", ".join(names)
            raise ConfigError(f"unknown option {unknown[0]!r}{hint}")
        return cls(**keywords)

    def resolve_size(self, default: Size, multiple: int) -> Size:
        """Return (width, height) in pixels for a model.

        Args:
            default: stands in for a side that is None.
            multiple: pixels per latent; both sides must be multiples of it.

        Raises:
            ConfigError: a side is not a multiple; the nearest possible size is named.
        """
        width = default[0] if self.width is None else self.width
        height = default[1] if self.height is None else self.height
        if width % multiple or height % multiple:
            sides = (max(multiple, _nearest(side, multiple)) for side in (width, height))
            raise ConfigError(
                f"size: {width}x{height} is not in steps of {multiple} pixels; use "
                f"{'x'.join(map(str, sides))}"
            )
        return width, height


def parse_size(text: str) -> Size:
    """Return (width, height) from text like ``128x128``.

    Raises:
        ConfigError: not two whole numbers from 1 to `MAX_SIDE`.
    """
    match = re.fullmatch(r"\s*(\d{1,6})\s*[xX×]\s*(\d{1,6})\s*", text)
    if match is None:
        raise ConfigError(f"size: {text!r} is not WIDTHxHEIGHT; write it like 128x128")
    width, height = int(match[1]), int(match[2])
    for side in (width, height):
        _check_int("size", side, 1, MAX_SIDE)
    return width, height


def parse_optional_size(text: str | None) -> tuple[int | None, int | None]:
    """Return (width, height) from text like ``128x128``, or two None without text.

    Raises:
        ConfigError: see `parse_size`.
    """
    return (None, None) if text is None else parse_size(text)


def resolve_seed(seed: int) -> int:
    """Return a seed, a random one of 32 bits for -1.

    Raises:
        ConfigError: not a whole number from -1 to 2**63 - 1.
    """
    _check_int("seed", seed, RANDOM_SEED, MAX_SEED)
    return secrets.randbelow(2**32) if seed == RANDOM_SEED else seed


_MOST_IMAGES = 100_000
"""Images of one call; each has a job in memory before the first is drawn."""


def check_num_images(count: int) -> int:
    """Return the number of images per prompt.

    Raises:
        ConfigError: not a whole number from 1 to 100,000.
    """
    _check_int("num_images_per_prompt", count, 1, _MOST_IMAGES)
    return count


def _nearest(value: int, multiple: int) -> int:
    return (value + multiple // 2) // multiple * multiple


def _check_int(name: str, value: Any, low: int, high: int | None) -> None:
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if not is_int or not low <= value <= (math.inf if high is None else high):
        allowed = f"{low} or more" if high is None else f"{low} to {high}"
        raise ConfigError(f"{name}: {value!r} is not possible; use a whole number, {allowed}")


def _check_number(name: str, value: object, low: float, high: float) -> None:
    number = float(value) if isinstance(value, int | float) else math.nan
    if not low <= number <= high:
        raise ConfigError(
            f"{name}: {value!r} is not possible; use a number from {low:g} to {high:g}"
        )
