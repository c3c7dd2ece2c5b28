"""Own kernels are used where they work, and nowhere else."""

from collections.abc import Iterator

import pytest
import torch

from lorasmith.core.errors import LorasmithWarning
from lorasmith.ops.triton_kernels import support as triton_support

CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(triton_support, "has_triton", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    triton_support.is_available.cache_clear()
    yield
    triton_support.is_available.cache_clear()


def test_working_probe_kernel_enables_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    monkeypatch.setattr(triton_support, "_run_probe", tried.append)
    assert triton_support.is_available(CUDA)
    assert triton_support.is_available(CUDA)
    assert tried == [CUDA]  # only once


def test_without_a_compiler_a_warning_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(device: torch.device) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    monkeypatch.setattr(triton_support, "_run_probe", fail)
    with pytest.warns(LorasmithWarning, match="cannot be compiled: Failed to find C compiler. Pl"):
        assert not triton_support.is_available(CUDA)


def test_old_gpus_and_cpus_have_no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_support, "_run_probe", lambda _: None)
    assert not triton_support.is_available(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert not triton_support.is_available(CUDA)


@pytest.mark.gpu
def test_probe_kernel_runs_on_a_gpu() -> None:
    triton_support._run_probe(CUDA)  # raises where Triton cannot compile
    assert triton_support.is_available(CUDA)
