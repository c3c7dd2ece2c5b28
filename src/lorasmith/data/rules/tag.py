"""The tag: does it stand where it should, and what will it drag along?"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from lorasmith.data.reading.row import Row
from lorasmith.data.rules.facts import DatasetFacts, Finding, captions_have

MIN_CAPTIONS = 5
"""With fewer tagged captions words stand together by chance."""
COOCCURRENCE_SHARE = 0.9
"""A word in this share of the captions goes with the tag."""

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_LITTLE = frozenset(
    {"a", "an", "the", "this", "that", "these", "those", "of", "in", "on", "at", "to", "by",
     "for", "from", "with", "without", "and", "or", "but", "as", "is", "are", "be", "being",
     "it", "its", "his", "her", "their", "style"}
)  # fmt: skip
"""Words that stand beside every tag and mean nothing of their own."""


def find_missing_tags(facts: DatasetFacts) -> Iterator[Finding]:
    """Tell captions that do not contain the tag."""
    rows, without = facts.scan.rows, facts.untagged_rows
    keys = tuple(row.key for row in without)
    if without and len(without) == len(rows):
        yield Finding(
            "tag-missing", "error",
            f"none of the {len(rows)} captions contains the tag {facts.tag!r}; write it into them",
            keys,
        )  # fmt: skip
    elif without:
        yield Finding(
            "tag-missing", "warning",
            f"{captions_have(len(without))} no tag {facts.tag!r} (of {len(rows)}); what is shown "
            "there will appear without the tag too",
            keys,
        )  # fmt: skip


def find_misspelled_tags(facts: DatasetFacts) -> Iterator[Finding]:
    """Tell captions without the tag that have a word spelled nearly like it."""
    if facts.tag is None:
        return
    usual = {phrase for row in facts.tagged_rows for phrase in _phrases(row.caption, facts.tag)}
    found: dict[str, list[str]] = {}
    for row in facts.untagged_rows:
        for phrase in _phrases(row.caption, facts.tag):
            if phrase not in usual and is_nearly_tag(phrase, facts.tag):
                found.setdefault(phrase, []).append(row.key)
                break
    for phrase, keys in found.items():
        yield Finding(
            "tag-spelling", "warning",
            f"{captions_have(len(keys))} {phrase!r}, which is nearly the tag "
            f"{facts.tag!r}; spell it alike",
            tuple(keys),
        )  # fmt: skip


def find_cooccurring_words(facts: DatasetFacts) -> Iterator[Finding]:
    """Tell words that stand beside the tag in nearly every caption."""
    tagged = facts.tagged_rows
    if len(tagged) < MIN_CAPTIONS or len({row.caption for row in tagged}) == 1:
        return  # captions that are all the same have a rule of their own
    # The class word is meant to stand there: it says what the tag changes.
    words = find_common_words(tagged, f"{facts.tag or ''} {facts.class_word}", COOCCURRENCE_SHARE)
    if words:
        listed = ", ".join(repr(word) for word in words)
        yield Finding(
            "tag-company", "advice",
            f"nearly every caption that has the tag also has {listed}: the two will fuse, and the "
            "tag alone will do less; leave the words out of some captions, or always use them "
            "together with the tag",
        )  # fmt: skip


def find_common_words(rows: Sequence[Row], exclude: str = "", share: float = 1.0) -> list[str]:
    """Return the words that stand in every caption, without little ones and those of ``exclude``.

    In the order in which they come.

    Args:
        rows: the captions.
        exclude: a text whose words are left out.
        share: of the captions, in which a word must stand.
    """
    counts = Counter(word for row in rows for word in dict.fromkeys(split_words(row.caption)))
    left_out, needed = _LITTLE | set(split_words(exclude)), share * len(rows)
    return [word for word, count in counts.items() if count >= needed and word not in left_out]


def is_nearly_tag(phrase: str, tag: str) -> bool:
    """Tell whether a phrase is the tag with another spacing or a letter or two changed."""
    one, other = _letters(phrase), _letters(tag)
    if one == other:
        return True
    allowed = 0 if len(other) < 4 else 1 if len(other) < 8 else 2
    return abs(len(one) - len(other)) <= allowed and edit_distance(one, other) <= allowed


def edit_distance(one: str, other: str) -> int:
    """Count the letters to insert, remove, change or swap with a neighbour to get the other word.

    The optimal string alignment distance: no letter is edited twice.
    """
    older: list[int] = []
    previous = list(range(len(other) + 1))
    for i, letter in enumerate(one, start=1):
        current = [i]
        for j, wanted in enumerate(other, start=1):
            cost = min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                cost = min(cost, older[j - 2] + 1)
            current.append(cost)
        older, previous = previous, current
    return previous[-1]


def split_words(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return [word.casefold() for word in _WORD.findall(text)]


def _letters(text: str) -> str:
    return "".join(character for character in text.casefold() if character.isalnum())


def _phrases(caption: str, tag: str) -> Iterator[str]:
    """Yield every run of words as long as the tag, or a word longer or shorter."""
    words = re.findall(r"[^\s,.;:]+", caption.casefold())
    count = len(tag.split())
    for length in range(max(1, count - 1), count + 2):
        for start in range(len(words) - length + 1):
            yield " ".join(words[start : start + length])
