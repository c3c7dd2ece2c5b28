"""Validation every so many steps: the validation loss, and the best LoRA so far."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.utils import broadcast_object_list

from lorasmith.core.errors import LorasmithWarning
from lorasmith.loops.memory import empty_gpu_cache, is_out_of_memory
from lorasmith.training.callbacks import Callback
from lorasmith.training.outputs.export import export_lora
from lorasmith.training.state import TrainerState
from lorasmith.training.step.train_step import StepMetrics
from lorasmith.training.validation.loss import ValidationLoss, ValidationResult

_MAX_BATCH_SIZE = 8
"""Images that go through the model at once where training accumulates smaller batches."""


class Validator(Callback):
    """Validates one run."""

    def __init__(self, state: TrainerState) -> None:
        """Prepare validation of a run."""
        validation, train, dataset = state.validation, state.train, state.dataset
        self._has_validation_images = dataset.validation is not None
        images_per_step = train.images_per_step(state.accelerator.num_processes)
        self._loss = ValidationLoss(
            state.loss,
            dataset.validation or dataset,
            validation.loss_timesteps,
            max(train.batch_size, min(images_per_step, _MAX_BATCH_SIZE)),
            train.seed if validation.loss_seed is None else validation.loss_seed,
        )

    def on_train_begin(self, state: TrainerState) -> None:
        """Validate the base model before the first step of a new run."""
        if state.step or state.validation.every_n_steps == 0:
            return
        result = self._measure(state)
        if result is not None:
            base = ValidationResult(result.base_loss, result.base_loss)
            state.callbacks.on_validation_end(state, self._log_entries(base))

    def on_step_end(self, state: TrainerState, metrics: StepMetrics) -> None:
        """Validate if that is due."""
        if not state.scheduled_actions.validate:
            return
        with state.ema_weights():
            result = self._measure(state)
            if result is not None and self._has_validation_images:
                self._keep_best(state, result.loss)
        entries = {} if result is None else self._log_entries(result)
        state.callbacks.on_validation_end(state, entries)

    def _log_entries(self, result: ValidationResult) -> dict[str, float]:
        return result.log_entries(
            "validation_loss" if self._has_validation_images else "fixed_loss"
        )

    def _keep_best(self, state: TrainerState, loss: float) -> None:
        """Write the LoRA if it is the best so far."""
        progress = state.progress
        if progress.best_loss is not None and loss >= progress.best_loss:
            progress.validations_without_improvement += 1
            return
        progress.best_loss, progress.best_step = loss, progress.step
        progress.validations_without_improvement = 0
        if state.is_main:
            export_lora(state, state.paths.best_lora)

    def _measure(self, state: TrainerState) -> ValidationResult | None:
        """Measure in the main process; all processes get the result."""
        results: list[ValidationResult | None] = [None]
        if state.is_main:
            with warn_on_oom("the validation loss", state.step):
                results = [self._loss.measure(state.trainable, state.progress.base_loss)]
        if state.accelerator.num_processes > 1:
            broadcast_object_list(results)
        if results[0] is not None:
            state.progress.base_loss = results[0].base_loss
        return results[0]


@contextmanager
def warn_on_oom(task: str, step: int) -> Iterator[None]:
    """Turn running out of memory into a warning: the training itself may well continue."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        empty_gpu_cache()
        warnings.warn(
            f"out of memory in {task} at step {step}; the training goes on without it: lower "
            "validation.num_images or validation.size",
            LorasmithWarning,
            stacklevel=2,
        )
