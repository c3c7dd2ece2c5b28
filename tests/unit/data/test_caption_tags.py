"""Tags in captions."""

import pytest

from lorasmith.data.caption_tags import add_tag, count_tags, remove_tag


def test_tag_frequency_counts_parts() -> None:
    counts = count_tags(["a cat, ink style", "a dog,ink style , ", "a cat"])
    assert counts == {"a cat": 2, "ink style": 2, "a dog": 1}


@pytest.mark.parametrize(
    ("text", "tag", "word", "expected"),
    [
        ("a man with curlyqx, noto style", "curlyqx", "hair", "a man with hair, noto style"),
        ("a curlyqx person, noto style", "curlyqx", "person", "a person, noto style"),
        ("a person CurlyQX, noto style", "curlyqx", "person", "a person, noto style"),
        ("a dog, inkmono style", "inkmono", "", "a dog, style"),
        ("a dog, inkmono", "inkmono", "", "a dog"),
        ("curlyqx and curlyqx", "curlyqx", r"\1", r"\1 and \1"),
        ("a curlyqxs person", "curlyqx", "person", "a curlyqxs person"),
        ("a big cat, my cat", "big cat", "dog", "a dog, my cat"),
        ("ganyq (genshin), 1girl", "ganyq (genshin)", "girl", "girl, 1girl"),
        (r"1girl, ganyq \(genshin\)", "ganyq (genshin)", "", "1girl"),
        ("a c++ book, c++11", "c++", "", "a book, c++11"),
        ("a Cafe\u0301, x", "café", "bar", "a bar, x"),
        ("ink ink ink", "ink ink", "", "ink"),
    ],
)
def test_remove_tag_puts_the_class_word_in_its_place(
    text: str, tag: str, word: str, expected: str
) -> None:
    assert remove_tag(text, tag, word) == expected


def test_add_tag_puts_another_tag_behind_the_first() -> None:
    assert add_tag("a Curlyqx person", "curlyqx", "cookqz") == "a Curlyqx cookqz person"
    assert add_tag("a person", "curlyqx", "cookqz") == "a person, cookqz"
    assert add_tag("", "curlyqx", "cookqz") == "cookqz"
    assert add_tag("ganyq (genshin), x", "ganyq (genshin)", "c++") == "ganyq (genshin) c++, x"
