"""Rules about the trigger word (tag) in captions."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

from lorasmith.core.text.trigger_word import find_tag
from lorasmith.data.reading.row import Row
from lorasmith.data.rules.facts import DatasetFacts, Finding, captions_have

MIN_CAPTIONS = 5
"""With fewer tagged captions, words occur together by chance."""
COOCCURRENCE_SHARE = 0.9
"""A word in this share of the captions fuses with the tag."""

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_FUNCTION_WORDS = frozenset(
    {"a", "an", "the", "this", "that", "these", "those", "of", "in", "on", "at", "to", "by",
     "for", "from", "with", "without", "and", "or", "but", "as", "is", "are", "be", "being",
     "it", "its", "his", "her", "their", "style"}
)  # fmt: skip
"""Words that may occur with every tag because they mean nothing alone."""


def find_missing_tags(facts: DatasetFacts) -> Iterator[Finding]:
    rows, untagged = facts.scan.rows, facts.untagged_rows
    keys = tuple(row.key for row in untagged)
    if untagged and len(untagged) == len(rows):
        yield Finding(
            "tag-missing", "error",
            f"none of the {len(rows)} captions contains the tag {facts.tag!r}; write it into them",
            keys,
        )  # fmt: skip
    elif untagged:
        yield Finding(
            "tag-missing", "warning",
            f"{captions_have(len(untagged))} no tag {facts.tag!r} (of {len(rows)}); what these "
            "images show will appear without the tag too",
            keys,
        )  # fmt: skip


def find_misspelled_tags(facts: DatasetFacts) -> Iterator[Finding]:
    """Find captions with the tag in another form, and those without that have nearly the tag."""
    if facts.tag is None:
        return
    yield from _find_other_forms(facts.tagged_rows, facts.tag)
    tagged_phrases = {
        phrase for row in facts.tagged_rows for phrase in _phrases(row.caption, facts.tag)
    }
    misspellings: dict[str, list[str]] = {}
    for row in facts.untagged_rows:
        for phrase in _phrases(row.caption, facts.tag):
            if phrase not in tagged_phrases and is_nearly_tag(phrase, facts.tag):
                misspellings.setdefault(phrase, []).append(row.key)
                break
    for phrase, keys in misspellings.items():
        yield Finding(
            "tag-spelling", "warning",
            f"{captions_have(len(keys))} {phrase!r}, which is nearly the tag "
            f"{facts.tag!r}; spell it the same way",
            tuple(keys),
        )  # fmt: skip


def _find_other_forms(rows: Sequence[Row], tag: str) -> Iterator[Finding]:
    """Find captions that have the tag only in forms that the model reads as other words."""
    others: dict[str, list[str]] = {}
    for row in rows:
        forms = [row.caption[place.start : place.stop] for place in find_tag(row.caption, tag)]
        if all(_as_clip_reads(form) != _as_clip_reads(tag) for form in forms):
            others.setdefault(forms[0], []).append(row.key)
    for form, keys in others.items():
        yield Finding(
            "tag-spelling", "warning",
            f"{captions_have(len(keys))} the tag as {form!r}, which the model reads otherwise "
            f"than {tag!r}; spell it the same way",
            tuple(keys),
        )  # fmt: skip


def _as_clip_reads(text: str) -> str:
    return "".join(unicodedata.normalize("NFC", text).lower().split())


def find_cooccurring_words(facts: DatasetFacts) -> Iterator[Finding]:
    """Find words that occur with the tag in nearly every caption."""
    tagged = facts.tagged_rows
    if len(tagged) < MIN_CAPTIONS or len({row.caption for row in tagged}) == 1:
        return  # identical captions have their own rule
    # The class word belongs there: it says what the tag changes.
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
    """Return the words that occur in every caption, in the order of their first occurrence.

    Function words such as ``a`` and ``with`` are left out.

    Args:
        rows: the captions.
        exclude: a text whose words are left out.
        share: of the captions in which a word must occur.
    """
    counts = Counter(word for row in rows for word in dict.fromkeys(split_words(row.caption)))
    excluded, min_count = _FUNCTION_WORDS | set(split_words(exclude)), share * len(rows)
    return [word for word, count in counts.items() if count >= min_count and word not in excluded]


def is_nearly_tag(phrase: str, tag: str) -> bool:
    """Whether a phrase is the tag with another spacing or a letter or two changed."""
    phrase_letters, tag_letters = _letters(phrase), _letters(tag)
    if phrase_letters == tag_letters:
        return True
    length = len(tag_letters)
    max_edits = 0 if length < 4 else 1 if length < 8 else 2
    if abs(len(phrase_letters) - length) > max_edits:
        return False
    return edit_distance(phrase_letters, tag_letters) <= max_edits


def edit_distance(source: str, target: str) -> int:
    """Count the letters to insert, remove, change or swap with a neighbour to get the target.

    The optimal string alignment distance: no letter is edited twice.
    """
    before_previous: list[int] = []
    previous = list(range(len(target) + 1))
    for i, letter in enumerate(source, start=1):
        current = [i]
        for j, target_letter in enumerate(target, start=1):
            substitution = previous[j - 1] + (letter != target_letter)
            cost = min(previous[j] + 1, current[-1] + 1, substitution)
            if i > 1 and j > 1 and letter == target[j - 2] and source[i - 2] == target_letter:
                cost = min(cost, before_previous[j - 2] + 1)
            current.append(cost)
        before_previous, previous = previous, current
    return previous[-1]


def split_words(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return [word.casefold() for word in _WORD.findall(unicodedata.normalize("NFC", text))]


def _letters(text: str) -> str:
    return "".join(character for character in text.casefold() if character.isalnum())


def _phrases(caption: str, tag: str) -> Iterator[str]:
    """Yield every run of words as long as the tag, or a word longer or shorter."""
    words = re.findall(r"[^\s,.;:]+", caption.casefold())
    count = len(tag.split())
    for length in range(max(1, count - 1), count + 2):
        for start in range(len(words) - length + 1):
            yield " ".join(words[start : start + length])
