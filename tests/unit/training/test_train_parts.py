"""Settings, learning rates, resuming and reports of a training run."""

import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lorasmith.config.base import list_fields
from lorasmith.config.load import dump_toml, load_config
from lorasmith.config.train_config import TrainConfig, TrainerConfig
from lorasmith.core.errors import ConfigError, LorasmithWarning, OutputError, WeightsError
from lorasmith.loops.checkpoint import save_checkpoint
from lorasmith.loops.tracking import Tracker, read_log
from lorasmith.training.lr_defaults import fill_learning_rates
from lorasmith.training.outputs.logger import EmaMeter, RunLogger, public_config
from lorasmith.training.resume import check_settings, find_checkpoint
from lorasmith.training.state_factory import dump_settings
from lorasmith.training.train_step import StepMetrics

NEEDED = ["data.path=x", "data.tag=ink", "output.name=n"]


# --- settings -------------------------------------------------------------------------------


def test_settings_survive_their_own_toml(tmp_path: Path) -> None:
    run = load_config(TrainConfig, None, [*NEEDED, "lora.alpha=3.5", "train.mixed_precision=bf16"])
    path = tmp_path / "run.toml"
    path.write_text(dump_toml(run))
    assert load_config(TrainConfig, path) == run


def test_every_field_is_documented() -> None:
    assert all(text for _, _, text in list_fields(TrainConfig))


def test_alpha_is_the_rank_unless_given() -> None:
    assert load_config(TrainConfig, None, [*NEEDED, "lora.rank=4"]).lora.effective_alpha == 4.0
    both = load_config(TrainConfig, None, [*NEEDED, "lora.rank=4", "lora.alpha=1"])
    assert both.lora.effective_alpha == 1.0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.step=3", r"unknown key 'step' in section \[train\]; did you mean steps\?"),
        ("trian.steps=3", r"unknown key 'trian' in the top level; did you mean train[,?]"),
        ("train.steps=0", "train.steps: .*greater than 0"),
        ("train.learning_rate=-1", "train.learning_rate: .*greater than 0"),
        ("train.mixed_precision=fp8", "train.mixed_precision: "),
        ("data.tag=' , '", "data.tag: the tag is empty"),
        ("data.tag='a, b'", "data.tag: a tag has no comma"),
        ("output.name='a/'", "output.name: give the LoRA a name"),
        ("output.name='..'", "output.name: give the LoRA a name"),
        ("lora.rank=1.5", "lora.rank: "),
    ],
)
def test_settings_that_are_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(TrainConfig, None, [*NEEDED, override])


# --- rates ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "size", "rates"),
    [
        ({}, 4_000_000, (6e-3, 3e-3)),
        ({}, 860_000_000, (1e-4, 5e-5)),
        ({"optimizer": "lion"}, 860_000_000, (2.5e-5, 1.25e-5)),
        ({"optimizer": "prodigy"}, 4_000_000, (1.0, 1.0)),
        ({"optimizer": "adafactor"}, 4_000_000, (6e-3, 3e-3)),
        ({"learning_rate": 0.5}, 4_000_000, (0.5, 0.25)),
        ({"learning_rate": 0.5, "text_encoder_lr": 0.1}, 4_000_000, (0.5, 0.1)),
        ({"optimizer": "prodigy", "learning_rate": 0.5}, 4_000_000, (0.5, 0.5)),
    ],
)
def test_learning_rates_that_were_left_out(given: dict, size: int, rates: tuple) -> None:
    full = fill_learning_rates(TrainerConfig(**given), size)
    assert (full.learning_rate, full.text_encoder_lr) == pytest.approx(rates)
    assert fill_learning_rates(full, 10**9) == full


# --- resuming -------------------------------------------------------------------------------


def run_with(*overrides: str) -> TrainConfig:
    return load_config(TrainConfig, None, [*NEEDED, *overrides])


def test_harmless_changes_pass_in_silence() -> None:
    before = run_with().model_dump(mode="json")
    changes = ["output.name=other", "validation.every_n_steps=3", "train.batch_size=4",
               "train.gradient_accumulation_steps=2", "data.path=moved", "train.device=cpu",
               "track.wandb=true"]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_settings(before, run_with(*changes))


