import math
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from lorasmith.core.errors import OutputError, WeightsError
from lorasmith.core.safetensors_io import load_metadata, load_tensors, save_tensors


def test_saved_tensors_and_metadata_load_again(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {"half": torch.ones(2, 3, dtype=torch.float16), "turned": torch.randn(4, 3).T}
    save_tensors(path, tensors, {"a": "ü"})
    back = load_tensors(path)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[key], tensors[key]) for key in tensors)
    assert back["half"].dtype == torch.float16
    assert load_metadata(path) == {"a": "ü"}
    save_tensors(path, tensors, {})
    assert load_metadata(path) == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(WeightsError, match="1 tensors are not finite, first bad"):
        save_tensors(path, {"good": torch.ones(2), "bad": torch.tensor([1.0, value])}, {})
    assert not path.exists()


def test_float8_tensors_are_saved(tmp_path: Path) -> None:
    path, numbers = tmp_path / "x.safetensors", torch.tensor([1.0, -2.0]).to(torch.float8_e4m3fn)
    save_tensors(path, {"a": numbers}, {})
    assert torch.equal(load_tensors(path)["a"].float(), numbers.float())
    with pytest.raises(WeightsError, match="1 tensors are not finite, first a"):
        save_tensors(path, {"a": torch.tensor([math.nan]).to(torch.float8_e4m3fn)}, {})


def test_unwritable_path_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*a\.safetensors"):
        save_tensors(tmp_path / "a.safetensors", {"x": torch.ones(1)}, {})


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 64, b"\x08\0\0\0\0\0\0\0{}      "[:12]])
def test_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"damaged\.safetensors: not a readable"):
        load_tensors(path)


def test_truncated_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    save_tensors(path, {"x": torch.ones(100)}, {})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(WeightsError, match=r"cut\.safetensors"):
        load_tensors(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such weights file"):
        load_metadata(tmp_path / "absent.safetensors")


def test_folder_is_not_a_weights_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"a folder; give the \.safetensors file itself"):
        load_metadata(tmp_path)


class Payload:
    """Would create a file if it were ever unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_renamed_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "evil.safetensors"
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(Payload(mark), protocol=protocol))
        with pytest.raises(WeightsError, match="pickled file"):
            load_tensors(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(Payload(mark)))
    with pytest.raises(WeightsError, match="convert it to safetensors"):
        load_tensors(path)
    assert not mark.exists()
