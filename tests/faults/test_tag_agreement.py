r"""A trigger word (tag) is there for all or for none: captions, prompts, tokens, libraries.

Tags of any kind are put into contexts of any kind, with the embedded model's vocabulary and with
CLIP's own, which the package has in full (`tests/unit/models/text/test_tokenizer.py` compares it).
"""

import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from helpers.lora_files import make_lora
from helpers.paths import MERGES_FILE
from lorasmith.adapters.gating.gate_metadata import GateMetadata
from lorasmith.adapters.gating.token_mask import token_mask
from lorasmith.adapters.gating.trigger_tokens import check_tag_tokens, has_tag, mark_tag_tokens
from lorasmith.core.text.trigger_word import (
    contains_tag,
    escape_brackets,
    find_tag,
    unescape_brackets,
)
from lorasmith.data.caption_tags import add_tag, remove_tag
from lorasmith.inference.loras.library import FolderLoraLibrary
from lorasmith.inference.prompts.parse_prompt import make_plain_prompt, parse_prompt
from lorasmith.models.text.long_prompts import prompt_token_ids
from lorasmith.models.text.prompt_spans import section_texts
from lorasmith.models.text.tokenizer import create_bpe_tokenizer, create_clip_tokenizer, read_merges

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

    from lorasmith.models.model import Model

TAG_LIST = [
    "inkq", "ink style", "ganyq (genshin)", "c++", "dr.", "#7", "ink1", "1girl", "bär", "straße",
    "ΟΔΟΣ", "한국", "猫", "o'clock", "'s", "a_b", "हिन्दी", "x-y z", "½", "İnk", "[x]", "x|y", "é.",
]  # fmt: skip
TAGS = st.sampled_from(TAG_LIST) | st.text(min_size=1, max_size=6).filter(
    lambda text: any(map(str.isalnum, text)) and text.isprintable() and "<" not in text
)
WORDS = st.sampled_from(
    ["cat", "a", "1girl", "7", "(x)", "[y]", "catalog", "c+", "日本", "é", "'s", "q", "++", "."]
)
GLUE = st.sampled_from([" ", ", ", "", ". ", " (", ") ", "\n", "_", "-", "\u3000"])
FORMS = st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"])
TOKENIZERS: dict[str, Callable[[], "CLIPTokenizer"]] = {
    "embedded": cache(lambda: create_bpe_tokenizer(read_merges(MERGES_FILE, 500))),
    "clip": cache(lambda: create_clip_tokenizer(49408)),
}


@st.composite
def contexts(draw: st.DrawFn) -> tuple[str, str]:
    """Return a tag, and a text in which it may or may not be."""
    tag = draw(TAGS)
    parts = draw(st.lists(WORDS | st.just(tag) | st.just(tag.upper()), max_size=5))
    text = "".join(part + draw(GLUE) for part in parts)
    return tag, unicodedata.normalize(draw(FORMS), text)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(context=contexts())
def test_text_prompt_and_tokens_agree_on_any_tag(name: str, context: tuple[str, str]) -> None:
    tokenizer, (tag, text) = TOKENIZERS[name](), context
    check_tag_tokens(tokenizer, tag)
    is_there = contains_tag(text, tag)
    # a caption, the same text as a prompt, and the tag with other escapes
    prompts = [make_plain_prompt(text), parse_prompt(escape_brackets(text).replace("<", " "))]
    assume("<" not in text)
    for prompt in prompts:
        assert has_tag(prompt.weighted, tag) is is_there
        assert has_tag(prompt.weighted, escape_brackets(tag)) is is_there
    ids = prompt_token_ids(tokenizer, prompts[0].weighted)
    chunks = len(ids) // 77
    for gate in ("token", "token+end"):
        mask = token_mask(tokenizer, GateMetadata(gate, tag), [prompts[0].weighted], ids[None])
        assert bool(mask.any()) is is_there
    mask = mark_tag_tokens(tokenizer, tag, [prompts[1].weighted], chunks)
    assert torch.equal(mask, mark_tag_tokens(tokenizer, tag, [prompts[0].weighted], chunks))


@pytest.mark.parametrize("name", TOKENIZERS)
@given(context=contexts())
def test_tokens_of_a_tag_read_the_tag_and_signs_beside_it(
    name: str, context: tuple[str, str]
) -> None:
    tokenizer, (tag, text) = TOKENIZERS[name](), context
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assume(len(encoded["input_ids"]) <= 75)
    mask = mark_tag_tokens(tokenizer, tag, [make_plain_prompt(text).weighted], 1)[0, 1:76]
    marked = {
        index
        for (first, stop), is_marked in zip(encoded["offset_mapping"], mask.tolist(), strict=False)
        for index in range(first, stop)
        if is_marked
    }
    places = {index for place in find_tag(text, tag) for index in place}
    beside = "".join(text[index] for index in sorted(marked - places))
    assert not any(character.isalnum() for character in beside.replace("'s", ""))


@given(context=contexts(), other=st.sampled_from(TAG_LIST))
def test_caption_without_the_tag_has_none_and_with_another_has_that(
    context: tuple[str, str], other: str
) -> None:
    tag, text = context
    if contains_tag(text, tag):
        assert remove_tag(text, tag, "thing") != text
        assert contains_tag(remove_tag(text, tag, "thing"), "thing")
        assert contains_tag(add_tag(text, tag, other), other)


@given(context=contexts())
def test_weight_on_the_tag_does_not_hide_it(context: tuple[str, str]) -> None:
    tag, _ = context
    escaped = escape_brackets(tag)
    for source in (f"a ({escaped}:1.2), b", f"({escaped}) BREAK x", f"x BREAK (({escaped}))"):
        assert has_tag(parse_prompt(source).weighted, tag)


def test_library_finds_the_tags_that_gates_find(model: "Model", tmp_path: Path) -> None:
    for index, tag in enumerate(TAG_LIST):
        path = tmp_path / f"{index}.safetensors"
        make_lora(model, path, {"targets": "mid"}, 0.1, tag=tag, gate="prompt")
    library = FolderLoraLibrary(model)
    library.add(tmp_path)
    for tag in TAG_LIST:
        for text in (f"x, {tag}, y", f"({tag}:1.1)", tag.title(), escape_brackets(tag)):
            texts = section_texts(parse_prompt(text).weighted)
            found = library.find_tags(texts)
            expected = [t for t in TAG_LIST if any(contains_tag(text, t) for text in texts)]
            assert tag in found
            assert set(found) <= set(expected)


@pytest.mark.parametrize("text", [r"\(a\) \[b\]", r"\\\(", r"\m/ \(^o^\)", "plain"])
def test_caption_means_what_the_same_prompt_means(text: str) -> None:
    assert section_texts(parse_prompt(text).weighted) == [unescape_brackets(text)]
