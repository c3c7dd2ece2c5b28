"""Headers of safetensors files: good ones are read, bad ones are refused at once."""

import json
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorasmith.core.errors import WeightsError
from lorasmith.core.safetensors_header import TensorInfo, read_header
from lorasmith.core.safetensors_io import load_tensors, save_tensors


def entry(start: int, end: int, shape: list[int] | None = None, dtype: str = "U8") -> dict:
    return {"dtype": dtype, "shape": shape or [end - start], "data_offsets": [start, end]}


def write(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.safetensors"


def test_header_lists_tensors_and_metadata(path: Path) -> None:
    save_tensors(path, {"a": torch.ones(2, 3), "b": torch.ones(0).half()}, {"title": "ü"})
    header = read_header(path)
    assert header.tensors == {"a": TensorInfo("F32", (2, 3)), "b": TensorInfo("F16", (0,))}
    assert header.metadata == {"title": "ü"}


BAD_HEADERS = {
    "is there twice": b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
    b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
    "not a JSON object": [],
    "'a' is malformed": {"a": {"dtype": "U8"}},
    "sizes that no tensor has": {"a": entry(0, 1, [-1])},
    "unknown number format 'X9'": {"a": entry(0, 1, [1], "X9")},
    "does not fit its shape": {"a": entry(0, 1, [2])},
    "overlap or leave gaps": {"a": entry(0, 1), "b": entry(0, 1)},
    "it is cut off: 1 of 2 bytes of weights are there; fetch it again": {"a": entry(0, 2)},
    "1 bytes after its tensors": {},
    "metadata are not texts": {"__metadata__": {"a": 1}},
    "is not what it should be": b"[" * 100_000,
}


INSTEAD = {
    "it is empty": b"",
    "it is a Git LFS pointer .* `git lfs pull`": b"version https://git-lfs/spec/v1\noid 1",
    "it is a web page": b"\n<!DOCTYPE html><html>401 Unauthorized</html>",
    "longer than its 5 bytes; it is cut off, or something else; fetch it again": b"12345",
}


@pytest.mark.parametrize("description", INSTEAD)
def test_other_content_is_described(path: Path, description: str) -> None:
    path.write_bytes(INSTEAD[description])
    with pytest.raises(WeightsError, match=f"x.safetensors: not a readable.*{description}"):
        read_header(path)


@pytest.mark.parametrize("reason", BAD_HEADERS)
def test_bad_header_is_refused_with_the_reason(path: Path, reason: str) -> None:
    write(path, BAD_HEADERS[reason], b"\0")
    with pytest.raises(WeightsError, match=f"x.safetensors: not a readable.*{reason}"):
        read_header(path)
    with pytest.raises(WeightsError, match=reason):
        load_tensors(path)


@pytest.mark.parametrize("count", [300_000, 60_000])
def test_too_many_tensors_are_refused_within_a_second(path: Path, count: int) -> None:
    template = '"{0}":{{"dtype":"U8","shape":[1],"data_offsets":[{0},{1}]}}'
    header = ",".join(template.format(n, n + 1) for n in range(count))
    write(path, f"{{{header}}}".encode(), bytes(count))
    seconds = []
    for _ in range(3):  # a busy machine slows one or the other
        start = time.process_time()  # other programs do not count
        with pytest.raises(WeightsError, match="at most"):
            load_tensors(path)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 1.0


def test_too_long_header_is_not_read(path: Path) -> None:
    with path.open("wb") as stream:
        stream.write((2**33).to_bytes(8, "little"))
        stream.truncate(2**33 + 8)
    with pytest.raises(WeightsError, match="at most 16,777,216 are read"):
        read_header(path)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".PTH", ".bin"])
def test_pickle_is_refused_by_suffix(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"whatever")
    with pytest.raises(WeightsError, match=r"pickled file.*convert it to safetensors"):
        read_header(path)


@given(data=st.data())
def test_damaged_byte_is_refused_or_changes_only_text(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    intact = write(tmp_path_factory.mktemp("fuzz") / "x.safetensors", {"a": entry(0, 3)}, b"abc")
    content = intact.read_bytes()
    offset = data.draw(st.integers(0, len(content) - 4))
    changed = data.draw(st.binary(min_size=1, max_size=4))
    intact.write_bytes(content[:offset] + changed + content[offset + len(changed) :])
    try:
        header = read_header(intact)
    except WeightsError:
        return
    assert len(header.tensors) <= 1
    assert all(facts.dtype in ("U8", "I8") for facts in header.tensors.values())
