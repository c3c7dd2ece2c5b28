"""The settings of one call that draws pictures, checked before anything heavy is imported."""

import math
import re
from dataclasses import dataclass, fields
from typing import TypedDict

from lorasmith.core.errors import ConfigError, did_you_mean
from lorasmith.inference.samplers import check_sampler

MAX_STEPS = 1000
"""Stable Diffusion is trained on 1000 noise levels; there are no more steps to take."""
MAX_SIDE = 8192
"""Longest side in pixels that is tried at all."""

_LEAST_STRENGTH = 1.0 / MAX_STEPS

Size = tuple[int, int]


class SamplingKeywords(TypedDict, total=False):
    """The fields of `SamplingOptions` as keywords of a call."""

    negative_prompt: str
    num_inference_steps: int
    guidance_scale: float
    size: Size | str | None
    sampler: str
    clip_skip: int
    guidance_rescale: float
    batch_size: int
    gate: bool
    strength: float | None


@dataclass(frozen=True)
class SamplingOptions:
    """How pictures are drawn.

    Raises:
        ConfigError: on construction, where a value is out of range; the field is named.
    """

    negative_prompt: str = ""
    """What the pictures should not show."""
    num_inference_steps: int = 20
    """Denoising steps, 1 to 1000."""
    guidance_scale: float = 5.0
    """Classifier-free guidance scale (arXiv:2207.12598); 1 is none and takes half the time."""
    size: Size | str | None = None
    """Width and height in pixels, or ``"128x128"``; None is the size the model was trained at."""
    sampler: str = "ddim"
    """One of `lorasmith.inference.samplers.SAMPLERS`."""
    clip_skip: int = 1
    """Which text layer is used, counted from the last (1), as A1111 counts."""
    guidance_rescale: float = 0.0
    """Share of the rescaled guidance, phi in eq. 16 of arXiv:2305.08891; 0 is none."""
    batch_size: int = 4
    """Pictures drawn at once. It changes speed and memory, never the pictures."""
    gate: bool = True
    """Whether LoRAs that are named wait for their tags; those of a library always do."""
    strength: float | None = None
    """Share of the steps that are taken on a given picture, above 0 to 1: 1 leaves nothing of it.
    None is 1 under a mask, 0.3 for the SDXL refiner, 0.75 otherwise."""

    def __post_init__(self) -> None:
        _whole("num_inference_steps (--steps)", self.num_inference_steps, 1, MAX_STEPS)
        _whole("batch_size", self.batch_size, 1, None)
        _whole("clip_skip", self.clip_skip, 1, None)
        _within("guidance_scale (--guidance)", self.guidance_scale, 0.0, 1000.0)
        _within("guidance_rescale", self.guidance_rescale, 0.0, 1.0)
        if self.strength is not None:
            _within("strength", self.strength, _LEAST_STRENGTH, 1.0)
        check_sampler(self.sampler)
        if self.size is not None:
            object.__setattr__(self, "size", parse_size(self.size))

    @classmethod
    def of(cls, keywords: SamplingKeywords) -> "SamplingOptions":
        """Build the options from a call's keywords.

        Raises:
            ConfigError: a keyword is unknown (close matches are named) or out of range.
        """
        known = [field.name for field in fields(cls)]
        unknown = [name for name in keywords if name not in known]
        if unknown:
            close = did_you_mean(unknown[0], known)
            raise ConfigError(
                f"unknown option {unknown[0]!r}{close or '; use ' + ', '.join(known)}"
            )
        return cls(**keywords)

    def size_for(self, default: int, multiple: int) -> Size:
        """Return (width, height) in pixels for a model.

        Args:
            default: the side that stands for ``size=None``.
            multiple: pixels per latent; both sides must be multiples of it.

        Raises:
            ConfigError: a side is not a multiple; the nearest possible size is named.
        """
        if self.size is None:
            return default, default
        width, height = parse_size(self.size)
        if width % multiple or height % multiple:
            near = "x".join(str(max(multiple, _nearest(n, multiple))) for n in (width, height))
            raise ConfigError(
                f"size: {width}x{height} is not in steps of {multiple} pixels; use {near}"
            )
        return width, height


def parse_size(value: Size | str) -> Size:
    """Return (width, height) from a pair or from text like ``128x128``.

    Raises:
        ConfigError: not two whole numbers from 1 to `MAX_SIDE`.
    """
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d{1,6})\s*[xX×]\s*(\d{1,6})\s*", value)
        pair: Size | None = (int(match[1]), int(match[2])) if match else None
    else:
        pair = value
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ConfigError(f"size: {value!r} is not WIDTHxHEIGHT; write it like 128x128")
    for side in pair:
        _whole("size", side, 1, MAX_SIDE)
    return pair[0], pair[1]


def check_seed(seed: int) -> int:
    """Return the seed if a random number generator can take it.

    Raises:
        ConfigError: not a whole number from 0 to 2**63 - 1.
    """
    _whole("seed", seed, 0, 2**63 - 1)
    return seed


def check_count(count: int) -> int:
    """Return the number of pictures per prompt.

    Raises:
        ConfigError: not a whole number of at least 1.
    """
    _whole("n", count, 1, None)
    return count


def _nearest(value: int, multiple: int) -> int:
    return (value + multiple // 2) // multiple * multiple


def _whole(name: str, value: object, low: int, high: int | None) -> None:
    wanted = f"{low} or more" if high is None else f"{low} to {high}"
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not (
        isinstance(value, int) and is_whole and low <= value and (high is None or value <= high)
    ):
        raise ConfigError(f"{name}: {value!r} is not possible; use a whole number, {wanted}")


def _within(name: str, value: object, low: float, high: float) -> None:
    number = float(value) if isinstance(value, int | float) else math.nan
    if not low <= number <= high:
        raise ConfigError(
            f"{name}: {value!r} is not possible; use a number from {low:g} to {high:g}"
        )
