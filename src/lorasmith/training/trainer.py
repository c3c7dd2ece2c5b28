"""The training run: from settings to a LoRA file."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lorasmith.config.train_config import TrainConfig
from lorasmith.core.errors import OutputError, TrainingError
from lorasmith.loops.checkpoint import list_checkpoints
from lorasmith.loops.distributed import any_process
from lorasmith.loops.interrupt import StopRequest, stop_on_interrupt
from lorasmith.loops.memory import empty_gpu_cache, is_out_of_memory
from lorasmith.runs.paths import RunPaths
from lorasmith.training.joint_step import JointTrainStep
from lorasmith.training.outputs.export import export, finish
from lorasmith.training.outputs.logger import RunLogger, open_logger
from lorasmith.training.setup import open_trainer
from lorasmith.training.state import TrainerState
from lorasmith.training.validation.validator import Validator


class Interrupted(KeyboardInterrupt):
    """The run was stopped on request, after a checkpoint was saved."""


def train(run: TrainConfig, resume: str | None = None) -> Path:
    """Train a LoRA and return its file.

    The same settings give the same weights on the same machine, whether in one go or resumed.

    Args:
        run: the settings.
        resume: go on with the run of this name from its ``latest`` checkpoint, or from
            ``step-120`` and no other.

    Raises:
        OutputError: the name is taken, cannot be written, or has no run to go on with.
        DataError: no pictures, no captions, or none with the tag.
        WeightsError: the model cannot be loaded or is of an unsupported family; a checkpoint is
            damaged or of another run.
        ConfigError: a setting does not fit the model or the machine.
        TrainingError: a loss or gradient was not finite, or memory ran out; the last checkpoint
            is intact.
        KeyboardInterrupt: Ctrl-C, with what was saved and how to go on in its message.
    """
    with open_trainer(run, resume) as session, explain_interruption(session.paths):
        return take_steps(session)


def take_steps(session: TrainerState, title: str = "training") -> Path:
    """Take all steps that are left; write what the run leaves, and return its LoRA."""
    with (
        open_logger(session.run, session.paths, session.progress.done, session.is_main, title) as report,
        stop_on_interrupt() as request,
    ):
        ended = _steps(session, report, request)
    return finish(session, ended)


def _steps(session: TrainerState, report: RunLogger, request: StopRequest) -> str:
    """Take the steps that are left, with what is due after each; return why they ended."""
    looks = Validator(session, report, lambda: not request.is_requested)
    looks.run_baseline()
    steps = JointTrainStep([session])
    total = session.run.train.steps
    while session.progress.done < total:
        with explain_oom(session):
            report.step(*steps.step()[0])
        due = ScheduledActions.after(session)
        stopping = stop_requested(session, request, due)
        if not (due.anything or stopping):
            continue
        validate(session, report, looks, due)
        with report.pause():
            _save_what_is_due(session, due, stopping or looks.early_stop)
        if stopping and session.progress.done < total:
            raise Interrupted(stop_message(session))
        if looks.early_stop:
            return end_reason(session, looks)
    return end_reason(session, looks)


def validate(session: TrainerState, report: RunLogger, looks: Validator, due: "ScheduledActions") -> None:
    """Make sure that all is finite; look at the run and write a line, where that is due."""
    _require_finite(session)
    figures = looks.run() if due.look else {}
    if due.line:
        report.line(session.progress.done, session.learning_rates(), figures, session.clock.pop_seconds)


def stop_message(session: TrainerState) -> str:
    """Say that a run was stopped, and how to go on."""
    return (
        f"stopped after step {session.progress.done} of {session.run.train.steps}, all saved; go "
        f"on with: {session.paths.resume_command}"
    )


def end_reason(session: TrainerState, looks: Validator) -> str:
    """Say why there are no more steps."""
    if session.progress.done < session.run.train.steps and looks.early_stop:
        return f"the held-out loss did not improve for {session.progress.waited} looks"
    return "all steps done"


@dataclass(frozen=True)
class ScheduledActions:
    """What happens after a step."""

    line: bool
    look: bool
    checkpoint: bool
    file: bool

    @property
    def anything(self) -> bool:
        """Whether there is something to do at all."""
        return self.line or self.look or self.checkpoint or self.file

    @classmethod
    def after(cls, session: TrainerState) -> "ScheduledActions":
        """Return what happens after the session's last step."""
        run, done = session.run, session.progress.done
        last = done == run.train.steps

        def every(steps: int | None) -> bool:
            return bool(steps) and done % (steps or 1) == 0

        look = run.validation.every_n_steps > 0 and (last or every(run.validation.every_n_steps))
        return cls(
            line=last or look or every(run.train.log_every_n_steps),
            look=look,
            checkpoint=last or every(run.train.checkpoint_every_n_steps),
            file=every(run.train.save_every_n_steps),
        )


def stop_requested(session: TrainerState, request: StopRequest, due: ScheduledActions) -> bool:
    """Tell whether the run shall stop now; several processes agree on it at lines of the log."""
    if session.accelerator.num_processes > 1 and not due.line:
        return False
    return any_process(session.accelerator, request.is_requested)


def _save_what_is_due(session: TrainerState, due: ScheduledActions, ending: bool) -> None:
    if due.checkpoint or ending:
        session.save()
    if due.file and session.is_main:
        export(session, session.paths.lora_at_step(session.progress.done))


def _require_finite(session: TrainerState) -> None:
    failed = session.failed_step()
    if failed is None:
        return
    raise TrainingError(
        f"loss or gradient is not finite at step {failed + 1}, with the pictures "
        f"{', '.join(session.image_names(failed))}; the weights are those of the step before and "
        f"nothing was saved since {_last(session.paths)}: lower train.learning_rate, or look at "
        "these pictures"
    )


@contextmanager
def explain_oom(session: TrainerState, relief: str = "") -> Iterator[None]:
    """Say what to do when memory runs out in a step. The optimizer has not moved then.

    Args:
        session: the run.
        relief: what helps before all else.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        empty_gpu_cache()
        train = session.run.train
        raise TrainingError(
            f"out of memory at step {session.progress.done + 1}; {_last(session.paths)} is kept. "
            f"{relief}Lower train.batch_size (now {train.batch_size}) and raise "
            f"train.gradient_accumulation_steps (now {train.gradient_accumulation_steps}), lower "
            "data.resolution, set train.gradient_checkpointing = true or "
            'train.mixed_precision = "bf16"'
        ) from error


@contextmanager
def explain_interruption(paths: RunPaths) -> Iterator[None]:
    """Say what is left when a second Ctrl-C or the disk stops the run at once."""
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(
            f"stopped at once; {_last(paths)} is kept, {_how(paths)}"
        ) from error
    except OSError as error:
        raise OutputError(
            f"cannot write to {error.filename or paths.folder}: {error.strerror or error}; "
            f"{_last(paths)} is kept, {_how(paths)}"
        ) from error


def _how(paths: RunPaths) -> str:
    there = list_checkpoints(paths.resume_checkpoints)
    return f"go on with: {paths.resume_command}" if there else "the same command starts anew"


def _last(paths: RunPaths) -> str:
    there = list_checkpoints(paths.resume_checkpoints)
    return f"the last checkpoint ({there[-1].name})" if there else "the start (no checkpoint yet)"
