r"""Emphasis in prompts: ``(word)``, ``(word:1.2)``, ``[word]``, ``BREAK`` and ``\(``.

Round brackets multiply a weight by 1.1 or by the number at their end, square ones divide it by 1.1;
brackets within brackets multiply. BREAK begins a new chunk.
"""

import math
import re
from dataclasses import dataclass
from typing import NoReturn

from lorasmith.core.errors import ConfigError
from lorasmith.inference.prompts.lora_syntax import TextPosition
from lorasmith.models.text.prompt_spans import (
    EMPTY_PROMPT,
    PromptSection,
    PromptSpan,
    WeightedPrompt,
)

STRONGER = 1.1
MAX_EMPHASIS = 10.0

_BREAK = re.compile(r"\bBREAK\b")
_NUMBER = re.compile(r":\s*(?P<number>[^:]*?)\s*$")
_NUMERIC = re.compile(r"[-+.\d][-+.\deE]*")
"""What is meant to be a number, though it may be none."""
_SIGNS = "()[]\\"
_PARTNER = {")": "(", "]": "["}


@dataclass
class _Open:
    """A bracket that is open."""

    sign: str
    spot: TextPosition
    first: int
    """The first piece inside."""


@dataclass
class _Piece:
    """Text of one weight; of a BREAK, None."""

    text: str | None
    weight: float = 1.0


class _Reader:
    """Reads a text sign by sign."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._pieces: list[_Piece] = []
        self._text = ""
        self._open: list[_Open] = []

    def read(self, text: str) -> list[_Piece]:
        """Return the pieces of a text."""
        place = 0
        while place < len(text):
            sign, spot = text[place], TextPosition(self._where, place + 1)
            if sign == "\\" and text[place + 1 : place + 2] in set(_SIGNS):
                self._text += text[place + 1]
                place += 2
                continue
            if sign in "([":
                self._flush()
                self._open.append(_Open(sign, spot, len(self._pieces)))
            elif sign in ")]":
                self._close(sign, spot)
            elif found := _BREAK.match(text, place):
                self._flush()
                self._pieces.append(_Piece(None))
                place = found.end()
                continue
            else:
                self._text += sign
            place += 1
        if self._open:
            _refuse(self._open[-1].spot, self._open[-1].sign, "is not closed")
        self._flush()
        return self._pieces

    def _close(self, sign: str, spot: TextPosition) -> None:
        if not self._open or self._open[-1].sign != _PARTNER[sign]:
            _refuse(spot, sign, "closes nothing")
        opened = self._open.pop()
        factor = self._stronger(spot) if sign == ")" else self._weaker(spot)
        self._flush()
        for piece in self._pieces[opened.first :]:
            piece.weight *= factor

    def _stronger(self, spot: TextPosition) -> float:
        """Return what round brackets that end here multiply by, and take the number away."""
        found = _NUMBER.search(self._text)
        if found is None or not _NUMERIC.fullmatch(found["number"]):
            return STRONGER
        here = spot.shifted(found.start("number") - len(self._text))
        try:
            number = float(found["number"])
        except ValueError as error:
            raise ConfigError(
                f"{here}: {found['number']!r} is not a number; write it like (word:1.2)"
            ) from error
        if not math.isfinite(number) or abs(number) > MAX_EMPHASIS:
            raise ConfigError(
                f"{here}: emphasis {number:g} is not between -{MAX_EMPHASIS:g} and {MAX_EMPHASIS:g}"
            )
        self._text = self._text[: found.start()]
        return number

    def _weaker(self, spot: TextPosition) -> float:
        """Return what square brackets that end here multiply by."""
        found = _NUMBER.search(self._text)
        if "|" in self._text or (found and re.fullmatch(r"[\d.]+", found["number"])):
            raise ConfigError(
                f"{spot}: prompts that change on the way ([from:to:0.5], [one|other]) are not "
                r"supported; write (word:0.8) for a weight, \[ and \] for the signs themselves"
            )
        return 1 / STRONGER

    def _flush(self) -> None:
        if self._text:
            self._pieces.append(_Piece(self._text))
        self._text = ""


def parse_emphasis(text: str, where: str) -> tuple[str, WeightedPrompt]:
    r"""Return what a text says without its marks, and its pieces with their weights.

    Signs of brackets that are meant themselves are written ``\(``, ``\)``, ``\[``, ``\]``. In the
    first result pieces are separate words, as they are to the tokenizer, and BREAK is left in.

    Args:
        text: what was written.
        where: what it is called in messages.

    Raises:
        ConfigError: a bracket has no partner or a weight is no number from -10 to 10; tells the
            column.
    """
    sections: list[list[_Piece]] = [[]]
    for piece in _Reader(where).read(text):
        if piece.text is None:
            sections.append([])
        else:
            sections[-1].append(piece)
    told = " BREAK ".join(_joined(some).strip() for some in sections) if sections[1:] else None
    passage = tuple(filter(None, (_section(some) for some in sections))) or EMPTY_PROMPT
    return _joined(sections[0]) if told is None else told, passage


def _section(pieces: list[_Piece]) -> PromptSection:
    """Return a section, or nothing if it has no words."""
    return tuple(
        PromptSpan(one.text, one.weight) for one in pieces if one.text and one.text.strip()
    )


def _joined(pieces: list[_Piece]) -> str:
    """Return the text of pieces, with a space where two would become one word."""
    whole = ""
    for piece in pieces:
        text = piece.text or ""
        apart = whole and text and not whole[-1].isspace() and not text[0].isspace()
        whole += f" {text}" if apart else text
    return whole


def _refuse(spot: TextPosition, sign: str, what: str) -> NoReturn:
    raise ConfigError(rf"{spot}: {sign!r} {what}; write \{sign} for the sign itself")
