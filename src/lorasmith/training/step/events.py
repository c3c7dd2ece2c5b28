"""The events of a training, and calling several callbacks on each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from lorasmith.training.step.train_step import StepMetrics

State = TypeVar("State", contravariant=True)


class TrainingEvents(Protocol[State]):
    """What is called on events; `lorasmith.training.callbacks.Callback` describes the methods."""

    def on_train_begin(self, state: State) -> None: ...

    def on_step_end(self, state: State, metrics: StepMetrics) -> None: ...

    def on_validation_end(self, state: State, metrics: Mapping[str, float]) -> None: ...

    def on_checkpoint(self, state: State, path: Path) -> None: ...

    def on_save(self, state: State, path: Path) -> None: ...

    def on_train_end(self, state: State, stop_reason: str) -> None: ...


class CallbackList(Generic[State]):
    """Calls several callbacks as one, in their order."""

    def __init__(self, callbacks: Sequence[TrainingEvents[State]] = ()) -> None:
        self.callbacks = list(callbacks)

    def on_train_begin(self, state: State) -> None:
        for callback in self.callbacks:
            callback.on_train_begin(state)

    def on_step_end(self, state: State, metrics: StepMetrics) -> None:
        for callback in self.callbacks:
            callback.on_step_end(state, metrics)

    def on_validation_end(self, state: State, metrics: Mapping[str, float]) -> None:
        for callback in self.callbacks:
            callback.on_validation_end(state, metrics)

    def on_checkpoint(self, state: State, path: Path) -> None:
        for callback in self.callbacks:
            callback.on_checkpoint(state, path)

    def on_save(self, state: State, path: Path) -> None:
        for callback in self.callbacks:
            callback.on_save(state, path)

    def on_train_end(self, state: State, stop_reason: str) -> None:
        for callback in self.callbacks:
            callback.on_train_end(state, stop_reason)
