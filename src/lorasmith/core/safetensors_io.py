"""Reading and writing safetensors files, with errors that name the file."""

import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lorasmith.core.errors import OutputError, WeightsError
from lorasmith.core.files import atomic_write
from lorasmith.core.safetensors_header import read_header

Tensors = dict[str, torch.Tensor]


class SafetensorsFile:
    """An open safetensors file that reads tensors on demand.

    The file is memory-mapped: a tensor on the CPU takes no memory until it is changed or cast.

    Raises:
        WeightsError: the file is missing, is a pickle, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header = read_header(path)
        self._open: safe_open | None = None

    def read_tensor(self, key: str) -> torch.Tensor:
        """Return a tensor on the CPU in the file's dtype."""
        if self._open is None:
            self._open = _safe_open(self.path, "cpu")
        try:
            tensor: torch.Tensor = self._open.get_tensor(key)  # type: ignore[no-untyped-call]
        except (SafetensorError, AttributeError, RuntimeError) as error:
            raise WeightsError(f"{self.path}: {key} cannot be read ({error})") from error
        return tensor


def load_tensors(path: Path, device: str = "cpu") -> Tensors:
    """Read every tensor of a safetensors file.

    Raises:
        WeightsError: the file is missing, is a pickle, or is damaged.
    """
    with _open_checked(path, device) as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)


def load_metadata(path: Path) -> dict[str, str]:
    """Read the metadata block of a safetensors file; empty when it has none."""
    with _open_checked(path, "cpu") as file:
        return dict(file.metadata() or {})


def save_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> None:
    """Write tensors atomically. Values that are not finite are refused.

    Raises:
        WeightsError: a tensor holds NaN or infinity.
        OutputError: the disk refused.
    """
    bad = [key for key, value in tensors.items() if not _is_finite(value)]
    if bad:
        raise WeightsError(
            f"{path.name}: {len(bad)} tensors are not finite, first {bad[0]}; not saved"
        )
    plain = {key: value.detach().to("cpu").contiguous() for key, value in tensors.items()}
    try:
        with atomic_write(path) as temporary:
            save_file(plain, temporary, metadata=dict(metadata))
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write {path}: {error}") from error


def _is_finite(value: torch.Tensor) -> bool:
    if value.is_floating_point() and value.element_size() == 1:
        value = value.float()  # torch.isfinite does not support float8
    return bool(torch.isfinite(value).all())


def _open_checked(path: Path, device: str) -> safe_open:
    read_header(path)  # safetensors accepts duplicate names and headers of any length
    return _safe_open(path, device)


def _safe_open(path: Path, device: str) -> safe_open:
    try:
        return safe_open(path, framework="pt", device=device)
    except (SafetensorError, OSError, struct.error) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error})") from error
