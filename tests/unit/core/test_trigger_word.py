r"""Where a tag stands in a text: words and signs, in any case, encoding and escaping."""

import unicodedata

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lorasmith.core.text.trigger_word import (
    contains_tag,
    escape_brackets,
    find_tag,
    split_tag,
    unescape_brackets,
)

TAGS = st.sampled_from(
    ["inkq", "ink style", "ganyq (genshin)", "c++", "dr.", "#7", "ink1", "bär", "straße", "ΟΔΟΣ",
     "한국", "猫", "🌵", "o'clock", "[x]", "a_b", "हिन्दी", "x-y z", "½", "İnk"]
)  # fmt: skip
SIGNS = st.sampled_from([" ", ", ", ". ", " (", ") ", "", " - ", "\n", "\u3000", "!? "])
WORDS = st.sampled_from(["cat", "dog", "1girl", "é", "7", "(x)", "catalog", "c+", "日本"])
FORMS = st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"])


@pytest.mark.parametrize(
    ("tag", "text", "expected"),
    [
        ("curlyqx", "A CurlyQX person", True),
        ("curlyqx", "(curlyqx), smiling", True),
        ("curlyqx", "a curly qx person", False),
        ("curlyqx", "", False),
        ("cat", "a catalog", False),
        ("cat", "a wildcat", False),
        ("cat", "my_cat", False),
        ("girl", "1girl", False),
        ("ink1", "ink12", False),
        ("ink1", "ink1 2", True),
        ("ink 1", "ink1", False),
        ("ink style", "ink \n style", True),
        ("ink style", "ink, style", False),
        ("c++", "a c++ book", True),
        ("c++", "c++, c", True),
        ("c++", "c++11", False),
        ("dr.", "dr. x", True),
        ("dr.", "dr.x", False),
        ("dr.", "dr..., x", True),
        ("#7", "a #7, b", True),
        ("#7", "#77", False),
        ("#7", "a#7", False),
        ("ganyq (genshin)", "ganyq (genshin), 1girl", True),
        ("ganyq (genshin)", r"ganyq \(genshin\), 1girl", True),
        (r"ganyq \(genshin\)", "ganyq (genshin)", True),
        ("ganyq (genshin)", "ganyq(genshin)", True),
        ("ganyq (genshin)", "ganyq genshin", True),
        ("ganyq genshin", "ganyq [[genshin]]", True),
        ("ganyq (genshin)", "ganyq, (genshin)", False),
        ("ganyq (genshin)", "ganyq", False),
        ("ganyq", "ganyq (genshin)", True),
        (r"\m/", r"a \m/ b", True),
        ("inkq", "ｉｎｋｑ, x", True),
        ("inkq", "ink\u200bq, x", True),
        ("größe", "GRÖSSE", False),
        ("ΟΔΟΣ", "οδος", True),
        ("हिन्द", "हिन्दी", False),
        ("猫", "黒猫", False),
        ("🌵", "a🌵", False),
        ("🌵", "a 🌵\ufe0f b", True),
    ],
)
def test_tag_is_found_by_its_words_and_signs(tag: str, text: str, expected: bool) -> None:
    assert contains_tag(text, tag) is expected


@pytest.mark.parametrize("tag", ["", " ", "\u200b", "\u3000\n", "()", r"\("])
def test_tag_without_words_and_signs_is_nowhere(tag: str) -> None:
    assert split_tag(tag) == ()
    assert find_tag(f"a {tag} b", tag) == []


def test_every_occurrence_is_found_with_its_place() -> None:
    text = r"Café \(x\), cafe" + "\u0301 (x) and caféx"
    places = find_tag(text, "café (x)")
    assert [text[place.start : place.stop] for place in places] == [
        r"Café \(x\)", "cafe\u0301 (x)",
    ]  # fmt: skip
    assert find_tag("a a a", "a a") == [range(3), range(2, 5)]
    assert find_tag("((a b))", "a (b)") == [range(2, 6)]
    assert find_tag("a (b), c", "a (b)") == [range(5)]
    assert find_tag("a b, c", "(a b)") == [range(3)]


def test_escaped_brackets() -> None:
    text = r"a (b) [c] \ d"
    assert escape_brackets(text) == r"a \(b\) \[c\] \\ d"
    assert unescape_brackets(escape_brackets(text)) == text
    assert unescape_brackets(r"\m/ \(o\)") == r"\m/ (o)"


@given(TAGS, st.lists(st.tuples(WORDS, SIGNS), max_size=4), SIGNS, FORMS, st.booleans())
def test_tag_in_another_form_is_the_same_tag(
    tag: str, words: list[tuple[str, str]], sign: str, form: str, upper: bool
) -> None:
    before = "".join(word + sign for word, sign in words)
    text = f"{before} {tag} {sign}{before}"
    other = unicodedata.normalize(form, escape_brackets(tag))
    if upper and len(tag.upper()) == len(tag):
        other = other.upper()
    assert split_tag(other) == split_tag(tag)
    places = find_tag(text, tag)
    assert find_tag(text, other) == places
    assert len(before) + 1 in [place.start for place in places]
    for place in places:
        assert split_tag(text[place.start : place.stop]) == split_tag(tag)


@given(TAGS, st.sampled_from(["q", "7", "é", "_", "猫", "\u0301"]), st.booleans())
def test_tag_in_a_longer_word_is_not_there(tag: str, letter: str, before: bool) -> None:
    assume(tag[-1] not in ")]")  # what follows a bracket is a word of its own
    text = f"a {letter}{tag} b" if before and letter != "\u0301" else f"a {tag}{letter} b"
    assert not contains_tag(text, tag)


@given(st.text(max_size=40), st.text(max_size=6))
def test_places_are_inside_any_text(text: str, tag: str) -> None:
    for place in find_tag(text, tag):
        assert 0 <= place.start < place.stop <= len(text)
        assert contains_tag(text[place.start : place.stop], tag)
