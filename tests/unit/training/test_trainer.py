"""The training loop and its callbacks, on states that take no real steps."""

import signal
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from lorasmith.config.train_config import TrainerConfig
from lorasmith.core.errors import LorasmithWarning, TrainingError
from lorasmith.loops.stop_signals import StopRequest
from lorasmith.runs.paths import RunPaths
from lorasmith.training import builtin_callbacks, trainer
from lorasmith.training.builtin_callbacks import CheckpointSaver, EarlyStopping, LoopOptions
from lorasmith.training.callbacks import Callback
from lorasmith.training.interruption import Interrupted
from lorasmith.training.progress import Progress
from lorasmith.training.state import ScheduledActions, TrainerState
from lorasmith.training.step.events import CallbackList
from lorasmith.training.step.train_step import StepMetrics


class FakeState(SimpleNamespace):
    """The attributes of a `TrainerState` that the loop reads."""

    total_steps = TrainerState.total_steps
    is_active = TrainerState.is_active
    scheduled_actions = TrainerState.scheduled_actions
    step = TrainerState.step
    stop = TrainerState.stop


def make_state(folder: Path, name: str = "ink", callbacks: Sequence[Callback] = (), **train: Any):
    paths = RunPaths.from_name(f"{folder}/{name}")
    paths.folder.mkdir()
    return FakeState(
        paths=paths,
        train=TrainerConfig(**{"steps": 4, "log_every_n_steps": 2, **train}),
        validation=SimpleNamespace(every_n_steps=0),
        progress=Progress(),
        accelerator=SimpleNamespace(num_processes=1),
        callbacks=CallbackList(callbacks),
        is_main=True,
        stop_reason=None,
        failure=None,
        stop_requested=False,
        failed_step=lambda: None,
        image_names=lambda step: ["a.png"],
    )


class FakeJointStep:
    """Counts steps."""

    groups: ClassVar[list[list[str]]] = []

    def __init__(self, states: Sequence[Any]) -> None:
        self._states = states
        self.groups.append([state.paths.name for state in states])

    def step(self) -> list[StepMetrics]:
        for state in self._states:
            state.progress.step += 1
        return [StepMetrics(torch.tensor(1.0), torch.tensor(1.0), images=2)] * len(self._states)


