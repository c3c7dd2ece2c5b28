"""Captions with and without the tag, and the warning about the latter."""

import warnings
from pathlib import Path

import pytest
from PIL import Image

from lorasmith.config.train_config import DataConfig
from lorasmith.core.errors import DataError, LorasmithWarning
from lorasmith.training.data.split import read_train_rows


def write_pictures(folder: Path, captions: list[str], side: int = 64) -> Path:
    folder.mkdir(exist_ok=True)
    for index, caption in enumerate(captions):
        shade = 40 * index
        Image.new("RGB", (side, side), (shade, 90, 200 - shade)).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(caption)
    return folder


def test_tag_in_every_caption_is_silent(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "p", ["a cat, ink style", "a dog, Ink style"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read_train_rows(DataConfig(path=folder, tag="ink"))) == 2


def test_some_captions_without_the_tag_warn_with_counts(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "p", ["a cat, ink style", "a dog", "inky"])
    with pytest.warns(LorasmithWarning, match=r"2 of 3 captions do not contain .*first 1\.png"):
        assert len(read_train_rows(DataConfig(path=folder, tag="ink"))) == 3


def test_no_caption_with_the_tag_is_an_error(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "p", ["a cat", "a dog"])
    with pytest.raises(
        DataError, match=r"none of its 2 captions contains the tag 'ink'.*a cat, ink"
    ):
        read_train_rows(DataConfig(path=folder, tag="ink"))
