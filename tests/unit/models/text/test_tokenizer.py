import os
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from lorasmith.core.errors import DataError
from lorasmith.models.files.open import EMBEDDED
from lorasmith.models.load import load_tokenizer
from lorasmith.models.text.tokenizer import create_bpe_tokenizer, create_clip_tokenizer, read_merges

MERGES = "#version: 0.2\nc a\nca t</w>\nt h\nth e</w>\n"


@pytest.fixture
def merges(tmp_path: Path) -> Path:
    (tmp_path / "merges.txt").write_text(MERGES, encoding="utf-8")
    return tmp_path / "merges.txt"


def ids(tokenizer: CLIPTokenizer, text: str) -> list[int]:
    return tokenizer(text)["input_ids"]


def test_ids_equal_hand_computed_ones(merges: Path) -> None:
    tokenizer = create_bpe_tokenizer(read_merges(merges))
    start, end = 512 + 4, 512 + 5
    # Printable ASCII from "!" comes first, so "a" is 97 - 33; the end-of-word forms follow at 256.
    a, c, h = (ord(letter) - 33 for letter in "ach")
    cat, the = 513, 515
    assert ids(tokenizer, "cat the") == [start, cat, the, end]
    assert ids(tokenizer, "CAT") == [start, cat, end]
    assert ids(tokenizer, "catch") == [start, 512, ord("t") - 33, c, 256 + h, end]
    assert ids(tokenizer, "a c") == [start, 256 + a, 256 + c, end]
    assert ids(tokenizer, "") == [start, end]
    assert ids(tokenizer, "cat,") == [start, cat, 256 + ord(",") - 33, end]
    # "é" is the bytes C3 A9, printable in Latin-1: the 94 of ASCII, then 161 to 172 and so on.
    assert ids(tokenizer, "é") == [start, 94 + 12 + 0xC3 - 174, 256 + 94 + 0xA9 - 161, end]
    assert (len(tokenizer), tokenizer.model_max_length) == (518, 77)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == end


def test_saved_tokenizer_reads_the_same(merges: Path, tmp_path: Path) -> None:
    tokenizer = create_bpe_tokenizer(read_merges(merges))
    tokenizer.save_pretrained(tmp_path / "model" / "tokenizer")
    loaded = load_tokenizer(tmp_path / "model")
    assert loaded.model_max_length == 77
    for text in ("the cat catches a hat, été!", "", "日本", "the " * 90):
        assert ids(loaded, text) == ids(tokenizer, text)
        assert loaded.decode(ids(loaded, text)) == tokenizer.decode(ids(tokenizer, text))


def test_merge_list_may_be_truncated(merges: Path) -> None:
    assert read_merges(merges, 2) == [("c", "a"), ("ca", "t</w>")]
    assert len(read_merges(merges)) == 4
    with pytest.raises(DataError, match=r"merges\.txt: has 4 merges, fewer than the required 9"):
        read_merges(merges, 9)


def test_malformed_merge_list_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.txt"
    for content, message in (
        (b"c a\nbroken\n", r"m\.txt: 'broken' is not a merge \(two symbols a line\)"),
        (b"c a t\n", "'c a t' is not a merge"),
        (b"caf\xe9 x\n", "cannot be read as a merge list"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_merges(path)
    with pytest.raises(DataError, match="cannot be read as a merge list"):
        read_merges(tmp_path / "absent.txt")


def test_shipped_merges_make_the_tokenizer_of_clip() -> None:
    tokenizer = create_clip_tokenizer(49408)
    assert len(tokenizer) == 49408
    # Published ids: "a photo of a cat" is a common example of CLIP's.
    assert ids(tokenizer, "a photo of a cat") == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert ids(tokenizer, "") == [49406, 49407]
    assert create_clip_tokenizer(49408, "!").pad_token_id == 0


def test_small_vocabulary_has_the_first_merges() -> None:
    tokenizer, embedded = create_clip_tokenizer(8192), load_tokenizer(EMBEDDED)
    assert tokenizer.get_vocab() == embedded.get_vocab()
    text = "A lighthouse at dusk, 3 sheep & a café; noto style"
    assert ids(tokenizer, text) == ids(embedded, text)


@pytest.mark.parametrize("vocabulary", [513, 49409])
def test_vocabulary_that_is_not_of_clip_is_refused(vocabulary: int) -> None:
    with pytest.raises(DataError, match=r"is not CLIP's, which has 49,408 tokens"):
        create_clip_tokenizer(vocabulary)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes in folders")
def test_pipe_as_a_merge_list_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "merges.txt")
    with pytest.raises(DataError, match=r"merges\.txt: cannot be read"):
        read_merges(tmp_path / "merges.txt")
