"""The tokens of a tag are those that read characters of it, wherever it stands."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.paths import MERGES_FILE
from lorasmith.adapters.gating.trigger_tokens import (
    check_tag_tokens,
    has_tag,
    mark_end_tokens,
    mark_tag_tokens,
)
from lorasmith.core.errors import ConfigError
from lorasmith.core.text.trigger_word import contains_tag
from lorasmith.models.text.encode import tokenize
from lorasmith.models.text.prompt_spans import PromptSpan, unweighted_prompt
from lorasmith.models.text.tokenizer import create_bpe_tokenizer, read_merges

TOKENIZER = create_bpe_tokenizer(read_merges(MERGES_FILE, 500))
WORDS = st.sampled_from(["curlyqx", "cookqz", "cat", "a", "wild", "!", "7", "straße", "🌵", ","])


def marked(tag: str, *texts: str, chunks: int = 1) -> torch.Tensor:
    prompts = [unweighted_prompt(text) for text in texts]
    return mark_tag_tokens(TOKENIZER, tag, prompts, chunks)


def decode(text: str, mask: torch.Tensor) -> str:
    return str(TOKENIZER.decode(tokenize(TOKENIZER, [text])[0][mask])).strip()


def test_mask_has_every_occurrence() -> None:
    result = marked("curlyqx", "curlyqx person, curlyqx", "a person", "a curlyqx")
    size = len(TOKENIZER.tokenize("curlyqx"))
    assert result.shape == (3, 77)
    assert result.sum(dim=1).tolist() == [2 * size, 0, size]
    assert result[0, 1 : 1 + size].all()
    assert decode("a curlyqx", result[2]) == "curlyqx"


@pytest.mark.parametrize(
    ("tag", "text", "tokens"),
    [
        ("ganyq (genshin)", "a ganyq (genshin), girl", "ganyq ( genshin )"),
        ("ganyq (genshin)", "a ganyq (genshin)", "ganyq ( genshin )"),
        ("c++", "c++, c", "c ++"),
        ("ink1", "ink12, ink1", "ink 1"),
        ("cat", "catalog, cat", "cat"),
        ("cafe\u0301", "a CAFÉ", "café"),
        ("a", "qa, b", ""),
    ],
)
def test_tokens_of_a_tag(tag: str, text: str, tokens: str) -> None:
    assert decode(text, marked(tag, text)[0]) == tokens


def test_token_that_reads_the_end_of_the_tag_and_a_comma_is_marked() -> None:
    tokenizer = create_bpe_tokenizer([(")", ",</w>")])
    mask = mark_tag_tokens(tokenizer, "a (b)", [unweighted_prompt("a (b), c")], 1)
    assert tokenizer.decode(tokenize(tokenizer, ["a (b), c"])[0][mask[0]]).strip() == "a ( b ),"


def test_special_tokens_are_never_marked() -> None:
    assert not marked("<|endoftext|>", "a <|endoftext|> b").any()


@given(st.lists(WORDS, min_size=1, max_size=3), st.lists(WORDS, max_size=12))
def test_mask_and_text_agree(tag: list[str], words: list[str]) -> None:
    tag_text, text = " ".join(tag), " ".join(words)
    assert bool(marked(tag_text, text).any()) is contains_tag(text, tag_text)
    assert has_tag(unweighted_prompt(f"{text} {tag_text}"), tag_text)


def test_weights_separate_words_and_break_separates_sections() -> None:
    plain = (PromptSpan("ink "), PromptSpan("style"), PromptSpan("s"))
    sections = (plain[:1], plain[1:])
    assert has_tag((plain,), "ink style")
    assert not has_tag((plain,), "ink styles")
    assert not has_tag(sections, "ink style")
    assert not mark_tag_tokens(TOKENIZER, "ink style", [sections], 2).any()
    assert mark_tag_tokens(TOKENIZER, "style", [sections], 2)[:, 77:].any()
    assert not mark_tag_tokens(TOKENIZER, "style", [sections], 1).any()


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


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        ("", "reads nothing there"),
        ("\n ", "reads nothing there"),
        ("\u200b", "reads nothing there"),
        ("<|endoftext|>", "no tokens for it"),
        ("ink " * 76, "76 tokens and the model reads 75"),
    ],
)
def test_tag_that_the_model_cannot_read_is_refused(tag: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_tag_tokens(TOKENIZER, tag)


@pytest.mark.parametrize("tag", ["c++", "ganyq (genshin)", "🌵", "日本"])
def test_tag_of_signs_and_other_scripts_is_accepted(tag: str) -> None:
    check_tag_tokens(TOKENIZER, tag)
