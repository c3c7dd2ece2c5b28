"""The disk space of a run: estimated before it, compared with what it takes."""

import shutil
from pathlib import Path

import pytest
import torch

from lorasmith.adapters.targeting.targets import resolve_targets
from lorasmith.config.reading.load import load_config
from lorasmith.config.train_config import TrainConfig, TrainerConfig
from lorasmith.core.errors import OutputError
from lorasmith.loops.memory import is_out_of_memory, require_disk_space
from lorasmith.training.methods import count_parameters
from lorasmith.training.outputs.disk_usage import bytes_needed


def run_with(*overrides: str) -> TrainConfig:
    needed = [
        "data.path=x",
        "data.tag=ink",
        "output.name=n",
        "validation.every_n_steps=0",
        "train.steps=250",
    ]
    return load_config(TrainConfig, None, [*needed, *overrides])


def needed(tiny_training, *overrides: str, new: bool = True) -> int:
    run = run_with(*overrides)
    train = TrainerConfig(learning_rate=1.0, text_encoder_lr=1.0)
    targets = resolve_targets(tiny_training.model, run.lora, train)
    return bytes_needed(run, count_parameters(targets), 64, new)


def test_parameters_are_counted_from_the_layers(tiny_training) -> None:
    assert count_parameters(tiny_training.trainable.targets) == sum(
        p.numel() for p in tiny_training.parameters
    )


def test_every_kept_file_counts(tiny_training) -> None:
    numbers = 8 * sum(p.numel() for p in tiny_training.parameters)  # rank 16 instead of 2
    plain = needed(tiny_training)
    assert needed(tiny_training, "train.keep_checkpoints=3") - plain == 3 * 4 * numbers
    assert needed(tiny_training, "train.ema_decay=0.9") - plain == 3 * 4 * numbers
    assert needed(tiny_training, "train.save_every_n_steps=50") - plain == 5 * 2 * numbers
    assert plain - needed(tiny_training, new=False) == 2 * 3 * 4 * numbers
    assert (
        needed(tiny_training, "validation.every_n_steps=50", "validation.size=128x64") - plain
        == 7 * 4 * 128 * 64 * 3
    )
    assert (
        needed(tiny_training, "train.optimizer=prodigy")
        > plain
        > needed(tiny_training, "train.optimizer=lion")
    )


def test_full_disk_is_reported_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=2_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    require_disk_space(tmp_path / "not" / "there" / "yet", 2_000_000, "x")
    with pytest.raises(OutputError, match=r"not: checkpoints need 2000001 bytes \(1\.9 MiB\) and "
                       r"the disk has 2000000 \(1\.9 MiB\); make room"):  # fmt: skip
        require_disk_space(tmp_path / "not", 2_000_001, "checkpoints")


def test_out_of_memory_is_distinguished_from_other_errors() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 1 bytes")
    )
    assert is_out_of_memory(RuntimeError("MPS backend out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert not is_out_of_memory(ValueError("out of memory"))
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**50, dtype=torch.float64)
    assert is_out_of_memory(error.value)
