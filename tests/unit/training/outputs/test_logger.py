"""Log lines of a run, its progress bar's note, and what trackers are sent."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lorasmith.config.reading.load import load_config
from lorasmith.config.train_config import TrainConfig
from lorasmith.loops.tracking import Tracker, read_log
from lorasmith.training.outputs.logger import EmaMeter, RunLogger, public_config
from lorasmith.training.setup.state_factory import dump_settings
from lorasmith.training.step.train_step import StepMetrics


def test_log_lines_have_the_mean_since_the_last_line(tmp_path: Path) -> None:
    notes: list[str | None] = []

    def advance(count: int = 1, note: str | None = None) -> None:
        notes.append(note)

    state = FakeState(logged_steps=(2, 4, 5))
    with Tracker(tmp_path, tensorboard=False) as tracker:
        logger = RunLogger(tracker, advance)
        logger.on_validation_end(state, {"validation_loss": 2.0})
        for step in range(5):
            state.step = step + 1
            metrics = StepMetrics(torch.tensor(float(step)), torch.tensor(float(10 - step)))
            logger.on_validation_end(state, {"validation_loss": 1.0})
            logger.on_step_end(state, metrics._replace(images=8, seconds=0.5))

    log = read_log(tmp_path / "log.jsonl")
    assert [line["step"] for line in log] == [0, 2, 4, 5]
    assert log[0].keys() == {"step", "time", "validation_loss"}
    assert [line["loss"] for line in log[1:]] == [0.5, 2.5, 4.0]
    assert [line["grad_norm"] for line in log[1:]] == [10.0, 8.0, 6.0]
    assert all(line["lr"] == 1e-3 and line["lr/text"] == 5e-4 for line in log[1:])
    assert all(line["images_per_s"] == 16.0 and line["validation_loss"] == 1.0 for line in log[1:])
    shown = [note for note in notes if note]
    assert len(shown) == 3
    assert "loss" in shown[0]
    assert "lr 1.0e-03" in shown[0]
    assert "images/s" in shown[0]


class FakeState:
    """The attributes of a state that a logger reads."""

    def __init__(self, logged_steps: tuple[int, ...]) -> None:
        self.step = 0
        self.gpu_timer = SimpleNamespace(pop_seconds=lambda: None)
        self._logged_steps = logged_steps

    @property
    def scheduled_actions(self) -> SimpleNamespace:
        return SimpleNamespace(log=self.step in self._logged_steps)

    def learning_rates(self) -> dict[str, float]:
        return {"lr": 1e-3, "lr/text": 5e-4}


def test_ema_meter_starts_without_bias() -> None:
    meter = EmaMeter(0.9)
    assert meter.value == 0.0
    meter.add(3.0)
    assert meter.value == pytest.approx(3.0)
    for _ in range(200):
        meter.add(1.0)
    assert meter.value == pytest.approx(1.0, abs=1e-6)


def test_public_config_has_no_paths() -> None:
    config = load_config(
        TrainConfig, None, [
        "data.tag=ink",
        "data.path=/home/me/pictures", "data.reg_data_dir=/home/me/class",
        "data.cache_dir=/home/me/cache", "model.path=/home/me/model", "output.name=/home/me/out"],
    )  # fmt: skip
    public = public_config(dump_settings(config))
    assert "/home/me" not in str(public)
    assert public["data"]["tag"] == config.data.tag
    assert public["train"]["steps"] == config.train.steps