def test_other_changes_are_told_and_some_are_impossible() -> None:
    before = run_with().model_dump(mode="json")
    with pytest.warns(LorasmithWarning, match=r"other settings: train\.steps 200 -> 400, train"):
        check_settings(before, run_with("train.steps=400", "train.loss.min_snr_gamma=3"))
    for change in ("lora.rank=3", "train.optimizer=lion", "train.ema_decay=0.9", "lora.targets=mid",
                   "train.optimizer_args={eps=1e-3}"):  # fmt: skip
        with pytest.raises(ConfigError, match=rf"{change.partition('=')[0]}: this run was started"):
            check_settings(before, run_with(change))


def test_only_steps_can_be_resumed_from(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 7, {"a": torch.ones(1)}, {}, 2)
    for wanted in ("latest", "step-7", "7", "step-00000007"):
        assert find_checkpoint(tmp_path, wanted).step == 7
    with pytest.raises(ConfigError, match="--resume last: write --resume, or --resume step-120"):
        find_checkpoint(tmp_path, "last")
    with pytest.raises(WeightsError, match="no checkpoint of step 8; there are steps 7"):
        find_checkpoint(tmp_path, "step-8")
    with pytest.raises(OutputError, match="holds no checkpoint"):
        find_checkpoint(tmp_path / "none", "latest")


# --- reports --------------------------------------------------------------------------------


def test_log_lines_have_the_mean_since_the_last_line(tmp_path: Path) -> None:
    notes: list[str | None] = []

    def advance(count: int = 1, note: str | None = None) -> None:
        notes.append(note)

    state = FakeState(logged_steps=(2, 4, 5))
    with Tracker(tmp_path, tensorboard=False) as tracker:
        logger = RunLogger(tracker, advance)
        logger.on_validation_end(state, {"held_out": 2.0})
        for step in range(5):
            state.step = step + 1
            metrics = StepMetrics(torch.tensor(float(step)), torch.tensor(float(10 - step)))
            logger.on_validation_end(state, {"held_out": 1.0})
            logger.on_step_end(state, metrics._replace(images=8, seconds=0.5))

    log = read_log(tmp_path / "log.jsonl")
    assert [line["step"] for line in log] == [0, 2, 4, 5]
    assert log[0].keys() == {"step", "time", "held_out"}
    assert [line["loss"] for line in log[1:]] == [0.5, 2.5, 4.0]
    assert [line["grad_norm"] for line in log[1:]] == [10.0, 8.0, 6.0]
    assert all(line["lr"] == 1e-3 and line["lr/text"] == 5e-4 for line in log[1:])
    assert all(line["images_per_s"] == 16.0 and line["held_out"] == 1.0 for line in log[1:])
    shown = [note for note in notes if note]
    assert len(shown) == 3
    assert "loss" in shown[0]
    assert "lr 1.0e-03" in shown[0]
    assert "images/s" in shown[0]


class FakeState:
    """What a logger asks a state for."""

    def __init__(self, logged_steps: tuple[int, ...]) -> None:
        self.step = 0
        self.gpu_timer = SimpleNamespace(pop_seconds=lambda: None)
        self._logged_steps = logged_steps

    @property
    def scheduled_actions(self) -> SimpleNamespace:
        return SimpleNamespace(log=self.step in self._logged_steps)

    def learning_rates(self) -> dict[str, float]:
        return {"lr": 1e-3, "lr/text": 5e-4}


def test_smoothing_starts_without_bias() -> None:
    meter = EmaMeter(0.9)
    assert meter.value == 0.0
    meter.add(3.0)
    assert meter.value == pytest.approx(3.0)
    for _ in range(200):
        meter.add(1.0)
    assert meter.value == pytest.approx(1.0, abs=1e-6)


def test_a_tracker_on_the_network_is_told_no_paths() -> None:
    run = run_with(
        "data.path=/home/me/pictures", "data.reg_data_dir=/home/me/class",
        "data.cache_dir=/home/me/cache", "model.path=/home/me/model", "output.name=/home/me/out",
    )  # fmt: skip
    told = public_config(dump_settings(run))
    assert "/home/me" not in str(told)
    assert told["data"]["tag"] == run.data.tag
    assert told["train"]["steps"] == run.train.steps
