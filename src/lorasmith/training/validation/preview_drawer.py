"""Drawing previews at their steps, and those that a stopped run owes. They never end a run."""

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

from lorasmith.core.errors import LorasmithError, LorasmithWarning
from lorasmith.training.callbacks import Callback
from lorasmith.training.state import TrainerState
from lorasmith.training.step.train_step import StepMetrics
from lorasmith.training.validation.previews import Previews, PreviewsCancelledError
from lorasmith.training.validation.validator import warn_on_oom


class PreviewDrawer(Callback):
    """Draws the previews of one run, after the checkpoint of their step."""

    def __init__(
        self,
        state: TrainerState,
        is_wanted: Callable[[], bool] = lambda: True,
        base_previews: Path | None = None,
    ) -> None:
        """Choose the prompts.

        Args:
            state: the run.
            is_wanted: returns False once the run is asked to stop; previews are then given up.
            base_previews: a folder with the base model's previews from a run with the same ones;
                None generates them.
        """
        self._is_wanted = is_wanted
        self._base_previews = base_previews
        rows = state.dataset.rows[: state.dataset.num_tagged]
        self._previews = Previews(state.validation, state.model, rows, state.paths.previews)

    def on_train_begin(self, state: TrainerState) -> None:
        """Draw what is missing: the base model's, and of a resumed run those of its last step."""
        if state.validation.every_n_steps == 0 or not state.is_main:
            return
        if not self._previews.is_complete(0):
            state.trainable.set_strength(0.0)
            try:
                self._draw_base(state)
            finally:
                state.trainable.set_strength(1.0)
        is_due = state.step > 0 and state.scheduled_actions.validate
        if is_due and not self._previews.is_complete(state.step):
            self._draw_averaged(state)

    def on_step_end(self, state: TrainerState, metrics: StepMetrics) -> None:
        """Draw if that is due."""
        if state.scheduled_actions.validate and state.is_main:
            self._draw_averaged(state)

    def on_train_end(self, state: TrainerState, stop_reason: str) -> None:
        """Say so if the last previews were given up for a signal."""
        is_due = state.validation.every_n_steps > 0 and state.scheduled_actions.validate
        if is_due and state.is_main and not self._is_wanted() and not self._is_drawn(state):
            _warn(
                f"{self._previews.folder_of(state.step)}: not drawn, as the run was asked to stop; "
                f"that is made up for by: {state.paths.resume_command}"
            )

    def _is_drawn(self, state: TrainerState) -> bool:
        return self._previews.is_complete(state.step)

    def _draw_averaged(self, state: TrainerState) -> None:
        with state.ema_weights():
            self._draw(state, state.step)

    def _draw_base(self, state: TrainerState) -> None:
        """Draw or copy the previews of the base model."""
        if self._base_previews is None:
            self._draw(state, 0)
            return
        base = self._previews.folder_of(0)
        source = self._base_previews / base.name
        if not source.is_dir():
            return
        try:
            shutil.copytree(source, base, dirs_exist_ok=True)
        except OSError as error:
            _warn(f"{base}: not written: {error}; the training goes on")

    def _draw(self, state: TrainerState, step: int) -> None:
        if state.loss.routing is not None:
            state.loss.routing.activate_only_own()
        try:
            with warn_on_oom("a preview", step):
                self._previews.generate(step, state.trainable, self._is_wanted)
        except PreviewsCancelledError:
            return
        except LorasmithError as error:  # names the file
            _warn(f"no previews of step {step}: {error}; the training goes on")
        except Exception as error:  # noqa: BLE001 (a preview never ends a run)
            folder = self._previews.folder_of(step)
            _warn(f"{folder}: not drawn: {type(error).__name__}: {error}; the training goes on")


def _warn(message: str) -> None:
    warnings.warn(message, LorasmithWarning, stacklevel=3)
