"""Converting images with an embedded colour profile (ICC) to sRGB."""

import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

_MAX_PROFILE_BYTES = 4 << 20
"""Profiles of printers have 2 MiB at most; those of cameras and screens a few KiB."""
_MAX_SRGB_DIFFERENCE = 2
"""Shades of 255 by which a profile may differ from sRGB and count as sRGB: there are several
roundings of it, and to convert them would only add noise."""
_GREY_MODES = frozenset({"1", "L", "LA", "La"})
_RGB_MODES = frozenset({*_GREY_MODES, "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr"})
_MODES_OF_SPACE = {"RGB": _RGB_MODES, "GRAY": _GREY_MODES, "CMYK": frozenset({"CMYK"})}
"""Which modes of Pillow a profile of a colour space goes with."""
_SOURCE_MODE = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_PROFILE_ERRORS = (
    ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError, ImportError, MemoryError,
)  # fmt: skip


@dataclass(frozen=True)
class SrgbImage:
    """An image after its colour profile was applied."""

    image: Image.Image
    """In sRGB, with the alpha it had; the same object where nothing was to do."""
    is_converted: bool = False
    """Whether the colours were converted."""
    problem: str = ""
    """Why the profile cannot be used; empty where it can or there is none."""


@dataclass(frozen=True)
class _Profile:
    """What a profile is for."""

    space: str
    """``RGB``, ``GRAY``, ``CMYK`` or another signature of the ICC."""
    is_srgb: bool


class _ProfileError(Exception):
    """Why a profile cannot be used."""


def convert_to_srgb(image: Image.Image) -> SrgbImage:
    """Convert the colours of an image with a colour profile to sRGB.

    Without a profile, or with one that is sRGB, an image stays as it is; also, with a problem,
    where the profile cannot be used.
    """
    try:
        profile = _usable_profile(image)
        if profile is None:
            return SrgbImage(image)
        return SrgbImage(_apply(image, profile), is_converted=True)
    except _ProfileError as error:
        return SrgbImage(image, problem=str(error))
    except _PROFILE_ERRORS as error:
        return SrgbImage(image, problem=_short(error))


def needs_conversion(image: Image.Image) -> bool:
    """Whether ``convert_to_srgb`` changes colours; the pixels need not be decoded yet."""
    try:
        return _usable_profile(image) is not None
    except _ProfileError:
        return False


def _usable_profile(image: Image.Image) -> _Profile | None:
    """Return the profile to convert from, or None where there is nothing to do.

    Raises:
        _ProfileError: there is a profile, and it cannot be used.
    """
    encoded = image.info.get("icc_profile")
    if not encoded:
        return None
    if not isinstance(encoded, bytes) or len(encoded) > _MAX_PROFILE_BYTES:
        raise _ProfileError("larger than 4 MiB")
    profile = _inspect(encoded)
    if isinstance(profile, str):
        raise _ProfileError(profile)
    # Wide grey is scaled to 8 bits before.
    mode = "L" if image.mode in ("I", "F") or image.mode.startswith("I;16") else image.mode
    if mode not in _MODES_OF_SPACE[profile.space]:
        raise _ProfileError(f"it is for {profile.space} and the image is {image.mode}")
    return None if profile.is_srgb else profile


@lru_cache(maxsize=16)
def _inspect(encoded: bytes) -> _Profile | str:
    """Return what a profile is for, or why it cannot be used."""
    try:
        space = _open(encoded).profile.xcolor_space.strip()
        if space not in _SOURCE_MODE:
            return f"it is for {space!r} colours"
        return _Profile(space, _is_srgb(encoded, space))
    except _PROFILE_ERRORS as error:
        return _short(error)


def _is_srgb(encoded: bytes, space: str) -> bool:
    if space == "CMYK":
        return False
    if space == "GRAY":
        probe = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    else:
        steps = np.linspace(0, 255, 6).round().astype(np.uint8)
        colors = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
        probe = Image.fromarray(colors)
    converted = np.asarray(_transform(probe, encoded), dtype=np.int16)
    original = np.asarray(probe.convert("RGB"), dtype=np.int16)
    return int(np.abs(converted - original).max()) <= _MAX_SRGB_DIFFERENCE


def _apply(image: Image.Image, profile: _Profile) -> Image.Image:
    encoded = image.info["icc_profile"]
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    source = image.convert(_SOURCE_MODE[profile.space])
    converted = _transform(source, encoded)
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def _transform(image: Image.Image, encoded: bytes) -> Image.Image:
    srgb = ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(_open(encoded), srgb, image.mode, "RGB")
    converted = ImageCms.applyTransform(image, transform)
    if converted is None:  # only in place
        raise ValueError("no image")
    return converted


def _open(encoded: bytes) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(io.BytesIO(encoded))


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__