@pytest.fixture(autouse=True)
def joint_steps(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The names of the LoRAs for each `JointTrainStep` that was made."""
    groups: ClassVar[list[list[str]]] = []
    monkeypatch.setattr(FakeJointStep, "groups", groups)
    monkeypatch.setattr(trainer, "JointTrainStep", FakeJointStep)
    return groups


def run_loop(states: Sequence[Any], options: LoopOptions, request: StopRequest) -> None:
    trainer.train_loop(states, options, request, CheckpointSaver(states, options))


class Recorder(Callback):
    def __init__(self, calls: list[tuple[str, str, int]], label: str) -> None:
        self._calls, self._label = calls, label

    def on_step_end(self, state: Any, metrics: StepMetrics) -> None:
        self._calls.append((self._label, state.paths.name, state.step))


# --- the loop ---------------------------------------------------------------------------------


def test_loop_takes_all_steps(tmp_path: Path) -> None:
    state = make_state(tmp_path)
    run_loop([state], LoopOptions(state.paths), StopRequest())
    assert state.step == 4


def test_each_callback_sees_all_loras_before_the_next_callback(tmp_path: Path) -> None:
    calls: list[tuple[str, str, int]] = []
    states = [
        make_state(tmp_path, name, [Recorder(calls, "first"), Recorder(calls, "second")], steps=1)
        for name in ("a", "b")
    ]
    run_loop(states, LoopOptions(states[0].paths), StopRequest())
    assert calls == [("first", "a", 1), ("first", "b", 1), ("second", "a", 1), ("second", "b", 1)]


def test_metrics_have_the_time_of_the_step(tmp_path: Path) -> None:
    seconds: list[float] = []

    class Seconds(Callback):
        def on_step_end(self, state: Any, metrics: StepMetrics) -> None:
            seconds.append(metrics.seconds)

    state = make_state(tmp_path, callbacks=[Seconds()])
    run_loop([state], LoopOptions(state.paths), StopRequest())
    assert len(seconds) == 4
    assert all(value > 0 for value in seconds)


def test_loras_that_have_stopped_leave_the_step_to_the_others(
    tmp_path: Path, joint_steps: list[list[str]]
) -> None:
    class Stop(Callback):
        def on_step_end(self, state: Any, metrics: StepMetrics) -> None:
            if state.step == 2:
                state.stop("enough")

    states = [make_state(tmp_path, "a", [Stop()]), make_state(tmp_path, "b", [Callback()])]
    run_loop(states, LoopOptions(states[0].paths), StopRequest())
    assert joint_steps == [["a", "b"], ["b"]]
    assert [state.step for state in states] == [2, 4]


def test_ctrl_c_stops_after_the_callbacks_of_the_step(tmp_path: Path) -> None:
    request, steps = StopRequest(), []

    class PressAtTwo(Callback):
        def on_step_end(self, state: Any, metrics: StepMetrics) -> None:
            steps.append((state.step, state.stop_requested))
            request.signal_number = signal.SIGINT if state.step >= 2 else 0

    state = make_state(tmp_path, callbacks=[PressAtTwo()])
    with pytest.raises(Interrupted, match=r"stopped after step 3 of 4, all saved; go on with: "):
        run_loop([state], LoopOptions(state.paths), request)
    assert steps == [(1, False), (2, False), (3, True)]


def test_ctrl_c_in_the_last_step_ends_the_loop_as_usual(tmp_path: Path) -> None:
    request = StopRequest()
    request.signal_number = signal.SIGTERM
    state = make_state(tmp_path, steps=1)
    run_loop([state], LoopOptions(state.paths), request)
    assert state.step == 1


def test_loss_that_is_not_finite_raises(tmp_path: Path) -> None:
    state = make_state(tmp_path)
    state.failed_step = lambda: 1 if state.step >= 2 else None
    with pytest.raises(TrainingError, match=r"not finite at step 2, with the images a\.png"):
        run_loop([state], LoopOptions(state.paths), StopRequest())
    assert not state.paths.failure.exists()


def test_other_loras_go_on_where_failures_are_allowed(
    tmp_path: Path, joint_steps: list[list[str]]
) -> None:
    calls: list[tuple[str, str, int]] = []
    states = [make_state(tmp_path, name, [Recorder(calls, "")]) for name in ("a", "b")]
    states[0].failed_step = lambda: 1 if states[0].step >= 2 else None
    options = LoopOptions(states[0].paths, continues_on_failure=True)
    with pytest.warns(LorasmithWarning, match="a: loss or gradient is not finite at step 2"):
        run_loop(states, options, StopRequest())
    assert joint_steps == [["a", "b"], ["b"]]
    assert ("", "a", 2) not in calls
    assert states[1].step == 4
    assert "not finite at step 2" in states[0].paths.failure.read_text()


# --- scheduled actions ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (1, (False, False, False, False)),
        (4, (True, False, False, False)),
        (5, (True, True, False, False)),
        (6, (False, False, True, False)),
        (7, (False, False, False, True)),
        (9, (True, True, True, False)),
    ],
)
def test_scheduled_actions_run_at_their_steps(step: int, expected: tuple[bool, ...]) -> None:
    train = TrainerConfig(
        steps=9, log_every_n_steps=4, checkpoint_every_n_steps=6, save_every_n_steps=7
    )
    actions = ScheduledActions.after(step, train, validate_every=5)
    assert (actions.log, actions.validate, actions.checkpoint, actions.save) == expected
    assert actions.any == any(expected)
    assert not ScheduledActions.after(step, train, validate_every=0).validate


# --- built-in callbacks -----------------------------------------------------------------------


def test_early_stopping_waits_for_its_patience(tmp_path: Path) -> None:
    state = make_state(tmp_path, early_stopping_patience=2)
    state.progress.validations_without_improvement = 1
    EarlyStopping().on_validation_end(state, {})
    assert state.is_active
    state.progress.validations_without_improvement = 2
    EarlyStopping().on_validation_end(state, {})
    assert not state.is_active
    assert state.stop_reason == "the validation loss did not improve for 2 validations"


def test_early_stopping_is_off_without_patience(tmp_path: Path) -> None:
    state = make_state(tmp_path)
    state.progress.validations_without_improvement = 100
    EarlyStopping().on_validation_end(state, {})
    assert state.is_active


def test_early_stopping_stops_a_resumed_run_that_had_stopped(tmp_path: Path) -> None:
    state = make_state(tmp_path, early_stopping_patience=2)
    state.progress.validations_without_improvement = 3
    EarlyStopping().on_train_begin(state)
    assert not state.is_active


@pytest.fixture
def saved_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps at which checkpoints would have been saved."""
    saved_steps: list[int] = []
    monkeypatch.setattr(
        builtin_callbacks,
        "save_checkpoints",
        lambda states, paths, is_joint: saved_steps.append(states[0].step) or paths.checkpoints,
    )
    return saved_steps


def test_one_checkpoint_is_saved_for_all_loras(tmp_path: Path, saved_steps: list[int]) -> None:
    states = [make_state(tmp_path, name, checkpoint_every_n_steps=2) for name in ("a", "b")]
    options = LoopOptions(states[0].paths, is_joint=True)
    saver = CheckpointSaver(states, options)
    for state in states:
        state.callbacks = CallbackList([saver])
        saver.on_train_begin(state)
    run_loop(states, options, StopRequest())
    assert saved_steps == [2, 4]


def test_checkpoint_is_saved_when_a_lora_stops_or_ctrl_c_is_pressed(
    tmp_path: Path, saved_steps: list[int]
) -> None:
    state = make_state(tmp_path)
    saver = CheckpointSaver([state], LoopOptions(state.paths))
    metrics = StepMetrics(torch.tensor(1.0), torch.tensor(1.0))
    state.progress.step = 1
    saver.on_step_end(state, metrics)
    assert saved_steps == []
    state.progress.step, state.stop_requested = 2, True
    saver.on_step_end(state, metrics)
    assert saved_steps == [2]
    state.progress.step, state.stop_requested = 3, False
    state.stop("enough")
    saver.on_step_end(state, metrics)
    assert saved_steps == [2, 3]


# --- progress ---------------------------------------------------------------------------------


def test_progress_keeps_the_keys_of_earlier_checkpoints() -> None:
    progress = Progress(7, 1.5, 0.5, 0.25, 6, 2, "abc")
    assert progress.to_json() == {
        "done": 7, "seconds": 1.5, "base": 0.5, "best": 0.25, "best_step": 6, "waited": 2,
        "identity": "abc",
    }  # fmt: skip
    assert Progress.from_json({**progress.to_json(), "later": 1}) == progress
