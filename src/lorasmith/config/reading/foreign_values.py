"""Values as other programs write them: ``fp16: float16``, ``AdamW8bit``, ``512,512``, lists."""

import math
import os
import re
import secrets
from typing import Any

from lorasmith.config.reading.read_toml import parse_value
from lorasmith.registries import OPTIMIZERS

_PRECISIONS = {
    "no": "fp32", "float32": "fp32", "float_32": "fp32", "float16": "fp16", "float_16": "fp16",
    "bfloat16": "bf16", "bfloat_16": "bf16",
}  # fmt: skip


def precision(value: Any) -> Any:
    """Take ``no``, ``float32``, ``BFLOAT_16`` and the like for fp32, fp16 and bf16."""
    if not isinstance(value, str):
        return value
    return _PRECISIONS.get(value.casefold(), value.casefold())


def optimizer(value: Any) -> Any:
    """Take ``AdamW8bit``, ``ADAMW_8BIT`` and the like."""
    if not isinstance(value, str) or value in OPTIMIZERS:
        return value
    plain = value.replace("_", "").replace("-", "")
    return plain if plain in OPTIMIZERS else value


def lr_scheduler(value: Any) -> Any:
    """Take ``COSINE`` in any case, and ``constant_with_warmup``: any schedule may warm up."""
    if not isinstance(value, str):
        return value
    return {"constant_with_warmup": "constant"}.get(value.casefold(), value)


def seed(value: Any) -> Any:
    """Take -1 for a random seed.

    Raises:
        ValueError: there are several processes, which would draw different ones.
    """
    if value not in (-1, "-1"):
        return value
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("several processes need the same seed; give one")
    return secrets.randbelow(2**32)


def resolution(value: Any) -> Any:
    """Take ``512,512``, ``512x512`` and ``[512, 512]`` for 512.

    Raises:
        ValueError: the sides differ.
    """
    if isinstance(value, str):
        sides = [side.strip() for side in re.split(r"[,x×]", value)]
    elif isinstance(value, list | tuple):
        sides = [str(side).strip() for side in value]
    else:
        return value
    if len(set(sides)) == 1:
        return sides[0]
    raise ValueError(
        f"give one number{_square_side(sides)}; wider and taller images keep their shapes with "
        "about as many pixels"
    )


def _square_side(sides: list[str]) -> str:
    """Return the side of a square of as many pixels, as a part of a sentence."""
    if len(sides) != 2 or not all(side.isdecimal() for side in sides):
        return ""
    return f", {math.isqrt(int(sides[0]) * int(sides[1]))} for as many pixels"


def text_encoder_lr(value: Any) -> Any:
    """Take kohya's ``[5e-5, 5e-5]`` for 5e-5.

    Raises:
        ValueError: the rates of the two text encoders differ.
    """
    if not isinstance(value, list | tuple) or not value:
        return value
    if all(rate == value[0] for rate in value):
        return value[0]
    raise ValueError(
        "one rate is for all text encoders; the second gets another with [[lora.overrides]], "
        f'targets = "text_encoder_2.*", learning_rate = {value[1]}'
    )


def optimizer_args(value: Any) -> Any:
    """Take kohya's list ``["betas=0.9,0.99", "eps=1e-8"]`` for a table."""
    if not isinstance(value, list | tuple):
        return value
    table = {}
    for item in value:
        name, _, text = str(item).partition("=")
        table[name.strip()] = parse_value(f"[{text}]" if "," in text else text.strip())
    return table
