"""What ``<lora:NAME:...>`` in a prompt, and ``--lora``, say about a LoRA.

After the name: ``TE``, ``TE:UNET`` or the same by name, ``te=`` and ``unet=``; ``lbw=`` block
weights; ``start=``, ``stop=`` or ``step=FIRST-LAST`` denoising steps.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from lorasmith.adapters.naming.block_weights import parse_block_weights
from lorasmith.core.errors import ConfigError, did_you_mean

MAX_WEIGHT = 10.0
SYNTAX_HINT = "write <lora:NAME> or <lora:NAME:WEIGHT>"

_KEYS = ("te", "unet", "lbw", "start", "stop", "step")


@dataclass(frozen=True)
class TextPosition:
    """A position in what a user wrote, for messages."""

    source: str
    """What was written: ``prompt``, an option."""
    column: int
    """From 1."""

    def shifted(self, characters: int) -> "TextPosition":
        """Return the position so many characters later."""
        return TextPosition(self.source, self.column + characters)

    def __str__(self) -> str:
        return f"{self.source}, column {self.column}"


@dataclass(frozen=True)
class LoraRequest:
    """A LoRA that a user asks for, and how strongly."""

    name: str
    """File name without its suffix."""
    weight: float = 1.0
    """Strength; 1 is as trained, a negative one inverts the effect."""
    unet_weight: float | None = None
    """Strength in the U-Net where it differs; ``weight`` then is the text encoders'."""
    lbw: str = ""
    """Block weights: a preset's name or numbers, see `parse_block_weights`."""
    start: int = 1
    """First denoising step that it is active in; the first one of all is 1."""
    stop: int | None = None
    """Last one; None is the last one of all."""

    @property
    def effective_unet_weight(self) -> float:
        """Strength in the U-Net."""
        return self.weight if self.unet_weight is None else self.unet_weight

    @property
    def is_zero(self) -> bool:
        """Whether it has no strength anywhere."""
        return self.weight == 0 and self.effective_unet_weight == 0

    def is_active_at(self, step: int) -> bool:
        """Tell whether it is active in a denoising step; the first is 1."""
        return self.start <= step and (self.stop is None or step <= self.stop)

    def __str__(self) -> str:
        """Return it as it is written in a prompt."""
        parts = [self.name, f"{self.weight:g}"]
        parts += [f"{self.unet_weight:g}"] if self.unet_weight is not None else []
        parts += [f"lbw={self.lbw}"] if self.lbw else []
        parts += [f"start={self.start}"] if self.start > 1 else []
        parts += [f"stop={self.stop}"] if self.stop is not None else []
        return f"<lora:{':'.join(parts)}>"


_Options = dict[str, tuple[str, TextPosition]]
"""The values of the keys that are given, each with its position."""


def parse_lora_request(inside: str, position: TextPosition, hint: str = SYNTAX_HINT) -> LoraRequest:
    """Parse ``NAME:TE:UNET:te=0.5:unet=1:lbw=OUTD:start=2:stop=10:step=2-10``.

    Args:
        inside: what stands between ``<lora:`` and ``>``.
        position: where it begins.
        hint: what to write instead, for messages.

    Raises:
        ConfigError: it is malformed, at which column; its name could leave the LoRA folder; a
            weight is no number from -10 to 10.
    """
    name, *parts = inside.split(":")
    check_name(name.strip(), str(position))
    return parse_request_options(name.strip(), parts, position.shifted(len(name) + 1), hint)


def parse_request_options(
    name: str, parts: Iterable[str], position: TextPosition, hint: str = SYNTAX_HINT
) -> LoraRequest:
    """Return the request for a name from what follows it, split at colons.

    Raises:
        ConfigError: see `parse_lora_request`.
    """
    options: _Options = {}
    for part in parts:
        part_position = position.shifted(len(part) - len(part.lstrip()))
        key, equals, value = (text.strip() for text in part.partition("="))
        if not equals:
            key, value = _positional_key(options, part_position, hint), key
        elif key.lower() not in _KEYS:
            suggestion = did_you_mean(key, _KEYS) or f"; there are {', '.join(_KEYS)}"
            raise ConfigError(f"{part_position}: {key!r} is no setting of a LoRA{suggestion}")
        if key.lower() in options:
            raise ConfigError(f"{part_position}: {key.lower()} is given twice; leave one out")
        options[key.lower()] = value, part_position
        position = position.shifted(len(part) + 1)
    return _make_request(name, options, hint)


def merge_requests(
    requests: Iterable[tuple[LoraRequest, TextPosition]],
) -> tuple[LoraRequest, ...]:
    """Add up the weights of requests that differ in nothing else.

    Raises:
        ConfigError: a sum is beyond what a weight may be.
    """
    merged: dict[LoraRequest, LoraRequest] = {}
    for request, position in requests:
        key = replace(request, weight=1.0, unet_weight=None)
        if key not in merged:
            merged[key] = request
            continue
        label = f"{position}: {str(request)!r}, all mentions together"
        weight = check_weight(label, merged[key].weight + request.weight)
        unet_weight = check_weight(
            label, merged[key].effective_unet_weight + request.effective_unet_weight
        )
        merged[key] = _with_weights(request, weight, unet_weight)
    return tuple(merged.values())


