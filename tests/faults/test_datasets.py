"""Folders, captions, manifests, packed files and caches that are hostile, broken or not ours.

Each fault is one line with the file's name, and the other images are read.
"""

import io
import json
import os
import socket
import sys
import tarfile
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers.dataset_files import scene, write_image
from lorasmith.cli import run
from lorasmith.config.train_data import DataConfig
from lorasmith.core.errors import DataError, LorasmithWarning
from lorasmith.data.cache.tensor_cache import TensorCache
from lorasmith.data.reading import manifest as manifest_module
from lorasmith.data.reading import packed_tar
from lorasmith.data.reading.options import ReadOptions
from lorasmith.data.reading.reader import read_rows
from lorasmith.data.scan.scan import ScanResult, read_usable_rows, scan_dataset

needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
FOLLOW = ReadOptions(follow_links=True)


def without_blocking(action: Callable[[], Any]) -> Any:
    """Return what an action returns; a test fails where it takes more than 20 seconds."""
    results: list[Any] = []

    def call() -> None:
        results.append(action())

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(20)
    assert results, "blocked, or raised"
    return results[0]


def error_of(action: Callable[[], object]) -> str:
    """Return the message of the DataError that an action raises; empty without one."""
    try:
        action()
    except DataError as error:
        return str(error)
    return ""


def problems_of(result: ScanResult) -> dict[str, str]:
    return {problem.file: problem.kind for problem in result.problems}


