r"""Where a trigger word (tag) stands in a text: the one answer that everything goes by.

A text is read as words and signs. A word is a run of letters, digits, marks and underscores; every
other character is a sign, and white space only separates. A tag occurs where its words and signs
follow each other in the text, and no letter or digit stands directly beside them: ``cat`` is not in
``catalog``, ``ink1`` not in ``ink12``, ``c++`` not in ``c++11``.

Capitals do not matter, nor how a character is encoded (composed or not, full width or not,
invisible format characters). Brackets do not matter either, because prompts use them for emphasis:
``ganyu (genshin)`` is where ``ganyu genshin``, ``ganyu (genshin:1.2)`` or ``ganyu \(genshin\)`` is.
"""

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from itertools import takewhile
from typing import NamedTuple

BRACKETS = "()[]"
"""What prompts escape with a backslash, besides the backslash itself."""

_ESCAPED = re.compile(r"\\([()\[\]\\])")
_TO_ESCAPE = re.compile(r"[()\[\]\\]")

# Every character of a text has a class of one letter; units are found among the classes.
_WORD, _SIGN, _SPACE, _BACKSLASH, _BRACKET_CLASS = "w", "s", " ", "\\", "b"
_UNIT = re.compile(r"\\[\\b]|w+|[sb\\]")
_FIRST_EMOJI_SELECTOR, _LAST_EMOJI_SELECTOR = "\ufe00", "\ufe0f"


class _Unit(NamedTuple):
    """A word or a sign of a text."""

    text: str
    kind: str
    """The class of its characters: word, sign or bracket."""
    first: int
    """Position among the folded characters."""
    last: int
    """Position behind its last one."""


class _FoldedText(NamedTuple):
    """A text without differences of case and encoding."""

    characters: str
    classes: str
    """The class of each character."""
    ranges: list[range]
    """Where each character comes from in the text; empty where the positions are the same."""


def split_tag(tag: str) -> tuple[str, ...]:
    """Return the words and signs of a tag. Tags that have the same are the same tag."""
    return tuple(unit.text for unit in _read_units(_fold(tag)) if unit.kind != _BRACKET_CLASS)


def contains_tag(text: str, tag: str) -> bool:
    """Return whether a tag occurs in a text; a tag without words and signs does not."""
    return bool(find_tag(text, tag))


def find_tag(text: str, tag: str) -> list[range]:
    """Return every occurrence of a tag, as ranges of characters of the text.

    A range includes the brackets around the tag that belong to it.

    Args:
        text: a caption, or a prompt without its weights.
        tag: one or more words; see the module.
    """
    wanted, opening, closing = _read_tag(tag)
    if not wanted:
        return []
    folded = _fold(text)
    units = _read_units(folded)
    indices = [index for index, unit in enumerate(units) if unit.kind != _BRACKET_CLASS]
    places = []
    for start in range(len(indices) - len(wanted) + 1):
        match = indices[start : start + len(wanted)]
        if any(units[i].text != word for i, word in zip(match, wanted, strict=True)):
            continue
        first, last = match[0], match[-1]
        if _is_within_word(units, first, last):
            continue
        first -= _count_brackets(reversed(units[max(first - opening, 0) : first]))
        last += _count_brackets(units[last + 1 : last + 1 + closing])
        places.append(_source_range(folded, units[first].first, units[last].last))
    return places


def unescape_brackets(text: str) -> str:
    r"""Return a text in which ``\(``, ``\)``, ``\[``, ``\]`` and ``\\`` lost their backslash."""
    return _ESCAPED.sub(r"\1", text)


def escape_brackets(text: str) -> str:
    r"""Return a text as a prompt has to say it, with ``\(`` for ``(``."""
    return _TO_ESCAPE.sub(lambda match: f"\\{match[0]}", text)


def _is_within_word(units: list[_Unit], first: int, last: int) -> bool:
    """Return whether a word stands directly before or behind a part of the units."""
    before, behind = units[max(first - 1, 0) : first], units[last + 1 : last + 2]
    return any(unit.kind == _WORD and unit.last == units[first].first for unit in before) or any(
        unit.kind == _WORD and unit.first == units[last].last for unit in behind
    )


def _count_brackets(units: Iterable[_Unit]) -> int:
    """Return how many brackets come first."""
    return sum(1 for _ in takewhile(lambda unit: unit.kind == _BRACKET_CLASS, units))


@lru_cache(maxsize=1024)
def _read_tag(tag: str) -> tuple[tuple[str, ...], int, int]:
    """Return a tag's words and signs, and how many brackets are before and behind all of them."""
    units = _read_units(_fold(tag))
    return split_tag(tag), _count_brackets(units), _count_brackets(reversed(units))


def _read_units(folded: _FoldedText) -> list[_Unit]:
    units = []
    for match in _UNIT.finditer(folded.classes):
        first, last = match.span()
        text, kind = folded.characters[first:last], match[0][-1]
        if kind != _WORD:
            text = text[-1]  # an escaped sign is the sign
        units.append(_Unit(text, _SIGN if kind == _BACKSLASH else kind, first, last))
    return units


def _source_range(folded: _FoldedText, first: int, last: int) -> range:
    if not folded.ranges:
        return range(first, last)
    return range(folded.ranges[first].start, folded.ranges[last - 1].stop)


def _fold(text: str) -> _FoldedText:
    if text.isascii():
        return _FoldedText(text.lower(), text.translate(_ASCII_CLASSES), [])
    characters, classes, ranges = [], [], []
    start = 0
    for stop in range(1, len(text) + 1):
        if stop < len(text) and unicodedata.combining(text[stop]):
            continue  # a mark belongs to the character before it, and marks have a fixed order
        folded, folded_classes = _fold_cluster(text[start:stop])
        characters.append(folded)
        classes.append(folded_classes)
        ranges += [range(start, stop)] * len(folded)
        start = stop
    return _FoldedText("".join(characters), "".join(classes), ranges)


@lru_cache(maxsize=4096)
def _fold_cluster(cluster: str) -> tuple[str, str]:
    """Return a character with its marks in its one folded form, and the classes of that."""
    lower = map(_lower, unicodedata.normalize("NFKD", cluster))
    characters = unicodedata.normalize("NFKD", "".join(lower))
    visible = [character for character in characters if not _is_ignored(character)]
    return "".join(visible), "".join(map(_classify, visible))


def _lower(character: str) -> str:
    """Return the lower case of a character; both lower sigmas are the same."""
    folded = character.casefold()
    return folded if len(folded) == 1 else character.lower()


def _is_ignored(character: str) -> bool:
    is_selector = _FIRST_EMOJI_SELECTOR <= character <= _LAST_EMOJI_SELECTOR
    return is_selector or unicodedata.category(character) == "Cf"


def _classify(character: str) -> str:
    if character.isspace():
        return _SPACE
    if character == "\\":
        return _BACKSLASH
    if character in BRACKETS:
        return _BRACKET_CLASS
    category = unicodedata.category(character)
    return _WORD if category[0] in "LNM" or category == "Pc" else _SIGN


_ASCII_CLASSES = {code: _classify(chr(code)) for code in range(128)}
