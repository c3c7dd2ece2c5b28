r"""Where a trigger word (tag) stands in a text: the one answer that everything goes by.

A text is read as words and signs. A word is a run of letters, digits, marks and underscores; every
other character is a sign, and white space only separates. A tag occurs where its words and signs
follow each other in the text, and no letter or digit stands directly beside them: ``cat`` is not in
``catalog``, ``ink1`` not in ``ink12``, ``c++`` not in ``c++11``.

Capitals do not matter, nor how a character is encoded (composed or not, full width or not,
invisible format characters), nor whether brackets are escaped, as prompts want it: ``\(`` is ``(``.
"""

import re
import unicodedata
from functools import lru_cache
from typing import NamedTuple

ESCAPABLE = "()[]\\"
"""The characters that prompts escape with a backslash."""

_ESCAPED = re.compile(r"\\([()\[\]\\])")
_BRACKET = re.compile(r"[()\[\]\\]")

# Every character of a text has a class of one letter; units are found among the classes.
_WORD, _SIGN, _SPACE, _BACKSLASH, _ESCAPABLE_SIGN = "w", "s", " ", "b", "e"
_UNIT = re.compile(r"b[be]|w+|[sbe]")
_FIRST_EMOJI_SELECTOR, _LAST_EMOJI_SELECTOR = "\ufe00", "\ufe0f"


class _Unit(NamedTuple):
    """A word or a sign of a text."""

    text: str
    is_word: bool
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
    return tuple(unit.text for unit in _read_tag(tag))


def contains_tag(text: str, tag: str) -> bool:
    """Return whether a tag occurs in a text; a tag without words and signs does not."""
    return bool(find_tag(text, tag))


def find_tag(text: str, tag: str) -> list[range]:
    """Return every occurrence of a tag, as ranges of characters of the text.

    Args:
        text: a caption, or a prompt without its weights.
        tag: one or more words; see the module.
    """
    tag_units = _read_tag(tag)
    if not tag_units:
        return []
    folded = _fold(text)
    units = _read_units(folded)
    count, wanted = len(tag_units), [unit.text for unit in tag_units]
    found = []
    for start in range(len(units) - count + 1):
        match = units[start : start + count]
        if match[0].text != wanted[0] or [unit.text for unit in match] != wanted:
            continue
        if not _is_within_word(units, start, start + count):
            found.append(_source_range(folded, match[0].first, match[-1].last))
    return found


def unescape_brackets(text: str) -> str:
    r"""Return a text in which ``\(``, ``\)``, ``\[``, ``\]`` and ``\\`` lost their backslash."""
    return _ESCAPED.sub(r"\1", text)


def escape_brackets(text: str) -> str:
    r"""Return a text as a prompt has to say it, with ``\(`` for ``(``."""
    return _BRACKET.sub(lambda match: f"\\{match[0]}", text)


def _is_within_word(units: list[_Unit], start: int, stop: int) -> bool:
    """Return whether a word stands directly before or behind a part of the units."""
    before, behind = units[max(start - 1, 0) : start], units[stop : stop + 1]
    return any(unit.is_word and unit.last == units[start].first for unit in before) or any(
        unit.is_word and unit.first == units[stop - 1].last for unit in behind
    )


@lru_cache(maxsize=1024)
def _read_tag(tag: str) -> tuple[_Unit, ...]:
    return tuple(_read_units(_fold(tag)))


def _read_units(folded: _FoldedText) -> list[_Unit]:
    units = []
    for match in _UNIT.finditer(folded.classes):
        first, last = match.span()
        text = folded.characters[first:last]
        is_word = match[0][0] == _WORD
        units.append(_Unit(text if is_word else text[-1], is_word, first, last))
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
    if character in ESCAPABLE:
        return _ESCAPABLE_SIGN
    category = unicodedata.category(character)
    return _WORD if category[0] in "LNM" or category == "Pc" else _SIGN


_ASCII_CLASSES = {code: _classify(chr(code)) for code in range(128)}