def keys_of(result: ScanResult) -> list[str]:
    return [row.key for row in result.rows]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a dataset of one image, with room beside it."""
    write_image(tmp_path / "data" / "own.png", scene(0))
    return tmp_path / "data"


# --- links --------------------------------------------------------------------------------------


def test_caption_that_links_out_of_the_folder_is_not_read(data: Path) -> None:
    secret = data.parent / "secret.txt"
    secret.write_text("password 12345")
    write_image(data / "a.png", scene(1), caption=None)
    (data / "a.txt").symlink_to(secret)
    result = scan_dataset(data)
    assert keys_of(result) == ["own.png"]
    (problem,) = result.errors
    assert (problem.file, problem.kind) == ("a.png", "bad-caption")
    assert "a.txt is a link out of the dataset and not read" in problem.detail
    assert "data.follow_links = true" in problem.detail
    assert "12345" not in problem.detail
    assert scan_dataset(data, options=FOLLOW).rows[0].caption == "password 12345"


def test_device_as_a_caption_is_not_read_even_when_links_are_followed(data: Path) -> None:
    write_image(data / "a.png", scene(1), caption=None)
    (data / "a.txt").symlink_to("/dev/zero")
    result = without_blocking(lambda: scan_dataset(data, options=FOLLOW))
    (problem,) = result.errors
    assert (problem.file, problem.kind) == ("a.txt", "bad-caption")
    assert "is a device, not a file" in problem.detail


def test_links_inside_the_folder_are_followed(data: Path) -> None:
    write_image(data / "sets" / "x.png", scene(2), "thing x")
    (data / "10_dogs").symlink_to("sets")
    (data / "y.png").symlink_to("sets/x.png")
    (data / "y.txt").symlink_to("sets/x.txt")
    result = scan_dataset(data)
    assert result.problems == []
    assert keys_of(result) == ["10_dogs/x.png", "own.png", "sets/x.png", "y.png"]


def test_links_out_of_the_folder_are_named_and_followed_on_request(data: Path) -> None:
    write_image(data.parent / "elsewhere" / "x.png", scene(2), "thing x")
    (data / "more").symlink_to("../elsewhere")
    (data / "y.png").symlink_to("../elsewhere/x.png")
    (data / "y.txt").write_text("thing y")
    result = scan_dataset(data)
    assert keys_of(result) == ["own.png"]
    assert result.image_count == 1
    assert result.errors == []
    assert problems_of(result) == {"more": "linked-outside", "y.png": "linked-outside"}
    with pytest.warns(LorasmithWarning, match=r"more: is a link to a folder outside .*_links"):
        assert len(read_usable_rows(config(data))) == 1
    with pytest.warns(LorasmithWarning, match="2 links lead out of the dataset, first more"):
        read_rows(data)
    assert len(read_usable_rows(config(data, follow_links=True))) == 3


def config(folder: Path, **more: object) -> DataConfig:
    return DataConfig.model_validate({"path": folder, "tag": "thing", **more})


def test_folder_with_nothing_but_a_link_out_says_so(tmp_path: Path) -> None:
    write_image(tmp_path / "elsewhere" / "x.png", scene(2), "thing x")
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "10_dogs").symlink_to("../elsewhere")
    with pytest.raises(DataError, match=r"no images found .*; there is 10_dogs: is a link to a"):
        scan_dataset(tmp_path / "only")


def test_mask_that_links_out_of_the_folder_is_an_error(data: Path) -> None:
    write_image(data.parent / "m.png", Image.new("L", (96, 96), 255), caption=None)
    (data / "own.mask.png").symlink_to("../m.png")
    write_image(data / "a.png", scene(1))
    result = scan_dataset(data)
    assert keys_of(result) == ["a.png"]
    assert problems_of(result) == {"own.png": "bad-mask"}
    assert len(scan_dataset(data, options=FOLLOW).rows) == 2


def test_loops_of_links_are_named_and_end(data: Path) -> None:
    for name in ("a", "b"):
        write_image(data / name / f"{name}.png", scene(ord(name)))
    (data / "a" / "up").symlink_to("..")
    (data / "a" / "self").symlink_to(".")
    (data / "a" / "to_b").symlink_to("../b")
    (data / "b" / "to_a").symlink_to("../a")
    (data / "eternal").symlink_to("eternal")
    (data / "eternal.png").symlink_to("eternal.png")
    result = without_blocking(lambda: scan_dataset(data))
    assert keys_of(result)[:3] == ["a/a.png", "a/to_b/b.png", "b/b.png"]
    assert problems_of(result)["a/up"] == problems_of(result)["a/self"] == "link-loop"
    assert problems_of(result)["eternal.png"] == "missing-file"


def test_folders_that_link_to_each_other_many_times_end(data: Path) -> None:
    for level in range(30):
        (data / f"{level}").mkdir()
        for side in "lr":
            (data / f"{level}" / side).symlink_to(f"../{level + 1}")
    write_image(data / "30" / "deep.png", scene(1))
    result = without_blocking(lambda: scan_dataset(data))
    assert "30/deep.png" in keys_of(result)
    assert "link-loop" in problems_of(result).values()


def test_data_folder_that_is_a_link_is_read(data: Path) -> None:
    (data / "sub").mkdir()
    (data / "link.png").symlink_to("own.png")
    (data / "link.txt").write_text("thing")
    (data.parent / "alias").symlink_to(data)
    assert scan_dataset(data.parent / "alias").problems == []


def test_list_that_links_out_of_the_folder_is_refused(data: Path) -> None:
    line = json.dumps({"file_name": "own.png", "text": "thing"})
    (data.parent / "list.jsonl").write_text(line)
    (data / "metadata.jsonl").symlink_to("../list.jsonl")
    with pytest.raises(DataError, match=r"metadata\.jsonl: is a link out of the dataset"):
        scan_dataset(data)
    assert len(scan_dataset(data, options=FOLLOW).rows) == 1


def test_listed_image_that_links_out_is_followed_on_request(data: Path) -> None:
    write_image(data.parent / "x.png", scene(2), caption=None)
    (data / "x.png").symlink_to("../x.png")
    lines = [json.dumps({"file_name": name, "text": "thing"}) for name in ("own.png", "x.png")]
    (data / "metadata.jsonl").write_text("\n".join(lines))
    (problem,) = scan_dataset(data).errors
    assert problem.kind == "missing-file"
    assert "links out of it need data.follow_links = true" in problem.detail
    assert len(scan_dataset(data, options=FOLLOW).rows) == 2
    (data / "metadata.jsonl").write_text('{"file_name": "../x.png", "text": "thing"}')
    assert problems_of(scan_dataset(data, options=FOLLOW)) == {"metadata.jsonl:1": "missing-file"}


# --- what is no file ----------------------------------------------------------------------------


@needs_pipes
def test_pipes_and_sockets_as_captions_and_masks_do_not_block(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pipe", "socket", "masked"):
        write_image(data / f"{name}.png", scene(1), "thing" if name == "masked" else None)
    os.mkfifo(data / "pipe.txt")
    os.mkfifo(data / "masked.mask.png")
    monkeypatch.chdir(data)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.txt")
        result = without_blocking(lambda: scan_dataset(data))
    assert keys_of(result) == ["own.png"]
    details = {problem.file: problem.detail for problem in result.errors}
    assert "is a named pipe, not a file" in details["pipe.txt"]
    assert "cannot be read" in details["socket.txt"]
    assert "is a named pipe, not a file" in details["masked.png"]


@needs_pipes
def test_list_that_is_no_file_is_one_error(data: Path) -> None:
    os.mkfifo(data / "metadata.jsonl")
    with pytest.raises(DataError, match=r"metadata\.jsonl: cannot be read \(is a named pipe"):
        scan_dataset(data)
    (data / "metadata.jsonl").unlink()
    (data / "metadata.jsonl").mkdir()
    with pytest.raises(DataError, match=r"metadata\.jsonl: cannot be read \(is a folder"):
        scan_dataset(data)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may read anything")
def test_folder_without_permission_is_named(data: Path) -> None:
    write_image(data / "closed" / "x.png", scene(1))
    (data / "closed").chmod(0)
    result = scan_dataset(data)
    (data / "closed").chmod(0o700)
    assert problems_of(result) == {"closed": "unreadable"}


# --- metadata.jsonl -----------------------------------------------------------------------------

GOOD = '{"file_name": "own.png", "text": "a thing"}'
BAD_LINES = {
    "number of many digits": '{"file_name": "own.png", "text": "x", "n": ' + "9" * 5000 + "}",
    "deep": "[" * 100_000,
    "deep object": '{"a":' * 100_000,
    "long name": json.dumps({"file_name": "x" * 5000, "text": "x"}),
    "long path": json.dumps({"file_name": "x/" * 3000, "text": "x"}),
    "NUL": '{"file_name": "a\\u0000b.png", "text": "x"}',
    "half a pair in the name": '{"file_name": "\\ud800.png", "text": "x"}',
    "half a pair": '{"file_name": "own.png", "text": "a \\ud83d thing"}',
    "half a pair in a list": '{"file_name": "own.png", "captions": ["a thing", "\\udc00"]}',
    "loop of links": '{"file_name": "loop.png", "text": "x"}',
    "loop of folders": '{"file_name": "round/own.png", "text": "x"}',
    "folder": '{"file_name": ".", "text": "x"}',
    "empty name": '{"file_name": "", "text": "x"}',
    "mask": '{"file_name": "own-masklabel.png", "text": "x"}',
    "no text": '{"file_name": "own.png", "text": NaN}',
    "infinite": '{"file_name": 1e400, "text": "x"}',
    "binary": "\x01\x02",
}


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES.keys())
def test_bad_line_of_a_list_is_named_and_the_others_are_read(data: Path, line: str) -> None:
    (data / "loop.png").symlink_to("loop.png")
    (data / "round").symlink_to("round")
    (data / "metadata.jsonl").write_text(f"{GOOD}\n{line}\n{GOOD}\n", encoding="utf-8")
    result = scan_dataset(data)
    assert keys_of(result) == ["own.png", "own.png"]
    (problem,) = result.errors
    assert problem.file == "metadata.jsonl:2"
    assert "\n" not in problem.detail
    assert len(problem.detail) < 300


def test_text_that_training_cannot_encode_does_not_pass_the_check(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = '{"file_name": "own.png", "text": "a \\ud83d thing"}'
    (data / "metadata.jsonl").write_text(line)
    assert run(["check", str(data), "--tag", "thing"]) == 1
    output = capsys.readouterr()
    assert "unexpected" not in output.err
    assert "half of a surrogate pair" in " ".join(output.out.split())


def test_list_of_bad_lines_only_ends_early(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "_MAX_PROBLEMS", 50)
    (data / "metadata.jsonl").write_text("x\n" * 1000)
    with pytest.raises(DataError, match="more than 50 lines cannot be used, first metadata"):
        scan_dataset(data)


@settings(max_examples=150, deadline=1000)
@given(st.data())
def test_any_list_raises_only_errors_of_lorasmith(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    write_image(folder / "own.png", scene(0))
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=5,
    )
    names = st.sampled_from(["file_name", "text", "caption", "captions", "x"])
    record = st.dictionaries(names, values | st.just("own.png"), max_size=4)
    lines = data.draw(st.lists(record.map(json.dumps) | st.text(max_size=30), max_size=4))
    (folder / "metadata.jsonl").write_text("\n".join(lines), "utf-8", "surrogatepass")

    def read() -> None:
        for row in scan_dataset(folder).rows:
            assert all(text.encode() for text in row.captions)

    assert "\n" not in error_of(read)


# --- packed files -------------------------------------------------------------------------------


def pack(path: Path, metadata: bytes, images: bytes = bytes(9)) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in ((packed_tar.METADATA, metadata), (packed_tar.IMAGES, images)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_packed_metadata_that_unpack_to_gigabytes_are_refused(tmp_path: Path) -> None:
    packer = zlib.compressobj(9)
    block = b'{"style": "s", "icon": "x"}\n'.ljust(1 << 20)
    packed = b"".join(packer.compress(block) for _ in range(700)) + packer.flush()
    bomb = pack(tmp_path / "bomb.tar", packed)
    assert bomb.stat().st_size < 1 << 20
    start = time.monotonic()
    with pytest.raises(DataError, match=r"bomb\.tar: .*unpacks to more than 256 MiB"):
        read_rows(bomb)
    assert time.monotonic() - start < 10


@needs_pipes  # and sparse files
def test_header_that_declares_gigabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sparse.tar"
    info = tarfile.TarInfo("long")
    info.type, info.size = tarfile.XHDTYPE, 12 << 30
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT))
    with path.open("r+b") as stream:
        stream.truncate(13 << 30)
    with pytest.raises(DataError, match=r"sparse\.tar: not a packed dataset .*header of"):
        read_rows(path)
    info = tarfile.TarInfo(packed_tar.METADATA)
    info.size = 12 << 30
    other = tarfile.TarInfo(packed_tar.IMAGES)
    with path.open("r+b") as stream:
        stream.write(info.tobuf(tarfile.GNU_FORMAT))
        stream.seek(512 + (12 << 30))
        stream.write(other.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
        stream.truncate()
    with pytest.raises(DataError, match=r"sparse\.tar: not a packed dataset .*has 12,884,901,888"):
        read_rows(path)


@pytest.mark.parametrize(
    "fields",
    [
        {"off": 1e400}, {"off": 1.5}, {"off": True}, {"len": "3"}, {"len": 10**30}, {"off": -1},
        {"style": "\ud800"}, {"icon": "a\0b"}, {"icon": "a\nb"}, {"caption": "\ud800"},
    ],
)  # fmt: skip
def test_bad_row_of_a_packed_file_is_named(tmp_path: Path, fields: dict[str, object]) -> None:
    row = {"style": "s", "icon": "x", "off": 0, "len": 3, "caption": "x", **fields}
    path = pack(tmp_path / "d.tar", zlib.compress(json.dumps(row).encode()))
    with pytest.raises(DataError, match=r"d\.tar: row 1: "):
        read_rows(path)


@settings(max_examples=200, deadline=1000)
@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=20))
def test_any_damage_to_a_packed_file_is_an_error_of_lorasmith(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    row = {"style": "s", "icon": "x", "off": 0, "len": 3, "caption": "x"}
    path = tmp_path_factory.mktemp("tar") / "d.tar"
    content = bytearray(pack(path, zlib.compress(json.dumps(row).encode())).read_bytes())
    for place, value in changes:
        content[place] = value
    path.write_bytes(content)
    message = error_of(lambda: read_rows(path))
    assert not message or "d.tar: " in message


# --- captions -----------------------------------------------------------------------------------


def test_several_lines_of_captions_are_a_warning(data: Path) -> None:
    write_image(data / "a.png", scene(1), "a thing\nA photograph of a thing\n\n thing \n")
    write_image(data / "b.png", scene(2), "a thing\n")
    (problem,) = scan_dataset(data).problems
    assert (problem.file, problem.kind, problem.severity) == ("a.txt", "caption-lines", "warning")
    assert "has 3 lines, which are joined into one caption" in problem.detail


@pytest.mark.parametrize("text", ['{\n "caption": "a thing"}', '["a thing", "thing"]', "{}"])
def test_json_as_a_caption_is_a_warning(data: Path, text: str) -> None:
    write_image(data / "a.png", scene(1), text)
    (problem,) = scan_dataset(data).problems
    assert (problem.file, problem.kind, problem.severity) == ("a.txt", "json-caption", "warning")


@pytest.mark.parametrize("text", ["{a|b} thing", "[thing]", "[1girl, thing]", "(thing:1.2)"])
def test_brackets_in_a_caption_are_no_json(data: Path, text: str) -> None:
    write_image(data / "a.png", scene(1), text)
    assert scan_dataset(data).problems == []


def test_json_file_is_not_advised_to_be_renamed(data: Path) -> None:
    write_image(data / "a.png", scene(1), caption=None)
    (data / "a.json").write_text('{"caption": "a thing"}')
    (problem,) = scan_dataset(data).errors
    assert "rename" not in problem.detail
    assert "a.json is JSON: write its caption as text into a.txt" in problem.detail


# --- what other programs leave ------------------------------------------------------------------


def test_masks_of_another_program_are_left_out_with_a_warning(data: Path) -> None:
    write_image(data / "5_thing" / "p.png", scene(1), caption=None)
    write_image(data / "5_thing" / "p-masklabel.png", Image.new("L", (96, 96), 255), caption=None)
    write_image(data / "5_thing" / "P-CondLabel.PNG", scene(2), caption=None)
    result = scan_dataset(data)
    assert keys_of(result) == ["5_thing/p.png", "own.png"]
    kinds = problems_of(result)
    assert kinds["5_thing/p-masklabel.png"] == kinds["5_thing/P-CondLabel.PNG"] == "foreign-mask"
    assert result.errors == []
    (mask,) = [p for p in result.problems if p.file.endswith("p-masklabel.png")]
    assert "a mask is read from p.mask.png: rename it" in mask.detail


@pytest.mark.parametrize(
    "path",
    [
        "@eaDir/own.png/SYNOPHOTO_THUMB_M.jpg", "__MACOSX/._own.png", ".AppleDouble/own.png",
        "Thumbs.db", "desktop.ini", ".DS_Store", "._own.png",
        ".ipynb_checkpoints/own-checkpoint.png",
        "#recycle/old.png", "$RECYCLE.BIN/x.png", "System Volume Information/x.png",
        "lost+found/x.png", "sub/@eaDir/x.png/y.jpg",
    ],
)  # fmt: skip
def test_folders_and_files_of_other_systems_are_left_out(data: Path, path: str) -> None:
    (data / path).parent.mkdir(parents=True, exist_ok=True)
    (data / path).write_bytes(b"whatever")
    result = scan_dataset(data)
    assert keys_of(result) == ["own.png"]
    assert result.problems == []


def test_very_deep_folders_are_read(data: Path) -> None:
    path = data
    for _ in range(300):
        path /= "d"
    write_image(path / "deep.png", scene(1))
    assert len(scan_dataset(data).rows) == 2


# --- the cache ----------------------------------------------------------------------------------


@needs_pipes
def test_folder_or_pipe_as_a_cache_file_is_a_warning(tmp_path: Path) -> None:
    layout = {"mean": (torch.float32, (2,))}

    def fetch(key: str) -> None:
        TensorCache(tmp_path).get_or_compute(
            [key], [layout], lambda _: iter([{"mean": torch.ones(2)}]), lambda _: None
        )

    fetch("a")
    (shard,) = tmp_path.glob("entries-*")
    shard.unlink()
    shard.mkdir()
    with pytest.warns(LorasmithWarning, match=rf"{shard.name}: is not a file.*remove it"):
        fetch("b")
    with pytest.warns(LorasmithWarning, match=rf"cannot write .*{shard.name}.*without this cache"):
        fetch("a")
    shard.rmdir()
    os.mkfifo(shard)
    with pytest.warns(LorasmithWarning, match=rf"{shard.name}: is not a file.*remove it"):
        without_blocking(lambda: fetch("b") or True)
