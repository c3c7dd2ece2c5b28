import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from helpers.dataset_files import bomb, scene, write_image
from lorasmith.data.images import memory_budget
from lorasmith.data.images.memory_budget import MemoryBudget, estimate_memory, reserve_decoding
from lorasmith.data.reading.row import Row


def test_threads_together_stay_within_the_budget() -> None:
    budget, lock, used, peaks = MemoryBudget(100), threading.Lock(), [0], []

    def work(size: int) -> None:
        with budget.reserve(size):
            with lock:
                used[0] += size
                peaks.append(used[0])
            time.sleep(0.002)
            with lock:
                used[0] -= size

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, [30, 60, 10, 45, 99, 1] * 10))
    assert len(peaks) == 60
    assert 60 < max(peaks) <= 100


def test_what_exceeds_the_budget_gets_it_alone() -> None:
    budget, order = MemoryBudget(100), []
    started = threading.Event()

    def small() -> None:
        started.set()
        with budget.reserve(1):
            order.append("small")

    with budget.reserve(1000):
        thread = threading.Thread(target=small)
        thread.start()
        started.wait()
        time.sleep(0.02)
        order.append("large")
    thread.join()
    assert order == ["large", "small"]


def test_error_gives_memory_back() -> None:
    budget = MemoryBudget(10)
    for _ in range(3):
        with pytest.raises(KeyError), budget.reserve(10):
            raise KeyError


def test_memory_follows_from_the_header() -> None:
    assert estimate_memory(Image.new("RGB", (6000, 4000))) == 24_000_000 * 20
    assert estimate_memory(Image.new("I;16", (60, 40))) == 2400 * 40


def test_row_reserves_its_image_and_its_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserved: list[int] = []

    class Budget(MemoryBudget):
        def reserve(self, size: int):
            reserved.append(size)
            return super().reserve(size)

    monkeypatch.setattr(memory_budget, "_DECODING", Budget(1 << 40))
    image = write_image(tmp_path / "a.png", scene(0, (100, 50)))
    mask = write_image(tmp_path / "a.mask.png", bomb(200, 100))
    row = Row("a.png", ("x",), {}, image, mask_path=mask)
    packed = Row("a", ("x",), {}, image, 0, image.stat().st_size)
    for each, parts in ((row, (True, False)), (row, (False, True)), (row, ()), (packed, ())):
        with reserve_decoding(each, *parts):
            pass
    image_memory = 100 * 50 * 20 + image.stat().st_size
    mask_memory = 200 * 100 * 20 + mask.stat().st_size
    assert reserved == [image_memory, mask_memory, image_memory + mask_memory, image_memory]


@pytest.mark.parametrize("content", [None, b"", b"<html>", bomb(12_000, 12_000)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_will_be_refused_reserves_no_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    """Passing is the assertion: with a budget of 0 a reservation would wait until the timeout."""
    monkeypatch.setattr(memory_budget, "_DECODING", MemoryBudget(0))
    file = tmp_path / "a.png"
    if content is not None:
        file.write_bytes(content)
    with reserve_decoding(Row("a.png", ("x",), {}, file)):
        pass
