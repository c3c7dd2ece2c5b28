"""Articles and plurals of short English noun phrases."""

import re
from collections.abc import Sequence

_PLURAL_WORDS = frozenset({"armor", "glasses", "headphones", "overalls", "pajamas", "sunglasses"})
"""Last words of phrases that take no article."""
_IRREGULAR = {
    "person": "people",
    "child": "children",
    "mouse": "mice",
    "goose": "geese",
    "tooth": "teeth",
    "foot": "feet",
    "leaf": "leaves",
    "knife": "knives",
    "wolf": "wolves",
    "elf": "elves",
    "sheep": "sheep",
    "fish": "fish",
    "deer": "deer",
}
_PERSONS = frozenset({"person", "man", "woman", "boy", "girl", "baby"})
_NO_NOUNS = frozenset({"up", "down", "away", "back", "done", "off"})
_HEAD_END = re.compile(
    r" (with|of|in|on|at|from|for|behind|facing|over|without|holding|wearing|and|under|to|not"
    r"|as|showing)\b"
)


def with_article(words: str) -> str:
    """Return a noun phrase with 'a' or 'an', unless it is a plural or 'armor'."""
    if words.split()[-1] in _PLURAL_WORDS:
        return words
    return f"an {words}" if re.match(r"[aeio]|umbr|ugly|hour|rc ", words) else f"a {words}"


def strip_article(words: str) -> str:
    """Return a noun phrase without 'a', 'an' or 'the' in front."""
    return re.sub(r"^(a|an|the) ", "", words)


def join_words(parts: Sequence[str]) -> str:
    """Return 'a', 'a and b' or 'a, b and c'."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def mend_article(phrase: str) -> str:
    """Return the first phrase of an emoji's caption with the article that a name in -s lacks.

    'person lifting weights' -> 'a person lifting weights'; 'a hourglass' -> 'an hourglass'.
    """
    if phrase.split()[0] in _PERSONS or phrase.startswith("a hour"):
        return with_article(strip_article(phrase))
    return phrase


def pluralize(phrase: str) -> str:
    """Return the plural of a phrase with its article, or '' where a rule would guess.

    'a red apple' -> 'red apples', 'a slice of pizza' -> 'slices of pizza', 'a person lifting
    weights' -> 'people lifting weights'.
    """
    noun = strip_article(phrase)
    if noun == phrase:
        return ""  # 'french fries', 'cooked rice'
    head, rest = _split_head(noun)
    *before, last = head.split()
    singular_in_s = re.search(r"(ss|us|is|glass|lens)$", last)
    if not last.isalpha() or len(last) < 2 or last in _NO_NOUNS:
        return ""
    if last.endswith("ed") or (last.endswith("s") and not singular_in_s):
        return ""
    if before and before[0] in ("woman", "man"):
        before[0] = _pluralize_word(before[0])  # 'women detectives'
    return " ".join([*before, _pluralize_word(last)]) + rest


def _split_head(noun: str) -> tuple[str, str]:
    first, _, following = noun.partition(" ")
    if first in _PERSONS and following.split(" ")[0].endswith("ing"):
        return first, f" {following}"
    end = _HEAD_END.search(noun)
    return (noun[: end.start()], noun[end.start() :]) if end else (noun, "")


def _pluralize_word(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith("man") and word != "human":
        return f"{word[:-3]}men"
    if re.search(r"(s|sh|ch|x|z)$", word):
        return f"{word}es"
    return f"{word[:-1]}ies" if re.search(r"[^aeiou]y$", word) else f"{word}s"
