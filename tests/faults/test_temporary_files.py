"""Files that are written under another name first: nobody can put something in their way."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from lorasmith.core import files
from lorasmith.core.errors import OutputError
from lorasmith.core.files import (
    atomic_folder,
    atomic_write,
    remove_temporary_files,
    temporary_path,
    temporary_target,
    write_text,
)
from lorasmith.core.safetensors_io import save_tensors
from lorasmith.inference.outputs.save import save_png
from lorasmith.loops.checkpoint import save_checkpoint

TOKEN = "0123456789abcdef"


def test_temporary_names_cannot_be_guessed(tmp_path: Path) -> None:
    names = {temporary_path(tmp_path / "a.png").name for _ in range(100)}
    assert len(names) == 100
    assert all(str(os.getpid()) != name.split("-")[2] for name in names)
    assert {temporary_target(tmp_path / name) for name in names} == {"a.png"}
    assert temporary_target(tmp_path / "a.png") is None


@pytest.fixture
def guessed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file elsewhere that an attacker, who guessed a name, links to from the output folder."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(files.secrets, "token_hex", lambda count: TOKEN)
    return victim


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
@pytest.mark.parametrize("name", ["a.txt", "a.safetensors", "a.png"])
def test_link_in_the_way_of_a_temporary_file_is_not_followed(guessed: Path, name: str) -> None:
    target = guessed.parent / "out" / name
    temporary_path(target).symlink_to(guessed)
    write = {
        ".txt": lambda: write_text(target, "mine"),
        ".png": lambda: save_png(Image.new("RGB", (8, 8)), target),
        ".safetensors": lambda: save_tensors(target, {"a": torch.ones(2)}, {}),
    }[target.suffix]
    with pytest.raises((OSError, OutputError), match="File exists"):
        write()
    assert guessed.read_text() == "precious"
    assert not target.exists()


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_link_in_the_way_of_a_temporary_folder_is_not_followed(
    guessed: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    target = tmp_path / "out" / "model"
    temporary_path(target).symlink_to(elsewhere)
    with pytest.raises(OutputError, match="File exists"), atomic_folder(target):
        pass
    checkpoint = tmp_path / "out" / "step-00000001"
    temporary_path(checkpoint).symlink_to(elsewhere)
    with pytest.raises(OutputError, match="File exists"):
        save_checkpoint(tmp_path / "out", 1, {"a": torch.ones(2)}, {}, 1)
    assert list(elsewhere.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_temporary_file_that_became_a_link_is_not_put_in_place(
    guessed: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out" / "a.txt"

    def write_through_link() -> None:
        with atomic_write(target) as temporary:
            temporary.unlink()
            temporary.symlink_to(guessed)

    mode = guessed.stat().st_mode
    with pytest.raises(OSError, match="symbolic links"):
        write_through_link()
    assert not os.path.lexists(target)
    assert guessed.read_text() == "precious"
    assert guessed.stat().st_mode == mode


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_link_at_the_target_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    victim, target = tmp_path / "victim", tmp_path / "a.txt"
    victim.write_text("precious")
    target.symlink_to(victim)
    write_text(target, "mine")
    assert victim.read_text() == "precious"
    assert not target.is_symlink()
    assert target.read_text() == "mine"


def test_only_leftovers_of_our_pattern_are_removed(tmp_path: Path) -> None:
    other_files = [
        ".lorasmith-tmp-notes.txt", "lorasmith-tmp-12-a.png", ".lorasmith-tmp-xyz-a.png", "a.png",
    ]  # fmt: skip
    for name in (*other_files, f".lorasmith-tmp-{TOKEN}-a.png", ".lorasmith-tmp-4711-b.png"):
        (tmp_path / name).write_text("x")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("x")
    (tmp_path / f".lorasmith-tmp-{TOKEN}-link").symlink_to(outside)
    remove_temporary_files(tmp_path, "b.png")
    assert not (tmp_path / ".lorasmith-tmp-4711-b.png").exists()
    assert (tmp_path / f".lorasmith-tmp-{TOKEN}-a.png").exists()
    remove_temporary_files(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*other_files, "outside"])
    assert (outside / "file").exists()
