"""Long texts in chunks, and emphasis, against what the text encoders give for each chunk alone."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.encode import encode_captions
from helpers.paths import MERGES_FILE
from helpers.tiny_models import open_model
from lorasmith.core.errors import LorasmithWarning
from lorasmith.models.load import load_model
from lorasmith.models.model import Model
from lorasmith.models.text.encode import tokenize
from lorasmith.models.text.long_prompts import (
    apply_emphasis,
    count_chunks,
    encode_prompts,
    pad_conditioning,
    prompt_token_ids,
    warn_if_too_long,
    zeroes_empty_prompt,
)
from lorasmith.models.text.prompt_spans import (
    EMPTY_PROMPT,
    PromptSpan,
    WeightedPrompt,
    unweighted_prompt,
)
from lorasmith.models.text.tokenizer import create_bpe_tokenizer, read_merges

TOKENIZER = create_bpe_tokenizer(read_merges(MERGES_FILE, 500))
FAMILIES = {"sd1": "tiny_model", "sd2": "tiny_sd2", "sdxl": "tiny_sdxl"}
START, END = TOKENIZER.bos_token_id, TOKENIZER.eos_token_id


def contents(passage: WeightedPrompt) -> list[str]:
    """Return the text of each chunk."""
    rows = prompt_token_ids(TOKENIZER, passage).view(-1, 77).tolist()
    for row in rows:
        assert row[0] == START
        end = row.index(END)
        assert set(row[end:]) == {END}
    return [TOKENIZER.decode(row[1 : row.index(END)]).strip() for row in rows]


def test_short_text_has_the_tokenizers_tokens() -> None:
    for text in ("", "a red apple", "a " * 75):
        (ids,) = tokenize(TOKENIZER, [text])
        assert torch.equal(prompt_token_ids(TOKENIZER, unweighted_prompt(text)), ids)
        assert count_chunks(TOKENIZER, unweighted_prompt(text)) == 1


@pytest.mark.parametrize(
    ("text", "chunks"),
    [
        ("a " * 75 + "b c", ["a " * 74 + "a", "b c"]),
        ("a " * 60 + ", " + "b " * 20, ["a " * 60 + ",", "b " * 19 + "b"]),  # at a comma near
        ("a " * 50 + ", " + "b " * 30, ["a " * 50 + ", " + "b " * 24, "b " * 5 + "b"]),  # too far
        ("a " * 74 + ", b", ["a " * 74 + ",", "b"]),
        ("a " * 75 + ", b", ["a " * 75, ", b"]),
        ("a " * 74 + "curlyqx", ["a " * 74, "curlyqx"]),  # not within a word
        ("a " * 151, ["a " * 75, "a " * 75, "a"]),
    ],
)
def test_chunk_ends_after_a_near_comma_or_a_word(text: str, chunks: list[str]) -> None:
    result = contents(unweighted_prompt(text))
    assert [chunk.split() for chunk in result] == [chunk.split() for chunk in chunks]


def test_section_begins_a_chunk() -> None:
    passage = ((PromptSpan("a red"), PromptSpan("apple", 1.5)), (PromptSpan("b"),))
    assert contents(passage) == ["a red apple", "b"]


@given(st.lists(st.sampled_from(["a", "curlyqx", ",", "straße", "7", "b,"]), max_size=120))
def test_no_token_is_lost(words: list[str]) -> None:
    text = " ".join(words)
    ids = prompt_token_ids(TOKENIZER, unweighted_prompt(text))
    assert len(ids) % 77 == 0
    text_ids = [token_id for token_id in ids.tolist() if token_id not in (START, END)]
    assert text_ids == TOKENIZER(text, add_special_tokens=False, verbose=False)["input_ids"]


def test_word_longer_than_a_chunk_is_split() -> None:
    result = contents(unweighted_prompt("qx" * 100))
    assert len(result) > 1
    assert "".join(result).replace(" ", "") == "qx" * 100


def test_only_implicit_chunks_are_warned_about() -> None:
    sections = ((PromptSpan("a " * 75),), (PromptSpan("b"),))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_too_long(TOKENIZER, sections, "prompt")
    with pytest.warns(
        LorasmithWarning, match="the negative prompt has 77 tokens, more than the 75"
    ):
        warn_if_too_long(TOKENIZER, unweighted_prompt("a " * 77), "negative prompt")


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Model:
    folder: Path = request.getfixturevalue(FAMILIES[request.param])
    return open_model(folder)


def test_chunks_are_encoded_separately(model: Model) -> None:
    texts = ["a " * 75, "red apple", "", "a pear"]
    separate = encode_captions(model, texts)
    passages = [
        unweighted_prompt("a " * 75 + "red apple"),
        EMPTY_PROMPT,
        unweighted_prompt("a pear"),
    ]
    long, empty, short = encode_prompts(model, passages)
    torch.testing.assert_close(long.context, torch.cat([separate[0].context, separate[1].context]))
    torch.testing.assert_close(empty.context, separate[2].context)
    torch.testing.assert_close(short.context, separate[3].context)
    filled = pad_conditioning(short, empty, 154)
    assert torch.equal(filled.context, torch.cat([short.context, empty.context]))
    if model.text_encoder_2 is not None:
        torch.testing.assert_close(long.pooled, separate[0].pooled)  # of the first chunk
        torch.testing.assert_close(short.pooled, separate[3].pooled)
        assert filled.pooled is short.pooled


def test_emphasis_changes_only_emphasised_words_in_each_encoder(model: Model) -> None:
    plain = (PromptSpan("a"), PromptSpan("red"), PromptSpan("apple"))
    strong = (PromptSpan("a"), PromptSpan("red", 1.5), PromptSpan("apple"))
    before, after = encode_prompts(model, [(plain,), (strong,)])
    red = prompt_token_ids(model.tokenizer, (plain[:2],)).tolist().index(END)  # the place behind it
    first = prompt_token_ids(model.tokenizer, (plain[:1],)).tolist().index(END)
    start = 0
    for encoder in model.text_encoders:
        part = slice(start, start := start + encoder.config.hidden_size)
        x, y = before.context[:, part].double(), after.context[:, part].double()
        weights = torch.ones(77, 1, dtype=torch.float64)
        weights[first:red] = 1.5
        expected = x * weights * (x.norm() / (x * weights).norm())
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)
    if before.pooled is not None:
        torch.testing.assert_close(before.pooled, after.pooled)


def test_rows_without_emphasis_stay_bitwise_equal() -> None:
    states = torch.randn(3, 77, 8)
    weights = torch.ones(3, 77)
    assert apply_emphasis(states, weights) is states
    weights[1, 4] = 1.2
    result = apply_emphasis(states, weights)
    assert torch.equal(result[[0, 2]], states[[0, 2]])
    assert not torch.equal(result[1], states[1])
    weights[2] = 0.0  # no weight is left to restore
    assert not apply_emphasis(states, weights)[2].any()


def test_empty_negative_prompt_means_zeros_for_sdxl_only(
    tiny_sdxl: Path, tiny_model: Path, tmp_path: Path
) -> None:
    assert not zeroes_empty_prompt(load_model(tiny_model))
    assert zeroes_empty_prompt(load_model(tiny_sdxl))
    folder = tmp_path / "model"
    shutil.copytree(tiny_sdxl, folder)
    index = folder / "model_index.json"
    config = json.loads(index.read_text(encoding="utf-8")) | {"force_zeros_for_empty_prompt": False}
    index.write_text(json.dumps(config), encoding="utf-8")
    assert not zeroes_empty_prompt(load_model(folder))
