"""Looking at a run every so many steps: preview pictures and the loss on a fixed grid."""

import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate.utils import broadcast_object_list

from lorasmith.core.errors import LorasmithWarning
from lorasmith.loops.memory import empty_gpu_cache, is_out_of_memory
from lorasmith.training.outputs.export import export
from lorasmith.training.outputs.logger import RunLogger
from lorasmith.training.state import TrainerState
from lorasmith.training.validation.loss import ValidationLoss, ValidationResult
from lorasmith.training.validation.previews import Previews, PreviewsCancelledError

_AT_ONCE = 8
"""Images that go through the model at once where training accumulates smaller batches."""


class Validator:
    """The looks at one run, and what they found."""

    def __init__(
        self, session: TrainerState, report: RunLogger, wanted: Callable[[], bool]
    ) -> None:
        """Decide what is looked at.

        Args:
            session: the run.
            report: where the figures go.
            wanted: tells whether the run is still to go on.
        """
        self._session = session
        self._report = report
        self._wanted = wanted
        run, data = session.run, session.dataset
        self._name = "fixed_loss" if data.validation is None else "held_out"
        self._grid = ValidationLoss(
            session.loss,
            data.validation or data,
            run.validation.loss_timesteps,
            max(run.train.batch_size, min(run.train.images_per_step(), _AT_ONCE)),
            run.train.seed if run.validation.loss_seed is None else run.validation.loss_seed,
        )
        rows = data.rows[: data.num_tagged]
        self._previews = Previews(run.validation, session.model, rows, session.paths.previews)

    @property
    def early_stop(self) -> bool:
        """Whether the held-out loss has not improved for as long as the settings allow."""
        patience = self._session.run.train.early_stopping_patience
        return patience is not None and self._session.progress.waited >= patience

    def run_baseline(self, drawn: Path | None = None) -> None:
        """Look at the base model, before the first step of a new run.

        Args:
            drawn: the previews of a run whose base model has drawn the same already.
        """
        session = self._session
        if session.progress.done or session.run.validation.every_n_steps == 0:
            return
        session.trainable.set_strength(0.0)
        try:
            with self._report.pause():
                self._draw_base(drawn)
        finally:
            session.trainable.set_strength(1.0)
        with self._report.pause():
            base = self._measure()
            if base is not None:
                self._report.extra(
                    0, ValidationResult(base.base, base.base).log_entries(self._name)
                )

    def run(self) -> dict[str, float]:
        """Look at the run as it is; return the figures for its log."""
        session = self._session
        with self._report.pause(), session.ema_weights():
            measured = self._measure()
            if measured is not None and self._name == "held_out":
                self._remember(measured)
            self._draw()
        return {} if measured is None else measured.log_entries(self._name)

    def _remember(self, measured: ValidationResult) -> None:
        """Keep the LoRA where it is the best so far."""
        progress = self._session.progress
        if progress.best is not None and measured.loss >= progress.best:
            progress.waited += 1
            return
        progress.best, progress.best_step, progress.waited = measured.loss, progress.done, 0
        if self._session.is_main:
            export(self._session, self._session.paths.best_lora)

    def _measure(self) -> ValidationResult | None:
        """Measure in the main process, and tell the others."""
        session = self._session
        found: list[ValidationResult | None] = [None]
        if session.is_main:
            with _surviving("the held-out loss", session.progress.done):
                found = [self._grid.measure(session.trainable, session.progress.base)]
        if session.accelerator.num_processes > 1:
            broadcast_object_list(found)
        if found[0] is not None:
            session.progress.base = found[0].base
        return found[0]

    def _draw_base(self, drawn: Path | None) -> None:
        if drawn is None:
            self._draw()
        elif self._session.is_main and drawn.is_dir():
            shutil.copytree(drawn, self._session.paths.previews, dirs_exist_ok=True)

    def _draw(self) -> None:
        session = self._session
        if not session.is_main:
            return
        if session.loss.routing is not None:
            session.loss.routing.activate_only_own()
        try:
            with _surviving("a preview", session.progress.done):
                self._previews.draw(session.progress.done, session.trainable, self._wanted)
        except PreviewsCancelledError:
            return


@contextmanager
def _surviving(what: str, step: int) -> Iterator[None]:
    """Turn running out of memory into a warning: the training itself may well go on."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        empty_gpu_cache()
        warnings.warn(
            f"out of memory in {what} at step {step}; the training goes on without it: lower "
            "validation.num_images or validation.size",
            LorasmithWarning,
            stacklevel=2,
        )
