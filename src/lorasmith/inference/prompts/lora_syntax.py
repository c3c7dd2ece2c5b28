"""What ``<lora:NAME:...>`` in a prompt, and ``--lora``, say about a LoRA.

After the name: ``TE``, ``TE:UNET`` or the same by name, ``te=`` and ``unet=``; ``lbw=`` weights by
block; ``start=``, ``stop=`` or ``step=FIRST-LAST`` denoising steps.
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
    """A place in what a user wrote, for messages."""

    where: str
    """What was written: ``prompt``, an option."""
    column: int
    """Place of the first sign that is meant, from 1."""

    def shifted(self, signs: int) -> "TextPosition":
        """Return the place so many signs later."""
        return TextPosition(self.where, self.column + signs)

    def __str__(self) -> str:
        return f"{self.where}, column {self.column}"


@dataclass(frozen=True)
class LoraRequest:
    """A LoRA that somebody asks for."""

    name: str
    """File name without its suffix."""
    weight: float = 1.0
    """Strength; 1 is as trained, negative turns it round."""
    unet_weight: float | None = None
    """Strength in the U-Net where it is another; ``weight`` then is the text encoders'."""
    lbw: str = ""
    """Weights by block: a preset's name or numbers, see `parse_block_weights`."""
    start: int = 1
    """First denoising step that it is at work in; the first one of all is 1."""
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
        """Tell whether it is at work in a denoising step; the first is 1."""
        return self.start <= step and (self.stop is None or step <= self.stop)

    def __str__(self) -> str:
        """Return it as a prompt has it."""
        parts = [self.name, f"{self.weight:g}"]
        parts += [f"{self.unet_weight:g}"] if self.unet_weight is not None else []
        parts += [f"lbw={self.lbw}"] if self.lbw else []
        parts += [f"start={self.start}"] if self.start > 1 else []
        parts += [f"stop={self.stop}"] if self.stop is not None else []
        return f"<lora:{':'.join(parts)}>"


def parse_lora_request(inside: str, spot: TextPosition, how: str = SYNTAX_HINT) -> LoraRequest:
    """Take ``NAME:TE:UNET:te=0.5:unet=1:lbw=OUTD:start=2:stop=10:step=2-10`` apart.

    Args:
        inside: what stands between ``<lora:`` and ``>``.
        spot: where it begins.
        how: what to write instead, for messages.

    Raises:
        ConfigError: it is malformed, at which column; its name could leave the LoRA folder; a
            weight is no number from -10 to 10.
    """
    name, *rest = inside.split(":")
    check_name(name.strip(), str(spot))
    return parse_request_options(name.strip(), rest, spot.shifted(len(name) + 1), how)


def parse_request_options(
    name: str, parts: Iterable[str], spot: TextPosition, how: str = SYNTAX_HINT
) -> LoraRequest:
    """Return a mention of a name from what is behind it, split at colons.

    Raises:
        ConfigError: see `parse_mention`.
    """
    given: dict[str, tuple[str, TextPosition]] = {}
    for part in parts:
        here = spot.shifted(len(part) - len(part.lstrip()))
        key, equals, value = (one.strip() for one in part.partition("="))
        if not equals:
            key, value = _position(given, here, how), key
        elif key.lower() not in _KEYS:
            hint = did_you_mean(key, _KEYS) or f"; there are {', '.join(_KEYS)}"
            raise ConfigError(f"{here}: {key!r} is no setting of a LoRA{hint}")
        if key.lower() in given:
            raise ConfigError(f"{here}: {key.lower()} is given twice; leave one out")
        given[key.lower()] = value, here
        spot = spot.shifted(len(part) + 1)
    return _mention(name, given, how)


def merge_requests(mentions: Iterable[tuple[LoraRequest, TextPosition]]) -> tuple[LoraRequest, ...]:
    """Return mentions, those that differ in nothing but weights as one with the sum of them.

    Raises:
        ConfigError: a sum is beyond what a weight may be.
    """
    found: dict[LoraRequest, LoraRequest] = {}
    for mention, spot in mentions:
        key = replace(mention, weight=1.0, unet_weight=None)
        if key not in found:
            found[key] = mention
            continue
        where = f"{spot}: {str(mention)!r}, all mentions together"
        text = check_weight(where, found[key].weight + mention.weight)
        unet = check_weight(where, found[key].effective_unet_weight + mention.effective_unet_weight)
        found[key] = replace(mention, weight=text, unet_weight=None if unet == text else unet)
    return tuple(found.values())