def check_request(request: LoraRequest, label: str) -> LoraRequest:
    """Return a request that was made in Python, if it is possible.

    Raises:
        ConfigError: a weight is not a number from -10 to 10, block weights are malformed, or steps
            are no whole numbers from 1 on.
    """
    hint = "give a weight such as 0.8"
    weight = check_weight(label, request.weight, hint)
    unet_weight = check_weight(label, request.effective_unet_weight, hint)
    if request.lbw:
        parse_block_weights(request.lbw)
    for step in (request.start, request.start if request.stop is None else request.stop):
        if not isinstance(step, int) or isinstance(step, bool) or step < request.start or step < 1:
            raise ConfigError(
                f"{label}: it cannot be active in steps {request.start} to {request.stop}; "
                "the first step is 1"
            )
    return _with_weights(request, weight, unet_weight)


def check_name(name: str, label: str) -> None:
    """Refuse a name that could lead out of the LoRA folder.

    Raises:
        ConfigError: no name, or one with slashes, ``..`` or NUL.
    """
    if not name:
        raise ConfigError(f"{label}: the LoRA has no name; {SYNTAX_HINT}")
    if "\0" in name or "/" in name or "\\" in name or ".." in name:
        raise ConfigError(
            f"{label}: a LoRA name is a plain file name, without slashes, '..' or NUL; "
            "put the file into the LoRA folder or name that folder with --lora-dir"
        )


def check_weight(label: str, weight: str | float, hint: str = SYNTAX_HINT) -> float:
    """Return a LoRA's weight as a number.

    Raises:
        ConfigError: not a number from -10 to 10.
    """
    try:
        number = float(weight)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{label}: {weight!r} is not a number; {hint}") from error
    if not (math.isfinite(number) and abs(number) <= MAX_WEIGHT):
        raise ConfigError(
            f"{label}: weight {weight} is not between -{MAX_WEIGHT:g} and {MAX_WEIGHT:g}"
        )
    return number


def _with_weights(request: LoraRequest, weight: float, unet_weight: float) -> LoraRequest:
    return replace(
        request, weight=weight, unet_weight=None if unet_weight == weight else unet_weight
    )


def _positional_key(options: _Options, position: TextPosition, hint: str) -> str:
    """Return the key of a value without one, by what stands before it."""
    keys = list(options)
    if keys in ([], ["te"]):
        return "unet" if keys else "te"
    named_keys = [key for key in keys if key not in ("te", "unet")]
    if named_keys:
        raise ConfigError(f"{position}: numbers without a name go before {named_keys[0]}=; {hint}")
    raise ConfigError(
        f"{position}: too many parts; after the weights for the text encoders and the U-Net come "
        "lbw=, start=, stop= or step="
    )


def _make_request(name: str, options: _Options, hint: str) -> LoraRequest:
    weights = {
        key: check_weight(str(position), value, hint)
        for key, (value, position) in options.items()
        if key in ("te", "unet")
    }
    # A weight for the U-Net alone leaves the text encoders as trained.
    weight = weights.get("te", 1.0)
    unet_weight = weights.get("unet", weight)
    lbw, position = options.get("lbw", ("", TextPosition("", 0)))
    if "lbw" in options:
        try:
            parse_block_weights(lbw)
        except ConfigError as error:
            raise ConfigError(f"{position}: {error}") from error
    start, stop = _parse_steps(options)
    return _with_weights(LoraRequest(name, lbw=lbw, start=start, stop=stop), weight, unet_weight)


def _parse_steps(options: _Options) -> tuple[int, int | None]:
    """Return the first and the last step."""
    if "step" in options:
        value, position = options["step"]
        if "start" in options or "stop" in options:
            raise ConfigError(f"{position}: step= says where to start and to stop; leave one out")
        match = re.fullmatch(r"(\d+)\s*-\s*(\d+)", value)
        if match is None:
            raise ConfigError(
                f"{position}: step={value} is not FIRST-LAST; write it like step=5-10"
            )
        start, stop = _parse_step(match[1], position), _parse_step(match[2], position)
    else:
        start = _parse_step(*options["start"]) if "start" in options else 1
        if "stop" not in options:
            return start, None
        stop, position = _parse_step(*options["stop"]), options["stop"][1]
    if stop < start:
        raise ConfigError(f"{position}: step {stop} comes before step {start}; swap them")
    return start, stop


def _parse_step(value: str, position: TextPosition) -> int:
    if not re.fullmatch(r"\d{1,6}", value) or int(value) < 1:
        raise ConfigError(
            f"{position}: {value!r} is no step; use a whole number, the first step is 1"
        )
    return int(value)
