"""Fixtures that several test folders share: a tiny random Stable Diffusion 1.x on disk."""

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from helpers.tiny_models import make_tiny, open_model

if TYPE_CHECKING:
    from lorasmith.models.model import Model

# Read when torch loads: OpenMP threads that spin long starve each other on a busy machine.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# With a worker for each core, more threads would only wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# On a busy machine any example is slow now and then: no deadline.
settings.register_profile("lorasmith", deadline=None)
settings.load_profile("lorasmith")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `gpu` on a machine without a CUDA device."""
    import torch  # not at the top: the variables above count when it loads

    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def all_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Paths of cache folders that do not exist yet, one for each test."""
    folder = tmp_path_factory.mktemp("caches")
    return (folder / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def cache_in_tmp(all_caches: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test has a separate cache, so that none touches the user's."""
    folder = next(all_caches)
    monkeypatch.setenv("LORASMITH_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder with the parts of SD 1.x, very narrow, with fixed random weights."""
    return make_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def model(tiny_model: Path) -> "Model":
    """The tiny model, opened on the CPU in float32 for each test."""
    return open_model(tiny_model)


@pytest.fixture(scope="session")
def shared_model(tiny_model: Path) -> "Model":
    """The tiny model, opened once for the session; tests must not change it."""
    return open_model(tiny_model)


@pytest.fixture
def sdxl_model(tiny_sdxl: Path) -> "Model":
    return open_model(tiny_sdxl)


@pytest.fixture(scope="session")
def tiny_sd2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD 2.x: linear projections, predicts v."""
    return make_tiny(tmp_path_factory.mktemp("tiny") / "sd2", "sd2")


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SDXL: two text encoders, size and pooled conditioning."""
    return make_tiny(tmp_path_factory.mktemp("tiny") / "sdxl", "sdxl")


@pytest.fixture(scope="session")
def tiny_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the tiny model of a family named as in `make_tiny`; each is built once."""
    folders: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in folders:
            folders[family] = make_tiny(tmp_path_factory.mktemp("tiny") / family, family)
        return folders[family]

    return of