def check_request(mention: LoraRequest, where: str) -> LoraRequest:
    """Return a mention that was put together in Python, if it is possible.

    Raises:
        ConfigError: a weight is not a number from -10 to 10, block weights are malformed, or steps
            are no whole numbers from 1 on.
    """
    how = "give a weight such as 0.8"
    text = check_weight(where, mention.weight, how)
    unet = check_weight(where, mention.effective_unet_weight, how)
    if mention.lbw:
        parse_block_weights(mention.lbw)
    for step in (mention.start, mention.start if mention.stop is None else mention.stop):
        if not isinstance(step, int) or isinstance(step, bool) or step < mention.start or step < 1:
            raise ConfigError(
                f"{where}: it cannot be at work in steps {mention.start} to {mention.stop}; "
                "the first step is 1"
            )
    return replace(mention, weight=text, unet_weight=None if unet == text else unet)


def check_name(name: str, where: str) -> None:
    """Refuse a name that could lead out of the LoRA folder.

    Raises:
        ConfigError: no name, or one with slashes, ``..`` or NUL.
    """
    if not name:
        raise ConfigError(f"{where}: the LoRA has no name; {SYNTAX_HINT}")
    if "\0" in name or "/" in name or "\\" in name or ".." in name:
        raise ConfigError(
            f"{where}: a LoRA name is a plain file name, without slashes, '..' or NUL; "
            "put the file into the LoRA folder or name that folder with --lora-dir"
        )


def check_weight(where: str, weight: str | float, how: str = SYNTAX_HINT) -> float:
    """Return a LoRA's weight as a number.

    Raises:
        ConfigError: not a number from -10 to 10.
    """
    try:
        number = float(weight)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {weight!r} is not a number; {how}") from error
    if not (math.isfinite(number) and abs(number) <= MAX_WEIGHT):
        raise ConfigError(
            f"{where}: weight {weight} is not between -{MAX_WEIGHT:g} and {MAX_WEIGHT:g}"
        )
    return number


def _position(given: dict[str, tuple[str, TextPosition]], here: TextPosition, how: str) -> str:
    """Return what a value without a name is, by what stands before it."""
    for key in ("te", "unet"):
        if list(given) == ["te", "unet"][: ("te", "unet").index(key)]:
            return key
    named = [key for key in given if key not in ("te", "unet")]
    if named:
        raise ConfigError(f"{here}: numbers without a name go before {named[0]}=; {how}")
    raise ConfigError(
        f"{here}: too many parts; after the weights for the text encoders and the U-Net come "
        "lbw=, start=, stop= or step="
    )


def _mention(name: str, given: dict[str, tuple[str, TextPosition]], how: str) -> LoraRequest:
    """Return a mention from its settings, each with where it stands."""
    numbers = {
        key: check_weight(str(spot), value, how)
        for key, (value, spot) in given.items()
        if key in ("te", "unet")
    }
    # What only the U-Net is told says nothing about the text encoders, which are as trained.
    text = numbers.get("te", 1.0)
    unet = numbers.get("unet", text)
    lbw, here = given.get("lbw", ("", TextPosition("", 0)))
    if "lbw" in given:
        try:
            parse_block_weights(lbw)
        except ConfigError as error:
            raise ConfigError(f"{here}: {error}") from error
    start, stop = _steps(given)
    return LoraRequest(name, text, None if unet == text else unet, lbw, start, stop)


def _steps(given: dict[str, tuple[str, TextPosition]]) -> tuple[int, int | None]:
    """Return the first and the last step."""
    if "step" in given:
        value, spot = given["step"]
        if "start" in given or "stop" in given:
            raise ConfigError(f"{spot}: step= says where to start and to stop; leave one out")
        both = re.fullmatch(r"(\d+)\s*-\s*(\d+)", value)
        if both is None:
            raise ConfigError(f"{spot}: step={value} is not FIRST-LAST; write it like step=5-10")
        start, stop = _step(both[1], spot), _step(both[2], spot)
    else:
        start = _step(*given["start"]) if "start" in given else 1
        if "stop" not in given:
            return start, None
        stop, spot = _step(*given["stop"]), given["stop"][1]
    if stop < start:
        raise ConfigError(f"{spot}: step {stop} comes before step {start}; turn them round")
    return start, stop


def _step(value: str, spot: TextPosition) -> int:
    if not re.fullmatch(r"\d{1,6}", value) or int(value) < 1:
        raise ConfigError(f"{spot}: {value!r} is no step; use a whole number, the first step is 1")
    return int(value)
