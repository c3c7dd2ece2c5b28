r"""Weights of words in prompts: brackets, BREAK and \(."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorasmith.core.errors import ConfigError
from lorasmith.inference.prompts.emphasis import parse_emphasis
from lorasmith.inference.prompts.parse_prompt import (
    make_plain_prompt,
    parse_negative_prompt,
    parse_prompt,
)
from lorasmith.models.text.prompt_spans import EMPTY_PROMPT

WORD = st.sampled_from(["red", "apple,", "a", "BREAKFAST", "it's", "7:", "straße"])


def parse_chunks(source: str) -> list[list[tuple[str, float]]]:
    """Pieces by section, weights rounded."""
    return [
        [(words.text.strip(), round(words.weight, 6)) for words in section]
        for section in parse_emphasis(source, "prompt")[1]
    ]


@pytest.mark.parametrize(
    ("source", "sections"),
    [
        ("a red apple", [[("a red apple", 1.0)]]),
        ("a (red) apple", [[("a", 1.0), ("red", 1.1), ("apple", 1.0)]]),
        ("a (red:1.2) apple", [[("a", 1.0), ("red", 1.2), ("apple", 1.0)]]),
        ("a [red] apple", [[("a", 1.0), ("red", round(1 / 1.1, 6)), ("apple", 1.0)]]),
        ("((red))", [[("red", 1.21)]]),
        ("((red:1.5) apple:2)", [[("red", 3.0), ("apple", 2.0)]]),
        ("([red])", [[("red", 1.0)]]),
        ("(red : 0.5 )", [[("red", 0.5)]]),
        ("(red:-1)", [[("red", -1.0)]]),
        ("(red:.5)", [[("red", 0.5)]]),
        ("(note: red)", [[("note: red", 1.1)]]),
        ("(red:)", [[("red:", 1.1)]]),
        (r"\(red\) \[x\] \\ a\b", [[(r"(red) [x] \ a\b", 1.0)]]),
        (r"(a \(b:1.5\))", [[("a (b:1.5)", 1.1)]]),
        ("a BREAK b", [[("a", 1.0)], [("b", 1.0)]]),
        ("a, BREAK, b", [[("a,", 1.0)], [(", b", 1.0)]]),
        ("BREAKFAST break", [[("BREAKFAST break", 1.0)]]),
        ("(a BREAK b:1.3) c", [[("a", 1.3)], [("b", 1.3), ("c", 1.0)]]),
        ("BREAK a BREAK BREAK", [[("a", 1.0)]]),
        ("", [[("", 1.0)]]),
        ("()", [[("", 1.0)]]),
    ],
)
def test_emphasis_gives_words_weights(source: str, sections: list[list[tuple[str, float]]]) -> None:
    assert parse_chunks(source) == sections


@pytest.mark.parametrize(
    ("source", "column", "message"),
    [
        ("a (red apple", 3, r"'(' is not closed; write \( for the bracket itself"),
        ("a [red) apple", 7, "')' closes nothing"),
        ("smile :)", 8, "')' closes nothing"),
        ("a ]", 3, "']' closes nothing"),
        ("a (red:1.2.3) b", 8, "'1.2.3' is not a number; write it like (word:1.2)"),
        ("(red:99)", 6, "emphasis 99 is not between -10 and 10"),
        ("[cow:horse:0.5]", 15, "are not supported"),
        ("[cow|horse]", 11, "are not supported"),
        ("x <lora:ink:0.5> (red", 18, "is not closed"),  # mentions do not shift the columns
    ],
)
def test_malformed_emphasis_is_reported_with_its_column(
    source: str, column: int, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_prompt(source)
    assert str(caught.value).startswith(f"prompt, column {column}: ")
    assert message in str(caught.value)
    if "lora" not in source:
        with pytest.raises(ConfigError, match=f"^negative_prompt, column {column}: "):
            parse_negative_prompt(source)


@given(st.lists(WORD, max_size=6))
def test_text_without_emphasis_is_unchanged(words: list[str]) -> None:
    text = " ".join(words)
    prompt = parse_prompt(text)
    assert prompt.text == text
    assert prompt.weighted == (make_plain_prompt(text).weighted if text else EMPTY_PROMPT)


@given(st.lists(WORD, min_size=1, max_size=4), st.floats(-9, 9), st.integers(0, 3))
def test_nested_brackets_multiply(words: list[str], weight: float, depth: int) -> None:
    text = " ".join(words)
    ((piece,),) = parse_prompt("(" * depth + f"({text}:{weight:f})" + ")" * depth).weighted
    assert piece.text == text
    assert piece.weight == pytest.approx(float(f"{weight:f}") * 1.1**depth)


def test_prompt_text_has_no_emphasis_marks() -> None:
    assert parse_prompt("a ((curlyqx:1.2) person), [x]y").text == "a curlyqx person , x y"
    assert parse_prompt("curly BREAK qx").text == "curly BREAK qx"
    assert parse_prompt("(curly)qx").text == "curly qx"  # the tokenizer reads two words there
    assert make_plain_prompt("a (b) :)").weighted == ((("a (b) :)", 1.0),),)
