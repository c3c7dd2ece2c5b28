import torch

from helpers.paths import MERGES_FILE
from lorasmith.adapters.gating.gate_metadata import GateMetadata
from lorasmith.adapters.gating.token_mask import token_mask
from lorasmith.models.text.encode import tokenize
from lorasmith.models.text.prompt_spans import unweighted_prompt
from lorasmith.models.text.tokenizer import create_bpe_tokenizer, read_merges

TOKENIZER = create_bpe_tokenizer(read_merges(MERGES_FILE, 500))


def mask(kind: str, texts: list[str]) -> torch.Tensor:
    prompts = [unweighted_prompt(text) for text in texts]
    return token_mask(TOKENIZER, GateMetadata(kind, "curlyqx"), prompts, tokenize(TOKENIZER, texts))


def test_token_mask_allows_the_tag_and_the_end_of_a_text_with_the_tag() -> None:
    texts = ["a curlyqx person", "a person"]
    tag, tag_and_end = mask("token", texts), mask("token+end", texts)
    tag_length = len(TOKENIZER.tokenize("curlyqx"))
    assert tag.sum(dim=1).tolist() == [tag_length, 0]
    end = int((tokenize(TOKENIZER, texts)[0] == TOKENIZER.eos_token_id).nonzero()[0])
    assert tag_and_end.sum(dim=1).tolist() == [tag_length + 77 - end, 0]
    assert not bool((tag & ~tag_and_end).any())


def test_token_mask_allows_every_token_under_a_prompt_gate() -> None:
    assert bool(mask("prompt", ["a person"]).all())
