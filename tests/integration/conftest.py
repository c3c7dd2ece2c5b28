"""Images to train on, and finished pretraining runs that several test files look at."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from helpers.training.pretrain_runs import PretrainRuns, make_data


@pytest.fixture(autouse=True)
def ctrl_c_interrupts() -> Iterator[None]:
    """Shells let background programs ignore SIGINT, and their children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six small captioned images, all with the tag."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(6):
        picture = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(picture).ellipse((4 * number, 8, 30 + 4 * number, 50), fill="black")
        picture.save(folder / f"ball{number}.png")
        (folder / f"ball{number}.txt").write_text(f"ball number {number}, inkmono style\n")
    return folder


@pytest.fixture(scope="session")
def pretrain_runs(tmp_path_factory: pytest.TempPathFactory) -> PretrainRuns:
    """A dataset and a finished run of each kind, each using the previous."""
    pretrain_runs = PretrainRuns(tmp_path_factory.mktemp("pretrain"))
    make_data(pretrain_runs.data)
    assert pretrain_runs.pretrain("clip", pretrain_runs.clip) == 0
    assert pretrain_runs.pretrain("vae", pretrain_runs.vae) == 0
    assert pretrain_runs.pretrain("unet", pretrain_runs.unet, "train.tensorboard=true") == 0
    return pretrain_runs
