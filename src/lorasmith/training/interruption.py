"""Errors and messages about training that cannot continue: what is saved, and how to resume."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from lorasmith.core.errors import TrainingError
from lorasmith.loops import stop_messages
from lorasmith.loops.memory import empty_gpu_cache, is_out_of_memory
from lorasmith.loops.stop_messages import Interrupted
from lorasmith.runs.paths import RunPaths
from lorasmith.training.state import TrainerState

__all__ = ["Interrupted", "check_finite", "explain_interruption", "explain_oom", "stop_message"]


def stop_message(state: TrainerState) -> str:
    """Return the message of a run that was stopped between two steps."""
    return (
        f"stopped after step {state.step} of {state.total_steps}, all saved; go on with: "
        f"{state.paths.resume_command}"
    )


def check_finite(state: TrainerState) -> None:
    """Wait for the device and check all steps so far.

    Raises:
        TrainingError: a loss or gradient was not finite.
    """
    step = state.failed_step()
    if step is None:
        return
    raise TrainingError(
        f"loss or gradient is not finite at step {step + 1}, with the images "
        f"{', '.join(state.image_names(step))}; the weights are those of the step before and "
        f"nothing was saved since {_last_checkpoint(state.paths)}: lower train.learning_rate, or "
        "check these images"
    )


@contextmanager
def explain_oom(state: TrainerState, hint: str = "") -> Iterator[None]:
    """Say what to do when memory runs out in a step. The optimizer has not moved then.

    Args:
        state: the run.
        hint: the first advice, a sentence with a space at its end.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        empty_gpu_cache()
        train = state.train
        raise TrainingError(
            f"out of memory at step {state.step + 1}; {_last_checkpoint(state.paths)} is kept. "
            f"{hint}Lower train.batch_size (now {train.batch_size}) and raise "
            f"train.gradient_accumulation_steps (now {train.gradient_accumulation_steps}), lower "
            "data.resolution, set train.gradient_checkpointing = true or "
            'train.mixed_precision = "bf16"'
        ) from error


def explain_interruption(paths: RunPaths) -> AbstractContextManager[None]:
    """Return a context that says what is saved, and how to resume, when anything ends a run."""
    return stop_messages.explain_interruption(
        paths.folder, paths.resume_checkpoints, f"go on with: {paths.resume_command}"
    )


def _last_checkpoint(paths: RunPaths) -> str:
    return stop_messages.last_checkpoint(paths.resume_checkpoints)
