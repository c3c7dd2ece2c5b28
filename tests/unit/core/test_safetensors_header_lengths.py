"""Headers of any length are read, also of those that begin like a pickle."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lorasmith.core.errors import WeightsError
from lorasmith.core.safetensors_header import read_header, reject_pickle


@pytest.mark.parametrize("length", [640, 896, 1152, 1408])
def test_header_that_begins_like_a_pickle_is_read(tmp_path: Path, length: int) -> None:
    path = tmp_path / "some.safetensors"
    for padding in range(length):
        save_file({"x": torch.ones(2)}, path, {"note": "n" * padding})
        if int.from_bytes(path.read_bytes()[:8], "little") == length:
            break
    assert path.read_bytes()[:1] == b"\x80"
    assert list(read_header(path).tensors) == ["x"]


def test_pickle_is_still_recognised(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    for protocol in (2, 3, 4, 5):
        torch.save({"x": torch.ones(2)}, path, pickle_protocol=protocol)
        with pytest.raises(WeightsError, match="pickled"):
            reject_pickle(path)
        torch.save(
            {"x": torch.ones(2)},
            path,
            pickle_protocol=protocol,
            _use_new_zipfile_serialization=False,
        )
        with pytest.raises(WeightsError, match="pickled"):
            reject_pickle(path)
