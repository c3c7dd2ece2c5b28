"""One thread, because the last bits of a sum depend on how many share it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import golden_runs as golden
import pytest
import torch


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden") / "scene"
    golden.write_scene(folder)
    return folder


@pytest.fixture
def golden_folder(scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a copy of the images."""
    folder = tmp_path / "here"
    shutil.copytree(scene, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LoRA files of every kind and gate."""
    return golden.write_loras(tmp_path_factory.mktemp("golden") / "loras")
