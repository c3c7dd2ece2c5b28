"""Images that are hostile, broken or of another kind: each is named, none harms the others."""

import io
import os
import re
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.dataset_files import bomb, encoded, scene, write_image
from lorasmith.core.errors import ConfigError, DataError
from lorasmith.data.images import memory_budget
from lorasmith.data.images.decode import DecodedImage, decode_image, decode_with_details
from lorasmith.data.images.memory_budget import MemoryBudget
from lorasmith.data.images.open_image import IMAGE_FORMATS
from lorasmith.data.scan import image_inspection
from lorasmith.data.scan.scan import scan_dataset
from lorasmith.inference.init_image import InitImage

on_posix = pytest.mark.skipif(os.name != "posix", reason="needs named pipes and sparse files")
ROOT = Path(__file__).parents[2]
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n%%EOF\n"
OTHER_FORMATS = ("PPM", "TGA", "ICO", "PCX", "SGI", "IM", "DDS", "JPEG2000", "ICNS", "QOI", "XBM")


def test_image_files_are_opened_in_one_module() -> None:
    opening = re.compile(r"\bImage\s*\.\s*open\s*\(|from PIL\.Image import .*\bopen\b|imread\(")
    places = [
        str(path.relative_to(ROOT))
        for folder in ("src", "bench", "examples", "recipes")
        for path in (ROOT / folder).rglob("*.py")
        if opening.search(path.read_text(encoding="utf-8"))
    ]
    assert places == ["src/lorasmith/data/images/open_image.py"]


@pytest.fixture
def no_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*command: object, **_: object) -> None:
        raise AssertionError(f"a program was started: {command}")

    for name in ("Popen", "run", "check_call", "check_output", "call"):
        monkeypatch.setattr(subprocess, name, refuse)
    monkeypatch.setattr(os, "system", refuse)


@pytest.mark.usefixtures("no_programs")
def test_eps_under_another_name_is_not_drawn(tmp_path: Path) -> None:
    file = write_image(tmp_path / "a.png", EPS)
    write_image(tmp_path / "b.png", scene(0))
    result = scan_dataset(tmp_path)
    (problem,) = result.problems
    assert (problem.file, problem.kind) == ("a.png", "not-an-image")
    assert problem.detail == "is not an image but a PostScript file"
    assert [row.key for row in result.rows] == ["b.png"]
    with pytest.raises(DataError, match=r"a\.png: cannot be decoded \(it is not a PNG, JPEG"):
        InitImage.load(file)


@pytest.mark.parametrize("kind", OTHER_FORMATS)
def test_formats_that_are_not_documented_are_refused(kind: str) -> None:
    stream = io.BytesIO()
    mode = "1" if kind == "XBM" else "RGB"
    try:
        Image.new(mode, (32, 32)).save(stream, kind)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow writes no {kind}")
    with pytest.raises(DataError, match=r"x: cannot be decoded \(it is not a PNG, JPEG"):
        decode_image(stream.getvalue(), "x")


def test_documented_formats_are_those_that_are_read() -> None:
    text = (ROOT / "docs/datasets.md").read_text(encoding="utf-8")
    (sentence,) = re.findall(r"^(PNG, .*?) are read\.", text, re.MULTILINE)
    assert set(re.split(r"\W+(?:AND\W+)?", sentence.upper())) == set(IMAGE_FORMATS)


# --- bombs --------------------------------------------------------------------------------------


@on_posix
@pytest.mark.parametrize("location", ["a.png", "b.mask.png"])
def test_sparse_file_is_not_read_into_memory(tmp_path: Path, location: str) -> None:
    write_image(tmp_path / "b.png", scene(0))
    write_image(tmp_path / "c.png", scene(1))
    with write_image(tmp_path / location, b"\x89PNG\r\n\x1a\n", None).open("r+b") as stream:
        stream.truncate(12 << 30)
    if location == "a.png":
        (tmp_path / "a.txt").write_text("a thing")
    start = time.monotonic()
    result = scan_dataset(tmp_path)
    assert time.monotonic() - start < 5.0
    (problem,) = result.problems
    assert problem.kind == ("too-large" if location == "a.png" else "bad-mask")
    assert "larger than 1 GiB" in problem.detail
    assert "c.png" in [row.key for row in result.rows]


@on_posix
def test_init_image_that_is_sparse_or_a_pipe_is_refused(tmp_path: Path) -> None:
    sparse = tmp_path / "sparse.png"
    with sparse.open("wb") as stream:
        stream.truncate(12 << 30)
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    for file, words in ((sparse, "larger than 1 GiB"), (pipe, "is a named pipe, not a file")):
        with pytest.raises(ConfigError, match=rf"image: .*{file.name}: cannot be read \({words}"):
            InitImage.load(file)
    with pytest.raises(ConfigError, match="is not a valid file name"):
        InitImage.load("a\0.png")


def test_many_threads_do_not_decode_large_images_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(12):
        write_image(tmp_path / f"{index:02}.png", bomb(1000, 1000 + index))
    lock, active, peaks = threading.Lock(), [0], []

    def decode(*arguments: Any) -> DecodedImage:
        with lock:
            active[0] += 1
            peaks.append(active[0])
        time.sleep(0.02)
        try:
            return decode_with_details(*arguments)
        finally:
            with lock:
                active[0] -= 1

    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    monkeypatch.setattr(image_inspection, "decode_with_details", decode)
    scan_dataset(tmp_path)
    assert max(peaks) > 3  # by default there is room for them
    peaks.clear()
    monkeypatch.setattr(memory_budget, "_DECODING", MemoryBudget(3 * 1012 * 1000 * 20 + 10_000))
    result = scan_dataset(tmp_path)
    assert len(result.rows) == len(peaks) == 12
    assert max(peaks) <= 3


@pytest.mark.parametrize("size", [(6000, 4000), (9600, 6400)], ids=["24 MP", "61 MP"])
def test_photographs_of_usual_sizes_are_read(tmp_path: Path, size: tuple[int, int]) -> None:
    ramp = np.linspace(0, 255, size[0]).astype(np.uint8)
    photo = Image.fromarray(np.broadcast_to(ramp[None, :, None], (size[1], size[0], 3)).copy())
    write_image(tmp_path / "photo.jpg", encoded(photo, "JPEG", quality=60))
    result = scan_dataset(tmp_path)
    assert [info.size for info in result.images] == [size]
    assert result.problems == []


# --- what is no file ----------------------------------------------------------------------------


@on_posix
def test_pipes_and_sockets_under_the_name_of_an_image_do_not_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "a.png", scene(0))
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "pipe.txt").write_text("a thing")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tmp_path)  # a socket's path must be short
        listener.bind("socket.png")
        (tmp_path / "socket.txt").write_text("a thing")
        problems: list[tuple[str, str]] = []

        def scan() -> None:
            problems.extend((each.file, each.kind) for each in scan_dataset(tmp_path).problems)

        thread = threading.Thread(target=scan, daemon=True)
        thread.start()
        thread.join(20)
    assert problems == [("pipe.png", "unreadable"), ("socket.png", "unreadable")]
