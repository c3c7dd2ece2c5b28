"""Callbacks: code that runs at points of the training, without changing the loop."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lorasmith.training.state import TrainerState
from lorasmith.training.step.train_step import StepMetrics


class Callback:
    """Base class of callbacks; override the methods that you need.

    ``lorasmith.train(config, callbacks=[MyCallback()])`` calls them after the built-in ones. Where
    several LoRAs are trained jointly, each method is called for each LoRA; ``state.paths.name``
    tells them apart. With several processes, callbacks run in all of them; ``state.is_main`` is
    true in the one that writes files.

    Example:

        class PrintLoss(lorasmith.Callback):
            def on_step_end(self, state, metrics):
                print(state.step, float(metrics.loss))
    """

    def on_train_begin(self, state: TrainerState) -> None:
        """Called before the first step, of resumed runs too.

        Args:
            state: model, trainable modules, optimizer and progress of a LoRA.
        """

    def on_step_end(self, state: TrainerState, metrics: StepMetrics) -> None:
        """Called after every optimizer step. ``state.stop(reason)`` makes it the last one.

        Args:
            state: the LoRA; ``state.step`` steps are done.
            metrics: loss and gradient norm, float32 scalars on the device. ``float(metrics.loss)``
                waits for the GPU; do that rarely.
        """

    def on_validation_end(self, state: TrainerState, metrics: Mapping[str, float]) -> None:
        """Called after a validation, before the log is written; at step 0 for the base model.

        Args:
            state: the LoRA.
            metrics: validation losses by their names in the log: ``validation_loss``,
                ``validation_loss_base`` and ``validation_loss_gain``, or ``fixed_loss`` and so on
                where there are no validation images.
        """

    def on_checkpoint(self, state: TrainerState, path: Path) -> None:
        """Called after a checkpoint was saved.

        Args:
            state: the LoRA.
            path: the checkpoint's folder.
        """

    def on_save(self, state: TrainerState, path: Path) -> None:
        """Called after a LoRA file was written: at a step, the best one, or the last one.

        Args:
            state: the LoRA.
            path: the file.
        """

    def on_train_end(self, state: TrainerState, stop_reason: str) -> None:
        """Called after the last step; not after an error or Ctrl-C.

        Args:
            state: the LoRA.
            stop_reason: why the training ended, as a phrase: ``all steps done``, or what
                ``state.stop`` was called with.
        """


def notify_step_end(steps: Sequence[tuple[TrainerState, StepMetrics]]) -> None:
    """Call ``on_step_end`` of each callback for every LoRA before that of the next callback."""
    count = max((len(state.callbacks.callbacks) for state, _ in steps), default=0)
    for position in range(count):
        for state, metrics in steps:
            state.callbacks.callbacks[position].on_step_end(state, metrics)
