"""The callbacks of every run: validation, early stopping, log, checkpoints and LoRA files."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorasmith.loops.stop_signals import StopRequest
from lorasmith.loops.tracking import MetricsLogger, ScopedLogger, WandbRun, open_wandb
from lorasmith.runs.paths import RunPaths
from lorasmith.training.callbacks import Callback
from lorasmith.training.outputs.export import export_lora, finish_run
from lorasmith.training.outputs.logger import open_logger, public_config
from lorasmith.training.resume import save_checkpoints
from lorasmith.training.state import TrainerState
from lorasmith.training.step.events import CallbackList
from lorasmith.training.validation.preview_drawer import PreviewDrawer
from lorasmith.training.validation.validator import Validator

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lorasmith.training.step.train_step import StepMetrics


@dataclass(frozen=True)
class LoopOptions:
    """What LoRAs that are trained jointly have in common; a single run has nothing but defaults."""

    paths: RunPaths
    """Where their checkpoints are, and how to resume them."""
    title: str = "training"
    """Of the progress bar."""
    is_joint: bool = False
    """Whether a checkpoint holds the states of several LoRAs."""
    labels: tuple[str, ...] = ()
    """Names of the LoRAs where all are shown together."""
    oom_hint: str = ""
    """The first advice when memory runs out."""
    continues_on_failure: bool = False
    """Whether the others go on when the loss of one is not finite."""
    shares_base_previews: bool = False
    """Whether the base model's previews are the same for all."""


@contextmanager
def install_callbacks(
    states: Sequence[TrainerState],
    options: LoopOptions,
    request: StopRequest,
    user_callbacks: Sequence[Callback] = (),
) -> Iterator["CheckpointSaver"]:
    """Open the logs, and give every LoRA its callbacks while the block runs.

    Yields what saves checkpoints. Previews come after the checkpoint and the LoRA file of their
    step, which they cannot cost then.

    Args:
        states: the LoRAs.
        options: what they have in common.
        request: tells whether a signal asks to stop.
        user_callbacks: called after the built-in ones.
    """
    saver = CheckpointSaver(states, options)
    previews = states[0].paths.previews if options.shares_base_previews else None
    with ExitStack() as stack:
        shared_wandb = stack.enter_context(_open_shared_wandb(states, options))
        for index, state in enumerate(states):
            wandb = (
                None if shared_wandb is None else ScopedLogger(shared_wandb, options.labels[index])
            )
            title = None if index else options.title  # the first one's bar stands for all
            drawer = PreviewDrawer(
                state, lambda: not request.is_requested, previews if index else None
            )
            logger = stack.enter_context(open_logger(state, title, wandb))
            state.callbacks = CallbackList(
                [
                    Validator(state),
                    EarlyStopping(),
                    logger,
                    saver,
                    LoraSaver(),
                    drawer,
                    *user_callbacks,
                ]
            )
        yield saver


@contextmanager
def _open_shared_wandb(
    states: Sequence[TrainerState], options: LoopOptions
) -> Iterator[MetricsLogger | None]:
    """Open one run at Weights & Biases for several LoRAs, if the settings ask for it."""
    track = states[0].track
    if not (options.is_joint and track.wandb and states[0].is_main):
        yield None
        return
    settings = {
        label: public_config(state.settings)
        for label, state in zip(options.labels, states, strict=True)
    }
    run = WandbRun(track.wandb_project, options.paths.name, settings)
    with open_wandb(options.paths.folder, run) as logger:
        yield logger


class EarlyStopping(Callback):
    """Stops a run whose validation loss no longer improves."""

    def on_train_begin(self, state: TrainerState) -> None:
        """Check the progress of a resumed run."""
        self._check(state)

    def on_validation_end(self, state: TrainerState, metrics: "Mapping[str, float]") -> None:
        """Check after each validation."""
        self._check(state)

    @staticmethod
    def _check(state: TrainerState) -> None:
        patience = state.train.early_stopping_patience
        count = state.progress.validations_without_improvement
        if patience is not None and count >= patience:
            state.stop(f"the validation loss did not improve for {count} validations")


class CheckpointSaver(Callback):
    """Saves one checkpoint for all LoRAs, so that none of them is ahead of the others."""

    def __init__(self, states: Sequence[TrainerState], options: LoopOptions) -> None:
        self._states = states
        self._options = options
        self._checked_step = self._saved_step = -1
        self._num_active = len(states)

    def on_train_begin(self, state: TrainerState) -> None:
        """Count the LoRAs that have steps left."""
        self._num_active = self._count_active()

    def on_step_end(self, state: TrainerState, metrics: "StepMetrics") -> None:
        """Save if that is due, if the run is asked to stop, or if a LoRA took its last step."""
        if state.step == self._checked_step:  # called for each LoRA
            return
        self._checked_step = state.step
        num_active = self._count_active()
        has_ended, self._num_active = num_active < self._num_active, num_active
        if state.scheduled_actions.checkpoint or state.stop_requested or has_ended:
            self.save()

    def _count_active(self) -> int:
        return sum(state.is_active for state in self._states)

    def save(self) -> None:
        """Save a checkpoint, unless the last step's is saved already."""
        step = max(state.step for state in self._states)
        if step == self._saved_step:
            return
        self._saved_step = step
        folder = save_checkpoints(self._states, self._options.paths, self._options.is_joint)
        for state in self._states:
            state.callbacks.on_checkpoint(state, folder)


class LoraSaver(Callback):
    """Writes LoRA files on the way and, with summary and report, at the end."""

    def on_train_begin(self, state: TrainerState) -> None:
        """Write the file of the step that a run is resumed from, if it was killed before that."""
        path = state.paths.lora_at_step(state.step)
        is_due = state.step > 0 and state.failure is None and state.scheduled_actions.save
        if is_due and state.is_main and not path.exists():
            export_lora(state, path)

    def on_step_end(self, state: TrainerState, metrics: "StepMetrics") -> None:
        """Write a file if that is due."""
        if state.scheduled_actions.save and state.is_main:
            export_lora(state, state.paths.lora_at_step(state.step))

    def on_train_end(self, state: TrainerState, stop_reason: str) -> None:
        """Write the result."""
        finish_run(state, stop_reason)
