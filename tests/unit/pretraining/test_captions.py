from pathlib import Path

import pytest
import torch

from lorasmith.core.batch_rng import BatchRng
from lorasmith.data.reading.row import Row
from lorasmith.models.load import load_tokenizer
from lorasmith.models.text.encode import tokenize
from lorasmith.pretraining.captions import CaptionTable

CAPTIONS = [
    ("a cat, noto style", "cat"),
    ("a dog",),
    ("a red pear, twemoji style", "pear", "fruit"),
]
COUNT = 3000


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path):
    return load_tokenizer(tiny_model)


@pytest.fixture(scope="module")
def table(tokenizer) -> CaptionTable:
    rows = [Row(str(n), texts, {}, Path("x")) for n, texts in enumerate(CAPTIONS)]
    return CaptionTable(tokenizer, rows, torch.device("cpu"))


@pytest.fixture(scope="module")
def known(tokenizer) -> dict[tuple[int, ...], str]:
    """Every text that may be sampled, by its token ids."""
    texts = [*(text for row in CAPTIONS for text in row), "a cat", "a red pear", ""]
    input_ids = tokenize(tokenizer, texts)
    return {tuple(ids.tolist()): text for ids, text in zip(input_ids, texts, strict=True)}


def sample(table: CaptionTable, known: dict[tuple[int, ...], str], row: int, **options) -> list:
    rng = BatchRng(torch.Generator().manual_seed(row), COUNT)
    input_ids = table.sample(torch.full((COUNT,), row), rng, **options)
    assert input_ids.shape == (COUNT, 77)
    return [known[tuple(ids)] for ids in input_ids.tolist()]


def test_captions_of_a_row_are_equally_frequent(table, known) -> None:
    for row, captions in enumerate(CAPTIONS):
        texts = sample(table, known, row)
        assert set(texts) == set(captions)
        for text in captions:
            assert texts.count(text) / COUNT == pytest.approx(1 / len(captions), abs=0.04)


def test_first_caption_only_uses_one_caption(table, known) -> None:
    assert set(sample(table, known, 2, use_all_captions=False)) == {"a red pear, twemoji style"}


def test_empty_and_truncated_captions_have_their_rates(table, known) -> None:
    texts = sample(table, known, 0, dropout_rate=0.1, truncation_rate=0.25)
    assert texts.count("") / COUNT == pytest.approx(0.1, abs=0.02)
    assert texts.count("a cat") / COUNT == pytest.approx(0.25, abs=0.03)
    assert texts.count("cat") / COUNT == pytest.approx(0.65 / 2, abs=0.04)


def test_batch_has_a_caption_for_each_row(table, known) -> None:
    ids = table.sample(
        torch.tensor([2, 0, 1]),
        BatchRng(torch.Generator().manual_seed(0), 3),
        use_all_captions=False,
    )
    assert [known[tuple(row)] for row in ids.tolist()] == [CAPTIONS[n][0] for n in (2, 0, 1)]
