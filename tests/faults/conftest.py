"""Images to train on, and signals as a terminal leaves them."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.training.feature_runs import write_pictures


@pytest.fixture(autouse=True)
def default_signals() -> Iterator[None]:
    """Shells and test runners let programs ignore some, and their children inherit that."""
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [getattr(signal, name) for name in names]
    before = [signal.getsignal(number) for number in numbers]
    for number in numbers:
        is_interrupt = number == signal.SIGINT
        signal.signal(number, signal.default_int_handler if is_interrupt else signal.SIG_DFL)
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Small captioned images, all with the tag inkmono."""
    folder = tmp_path / "pictures"
    write_pictures(folder, "inkmono", 0)
    return folder
