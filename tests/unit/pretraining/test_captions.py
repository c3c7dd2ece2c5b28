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
    """Every text that may be drawn, by its token ids."""
    texts = [*(text for row in CAPTIONS for text in row), "a cat", "a red pear", ""]
    ids = tokenize(tokenizer, texts)
    return {tuple(one.tolist()): text for one, text in zip(ids, texts, strict=True)}


def drawn(table: CaptionTable, known: dict[tuple[int, ...], str], number: int, **options) -> list:
    numbers = torch.full((COUNT,), number)
    draws = BatchRng(torch.Generator().manual_seed(number), COUNT)
    ids = table.draw(numbers, draws, **options)
    assert ids.shape == (COUNT, 77)
    return [known[tuple(one)] for one in ids.tolist()]


def test_phrasings_of_the_right_row_come_equally_often(table, known) -> None:
    for number, captions in enumerate(CAPTIONS):
        texts = drawn(table, known, number)
        assert set(texts) == set(captions)
        for text in captions:
            assert texts.count(text) / COUNT == pytest.approx(1 / len(captions), abs=0.04)


def test_the_main_caption_alone(table, known) -> None:
    assert set(drawn(table, known, 2, phrasings=False)) == {"a red pear, twemoji style"}


def test_shares_of_empty_and_short_captions(table, known) -> None:
    texts = drawn(table, known, 0, empty=0.1, short=0.25)
    assert texts.count("") / COUNT == pytest.approx(0.1, abs=0.02)
    assert texts.count("a cat") / COUNT == pytest.approx(0.25, abs=0.03)
    assert texts.count("cat") / COUNT == pytest.approx(0.65 / 2, abs=0.04)


def test_a_batch_of_several_rows(table, known) -> None:
    ids = table.draw(
        torch.tensor([2, 0, 1]), BatchRng(torch.Generator().manual_seed(0), 3), phrasings=False
    )
    assert [known[tuple(one)] for one in ids.tolist()] == [CAPTIONS[n][0] for n in (2, 0, 1)]
