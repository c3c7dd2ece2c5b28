"""Finding checkpoints, and comparing settings with theirs."""

import warnings
from pathlib import Path

import pytest
import torch

from lorasmith.config.reading.load import load_config
from lorasmith.config.train_config import TrainConfig
from lorasmith.core.errors import ConfigError, LorasmithWarning, OutputError, WeightsError
from lorasmith.loops.checkpoint import save_checkpoint
from lorasmith.training.resume import check_settings, find_checkpoint

NEEDED = ["data.path=x", "data.tag=ink", "output.name=n"]


def config_with(*overrides: str) -> TrainConfig:
    return load_config(TrainConfig, None, [*NEEDED, *overrides])


def test_harmless_changes_do_not_warn() -> None:
    """Passing is the assertion: warnings are errors here, and changed settings raise."""
    before = config_with().model_dump(mode="json")
    changes = ["output.name=other", "validation.every_n_steps=3", "train.batch_size=4",
               "train.gradient_accumulation_steps=2", "data.path=moved", "train.device=cpu",
               "track.wandb=true"]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_settings(before, config_with(*changes))


def test_other_changes_warn_or_are_refused() -> None:
    before = config_with().model_dump(mode="json")
    with pytest.warns(LorasmithWarning, match=r"other settings: train\.steps 200 -> 400, train"):
        check_settings(before, config_with("train.steps=400", "train.loss.min_snr_gamma=3"))
    for change in ("lora.rank=3", "train.optimizer=lion", "train.ema_decay=0.9", "lora.targets=mid",
                   "train.optimizer_args={eps=1e-3}"):  # fmt: skip
        with pytest.raises(ConfigError, match=rf"{change.partition('=')[0]}: this run was started"):
            check_settings(before, config_with(change))


def test_checkpoints_are_found_by_their_step(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 7, {"a": torch.ones(1)}, {}, 2)
    for resume in ("latest", "step-7", "7", "step-00000007"):
        assert find_checkpoint(tmp_path, resume).step == 7
    with pytest.raises(ConfigError, match="--resume last: write --resume, or --resume step-120"):
        find_checkpoint(tmp_path, "last")
    with pytest.raises(WeightsError, match="no checkpoint of step 8; there are steps 7"):
        find_checkpoint(tmp_path, "step-8")
    with pytest.raises(OutputError, match="holds no checkpoint"):
        find_checkpoint(tmp_path / "none", "latest")


def test_settings_newer_than_the_checkpoint_count_as_their_defaults() -> None:
    before = config_with().model_dump(mode="json")
    del before["train"]["method"], before["train"]["loss"]["weighting"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_settings(before, config_with())
    with pytest.warns(LorasmithWarning, match="train.loss.weighting 'min_snr' -> 'constant'"):
        check_settings(before, config_with("train.loss.weighting=constant"))
