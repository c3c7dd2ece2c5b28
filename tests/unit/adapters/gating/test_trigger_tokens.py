"""Tags are found as token sequences, at the start of a word, wherever they stand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.paths import MERGES_FILE
from lorasmith.adapters.gating.trigger_tokens import (
    find_tag_spans,
    has_tag,
    mark_end_tokens,
    mark_tag_tokens,
    tokenize_tag,
)
from lorasmith.core.errors import ConfigError
from lorasmith.models.text.encode import tokenize
from lorasmith.models.text.tokenizer import create_bpe_tokenizer, read_merges

TOKENIZER = create_bpe_tokenizer(read_merges(MERGES_FILE, 500))
WORDS = st.sampled_from(["curlyqx", "cookqz", "cat", "a", "wild", "!", "7", "straße", "🌵", ","])


@pytest.mark.parametrize(
    ("tag", "text", "expected"),
    [
        ("curlyqx", "a curlyqx person", True),
        ("curlyqx", "A CurlyQX person", True),  # CLIP reads lower case
        ("curlyqx", "(curlyqx), smiling", True),
        ("curlyqx", "a curly qx person", False),
        ("curlyqx", "a person", False),
        ("curlyqx", "", False),
        ("curlyqx", "curlyqxy", False),
        ("cat", "wildcat", False),  # its last token may well be that of the word `cat`
        ("ink style", "a dog, ink  style", True),
        ("ink style", "a style in ink", False),
        ("ink style", "ink, style", False),
        ("ink1", "ink12", True),  # digits are words of their own to CLIP
        ("x", "apple " * 90 + "x", True),  # whatever the model gets to see of it
    ],
)
def test_has_tag_matches_complete_words_of_clip(tag: str, text: str, expected: bool) -> None:
    assert has_tag(TOKENIZER, tag, text) is expected


def test_tag_within_a_word_has_the_tokens_of_the_tag() -> None:
    full, tag = tokenize_tag(TOKENIZER, "qa"), tokenize_tag(TOKENIZER, "a")
    assert full[-len(tag) :] == tag  # this is what makes the test of the word's start necessary
    assert not has_tag(TOKENIZER, "a", "qa")


def test_token_mask_has_every_occurrence() -> None:
    ids = tokenize(TOKENIZER, ["curlyqx person, curlyqx", "a person", "a curlyqx"])
    size = len(tokenize_tag(TOKENIZER, "curlyqx"))
    result = mark_tag_tokens(TOKENIZER, "curlyqx", ids)
    assert result.shape == ids.shape
    assert result.sum(dim=1).tolist() == [2 * size, 0, size]
    assert result[0, 1 : 1 + size].all()
    assert TOKENIZER.decode(ids[2][result[2]]).strip() == "curlyqx"


@given(st.lists(WORDS, min_size=1, max_size=3), st.lists(WORDS, max_size=12))
def test_mask_and_spans_agree(tag: list[str], text: list[str]) -> None:
    tag_text, full = " ".join(tag), " ".join(text)
    ids = tokenize(TOKENIZER, [full], warn=False)
    spans = find_tag_spans(TOKENIZER, tag_text, full)
    behind_start = {ref + 1 for span in spans for ref in span}
    result = mark_tag_tokens(TOKENIZER, tag_text, ids)[0].nonzero().flatten().tolist()
    assert set(result) == {ref for ref in behind_start if ref < 76}
    assert has_tag(TOKENIZER, tag_text, f"{full} {tag_text}")


def test_ends_are_where_the_text_ends_in_every_window() -> None:
    ids = tokenize(TOKENIZER, ["cat", "a cat face"])
    ends = mark_end_tokens(TOKENIZER, ids)
    for row, flags in zip(ids, ends, strict=True):
        first = row.tolist().index(TOKENIZER.eos_token_id)
        assert flags.tolist() == [False] * first + [True] * (77 - first)
    two = mark_end_tokens(TOKENIZER, ids.flip(0).reshape(1, 154))
    assert torch.equal(two, ends.flip(0).reshape(1, 154))
    assert mark_end_tokens(TOKENIZER, ids[:, :20]).sum(dim=1).tolist() == (
        ends[:, :20].sum(dim=1).tolist()
    )


@pytest.mark.parametrize("tag", ["", "  ", "\n"])
def test_empty_tag_is_refused(tag: str) -> None:
    with pytest.raises(ConfigError, match="reads nothing there"):
        has_tag(TOKENIZER, tag, "a cat")
