"""What is decided about steps before the first."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lorasmith.config.train_settings import TrainerConfig
from lorasmith.core.errors import LorasmithWarning
from lorasmith.ops import fp8, triton_support
from lorasmith.training.acceleration.plan import ExecutionPlan, plan_execution


def session_of(device: str = "cuda", sizes: int = 1, **train: Any) -> Any:
    """A long run of a large model: 60,000 steps at 512 pixels."""
    with torch.device("meta"):
        unet = nn.Linear(30000, 30000, dtype=train.pop("dtype", torch.bfloat16))
    unet.dtype = unet.weight.dtype
    settings = {"steps": 60000, "batch_size": 4, "mixed_precision": "bf16", **train}
    bucket = SimpleNamespace(area=512 * 512)
    return SimpleNamespace(
        device=torch.device(device),
        accelerator=SimpleNamespace(num_processes=1),
        run=SimpleNamespace(train=TrainerConfig(**settings)),
        model=SimpleNamespace(unet=unet, downscale=8),
        dataset=SimpleNamespace(
            bucket_indices=list(range(sizes)), assignments=[SimpleNamespace(bucket=bucket)]
        ),
        train_step=SimpleNamespace(is_sync_free=True),
    )


@pytest.fixture(autouse=True)
def an_old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_support, "is_available", lambda _: False)
    monkeypatch.setattr(triton_support, "has_triton", lambda: True)
    monkeypatch.setattr(fp8, "is_available", lambda _: True)


def test_long_runs_are_compiled_where_there_are_no_own_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert plan_execution([session_of()]).compile_blocks
    assert not plan_execution([session_of(steps=10)]).compile_blocks
    assert not plan_execution([session_of(sizes=3)]).compile_blocks
    assert not plan_execution([session_of(compile="off")]).compile_blocks
    monkeypatch.setattr(triton_support, "is_available", lambda _: True)
    assert not plan_execution([session_of()]).compile_blocks
    assert plan_execution([session_of(compile="on")]).compile_blocks


def test_without_triton_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_support, "has_triton", lambda: False)
    assert not plan_execution([session_of()]).compile_blocks
    with pytest.warns(LorasmithWarning, match="train.compile is off: it needs the package triton"):
        assert not plan_execution([session_of(compile="on")]).compile_blocks


def test_eight_bits_are_used_where_they_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not plan_execution([session_of()]).fp8
    assert plan_execution([session_of(fp8=True)]).fp8
    with pytest.warns(
        LorasmithWarning, match='fp8 has no effect: set train.mixed_precision = "bf16"'
    ):
        assert not plan_execution([session_of(fp8=True, dtype=torch.float16)]).fp8
    monkeypatch.setattr(fp8, "is_available", lambda _: False)
    with pytest.warns(
        LorasmithWarning, match=r"train\.fp8 has no effect: it needs an RTX 40, H100"
    ):
        assert not plan_execution([session_of(fp8=True)]).fp8


def test_a_cpu_does_none_of_it_and_says_so() -> None:
    with pytest.warns(LorasmithWarning) as told:
        pace = plan_execution([session_of("cpu", fp8=True, compile="on", vram_limit="4GB")])
    assert pace == ExecutionPlan(use_cuda_graphs=False)
    assert {str(one.message).split(" has no effect on a CPU")[0] for one in told} == {
        "train.vram_limit", "train.compile", "train.fp8",
    }  # fmt: skip
