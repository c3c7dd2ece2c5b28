"""Captions: one plain sentence for each image, and about six variants."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from catalogue import Icon, stable_hash
from colours import COLOURS
from unicode_table import Emoji

MOST_KEYWORDS = 10
MOST_ALIASES = 2
KEYWORDS_IN_CAPTION = 3

_SIGN_GROUPS = {"symbols", "flags", "components"}
_COLOUR_PREFIX = re.compile(
    r"^(red|blue|green|orange|yellow|purple|brown|pink|grey|light blue) (?=\w)"
)
# The first such word ends the part of a name that decides about its article.
_CONNECTIVE = re.compile(
    r"\b(with|of|in|on|at|behind|facing|and|over|from|for|without|holding|wearing)\b"
)
# Names that take no article when they stand alone or before one other word ("shaved ice").
_UNCOUNTED_WORDS = (
    "american bacon badminton bento bread butter cheese cooked coral curry fog garlic ginger "
    "hair honey men musical new oden open people rock rugby sake salt shaved soap sushi "
    "tennis three two volleyball water wind women wood"
)
_UNCOUNTED = frozenset(_UNCOUNTED_WORDS.split())
# The same, but only alone: "fire" and "money with wings", yet "a fire engine" and "a money bag".
_UNCOUNTED_ALONE = frozenset({"baseball", "basketball", "fire", "ice", "money"})
_SINGULAR_IN_S = re.compile(r"(ss|us|is|glass|bus|lens|series|chess)$")
_NO_ARTICLE_ENDINGS = frozenset({"up", "down", "away", "broccoli"})
_AN = re.compile(r"[aeio]|umbr|under|unamused")


@dataclass(frozen=True)
class Caption:
    """The captions of one image."""

    name: str
    """Short name as in Unicode, or the icon's name."""
    main: str
    phrasings: tuple[str, ...]
    """The main caption first."""
    keywords: tuple[str, ...]


def write_caption(icon: Icon, colours: Sequence[str]) -> Caption:
    """Write the captions of one icon with these main colours."""
    style, emoji = icon.style, icon.emoji
    name = emoji.name if emoji else icon.plain_name
    if style.monochrome:
        name = _COLOUR_PREFIX.sub("", name)
    subject = readable_name(name)
    group = emoji.group if emoji else ""
    full = with_article(subject, group) if emoji else subject
    keywords = pick_keywords(emoji, subject, monochrome=style.monochrome)
    phrasings = [
        f"{full}, {style.phrase}",
        f"{subject}, {style.phrase}, {style.description}",
        f"{style.description} of {full}, white background",
    ]
    # Seeded by the icon, so that a change elsewhere never changes this image's caption.
    rng = np.random.RandomState(stable_hash(style.id + icon.name))
    if keywords:
        chosen = rng.permutation(np.array(keywords))[:KEYWORDS_IN_CAPTION]
        phrasings.append(f"{subject}, {', '.join(chosen)}, {style.phrase}")
    aliases = [] if style.monochrome else pick_aliases(emoji, subject)
    if aliases:
        phrasings.append(f"{aliases[-1]}, {style.phrase}")
    if colours:
        phrasings.append(f"{full}, {' and '.join(colours)}, {style.phrase}")
    if group:
        phrasings.append(f"{subject}, {group}, {style.phrase}")
    return Caption(name, phrasings[0], tuple(phrasings), tuple(keywords))


def readable_name(name: str) -> str:
    """Turn a Unicode short name into words: 'flag: Japan' -> 'flag of japan'."""
    name = name.lower().replace("’", "'").replace("“", '"').replace("”", '"')
    kind, colon, rest = name.partition(":")
    rest = rest.strip()
    if not colon:
        return name
    if kind == "flag":
        return f"flag of {rest}"
    if kind == "keycap":
        return f"keycap {rest}"
    if kind in ("family", "kiss", "couple with heart"):
        return _people_name(kind, rest.split(", "))
    return f"{kind} with {rest.replace(', ', ' and ')}"


def _people_name(kind: str, parts: Sequence[str]) -> str:
    """Name a group of persons: 'family of man, woman and boy with light skin tone'."""
    tones = [part for part in parts if "skin tone" in part]
    persons = [part for part in parts if "skin tone" not in part]
    words = kind
    if len(persons) > 1:
        words += f" of {', '.join(persons[:-1])} and {persons[-1]}"
    elif persons:
        words += f" of {persons[0]}"
    return f"{words} with {tones[0]}" if tones else words


def with_article(name: str, group: str) -> str:
    """Put 'a', 'an' or 'the' before a readable name, where English wants one."""
    if name.startswith("flag of"):
        return f"the {name}"
    if group in _SIGN_GROUPS or not name[0].isalpha():
        return name
    head = _CONNECTIVE.split(name)[0].split() or [name]
    first, last = head[0], head[-1]
    if len(head) == 1 and first in _UNCOUNTED | _UNCOUNTED_ALONE:
        return name
    if len(head) == 2 and first in _UNCOUNTED - _UNCOUNTED_ALONE:
        return name
    if last in _NO_ARTICLE_ENDINGS or (last.endswith("s") and not _SINGULAR_IN_S.search(last)):
        return name
    return f"{'an' if _AN.match(name) else 'a'} {name}"


def pick_keywords(emoji: Emoji | None, subject: str, *, monochrome: bool) -> list[str]:
    """Return the keywords worth keeping: not the name itself, no colours where none are seen."""
    words = [word.replace("’", "'") for word in emoji.keywords if word != subject] if emoji else []
    if monochrome:
        words = [word for word in words if word not in COLOURS]
    return words[:MOST_KEYWORDS]


def pick_aliases(emoji: Emoji | None, subject: str) -> list[str]:
    """Return other readable names of an emoji; none for flags and skin tones (codes, lists)."""
    if emoji is None or emoji.tone or emoji.group == "flags":
        return []
    names = dict.fromkeys(alias.replace("_", " ").lower() for alias in emoji.aliases)
    readable = [
        name
        for name in names
        if name != subject and re.search("[a-z]{3}", name) and "tone" not in name
    ]
    return readable[:MOST_ALIASES]
