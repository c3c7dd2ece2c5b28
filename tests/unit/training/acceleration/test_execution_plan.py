"""How the steps of a run are executed is decided before the first one."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from lorasmith.config.optimization import TrainerConfig
from lorasmith.core.errors import LorasmithWarning
from lorasmith.ops import fp8
from lorasmith.ops.triton_kernels import support as triton_support
from lorasmith.training.acceleration.execution_plan import ExecutionPlan, Workload, plan_execution

LONG = Workload(
    device=torch.device("cuda"),
    unet_dtype=torch.bfloat16,
    unet_parameters=900_000_000,
    image_sizes=1,
    latent_area=64 * 64,
    images=240_000,
)
"""A long run of a large model at 512 pixels."""


def plan(workload: Workload = LONG, **train: Any) -> ExecutionPlan:
    return plan_execution(TrainerConfig(**train), workload)


@pytest.fixture(autouse=True)
def old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU without the package's kernels, on which Triton and FP8 work."""
    monkeypatch.setattr(triton_support, "is_available", lambda _: False)
    monkeypatch.setattr(triton_support, "has_triton", lambda: True)
    monkeypatch.setattr(fp8, "is_available", lambda _: True)


def test_long_runs_are_compiled_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plan().compile_blocks
    assert not plan(replace(LONG, images=40)).compile_blocks
    assert not plan(replace(LONG, image_sizes=3)).compile_blocks
    assert not plan(compile="off").compile_blocks
    monkeypatch.setattr(triton_support, "is_available", lambda _: True)
    assert not plan().compile_blocks
    assert plan(compile="on").compile_blocks


def test_nothing_is_compiled_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_support, "has_triton", lambda: False)
    assert not plan().compile_blocks
    with pytest.warns(LorasmithWarning, match="train.compile is off: it needs the package triton"):
        assert not plan(compile="on").compile_blocks


def test_fp8_is_used_where_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not plan().fp8
    assert plan(fp8=True).fp8
    with pytest.warns(LorasmithWarning, match='fp8 has no effect: set .* = "bf16"'):
        assert not plan(replace(LONG, unet_dtype=torch.float16), fp8=True).fp8
    monkeypatch.setattr(fp8, "is_available", lambda _: False)
    with pytest.warns(
        LorasmithWarning, match=r"train\.fp8 has no effect: it needs an RTX 40, H100"
    ):
        assert not plan(fp8=True).fp8


def test_message_says_why_the_optimizer_is_not_captured() -> None:
    assert plan(compile="off").messages == ()
    waits = replace(LONG, is_sync_free=False)
    (message,) = plan(waits, compile="off", optimizer="prodigy").messages
    assert "the optimizer prodigy reads values" in message
    (message,) = plan(replace(waits, processes=2), compile="off").messages
    assert "several processes exchange gradients" in message


def test_cpu_warns_about_each_setting_without_effect() -> None:
    with pytest.warns(LorasmithWarning) as warned:
        result = plan(
            replace(LONG, device=torch.device("cpu")), fp8=True, compile="on", vram_limit="4GB"
        )
    assert result == ExecutionPlan(use_cuda_graphs=False)
    assert {str(warning.message).split(" has no effect on a CPU")[0] for warning in warned} == {
        "train.vram_limit", "train.compile", "train.fp8",
    }  # fmt: skip
