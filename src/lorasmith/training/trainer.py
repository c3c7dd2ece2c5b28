"""The training loop, for one LoRA or several that are trained jointly."""

import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from lorasmith.config.train_config import TrainConfig
from lorasmith.core.errors import LorasmithWarning, TrainingError
from lorasmith.core.files import write_text
from lorasmith.loops.stop_signals import StopAgreement, StopRequest, stop_on_interrupt
from lorasmith.training.builtin_callbacks import CheckpointSaver, LoopOptions, install_callbacks
from lorasmith.training.callbacks import Callback, notify_step_end
from lorasmith.training.interruption import (
    Interrupted,
    check_finite,
    explain_interruption,
    explain_oom,
    stop_message,
)
from lorasmith.training.losses import LossFn, diffusion_loss
from lorasmith.training.run_step import JointTrainStep
from lorasmith.training.setup.setup import open_trainer
from lorasmith.training.state import TrainerState


def train(
    config: TrainConfig,
    resume: str | None = None,
    callbacks: Sequence[Callback] = (),
    loss_fn: LossFn = diffusion_loss,
    break_lock: bool = False,
) -> Path:
    """Train a LoRA and return its file.

    The same settings give the same weights on the same machine, in one go or resumed.

    Args:
        config: the settings.
        resume: continue the run of this name from its ``latest`` checkpoint, or from ``step-120``
            and no other.
        callbacks: called during the training.
        loss_fn: what is minimised.
        break_lock: take over the lock of a run on another machine that did not renew its lock for
            two minutes. Locks of dead processes on this machine need no such thing.

    Raises:
        LockedError: another run of this name is running, or may be.
        OutputError: the name is taken, cannot be written, or has no run to resume.
        DataError: no images, no captions, or none with the trigger word.
        WeightsError: the model cannot be loaded or is of an unsupported family; a checkpoint is
            damaged or of another run.
        ConfigError: a setting does not fit the model or the machine.
        TrainingError: a loss or gradient was not finite, or memory ran out; the last checkpoint
            is intact.
        KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP; the message says what is saved and how to
            resume.
    """
    opened = open_trainer(config, resume, loss_fn, break_lock)
    with opened as state, explain_interruption(state.paths):
        run_training([state], LoopOptions(state.paths), callbacks)
    return state.paths.lora


def run_training(
    states: Sequence[TrainerState], options: LoopOptions, callbacks: Sequence[Callback] = ()
) -> int:
    """Take all steps that are left, and write the results.

    Args:
        states: the LoRAs.
        options: what they have in common.
        callbacks: called after the built-in ones.

    Returns:
        the signal that asked to stop when there was nothing left to stop; 0 for none.

    Raises:
        TrainingError: memory ran out, or a loss or gradient was not finite.
        KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP; the message says what is saved and how to
            resume.
    """
    with (
        stop_on_interrupt() as request,
        install_callbacks(states, options, request, callbacks) as saver,
    ):
        for state in states:
            state.failure = "failed before" if state.paths.failure.is_file() else None
            state.callbacks.on_train_begin(state)
        train_loop(states, options, request, saver)
    for state in states:
        if state.failure is None:
            is_complete = state.step == state.total_steps
            reason = None if is_complete else state.stop_reason
            state.callbacks.on_train_end(state, reason or "all steps done")
    return StopAgreement(states[0].accelerator).ask(request.signal_number)


def train_loop(
    states: Sequence[TrainerState],
    options: LoopOptions,
    request: StopRequest,
    saver: CheckpointSaver,
) -> None:
    """Take steps until no LoRA has any left; call the callbacks after each.

    Raises:
        Interrupted: the run was asked to stop, and its checkpoint is saved.
    """
    agreement = StopAgreement(states[0].accelerator)
    previous: list[TrainerState] = []
    while active := [state for state in states if state.is_active]:
        if active != previous:  # some LoRAs are done
            previous, train_step = active, JointTrainStep(active)
        started = time.perf_counter()
        with explain_oom(active[0], options.oom_hint):
            metrics = train_step.step()
        stop_signal = agreement.after_step(request.signal_number, active[0].scheduled_actions.log)
        if active[0].scheduled_actions.any or stop_signal:
            _check_all_finite(active, options.continues_on_failure)
        seconds = time.perf_counter() - started
        for state in active:
            state.stop_requested = stop_signal != 0
        pairs = [
            (state, step_metrics._replace(seconds=seconds))
            for state, step_metrics in zip(active, metrics, strict=True)
            if state.failure is None
        ]
        notify_step_end(pairs)
        is_over = not any(state.is_active for state in states)
        if not (stop_signal or is_over) and any(s.scheduled_actions.validate for s in active):
            # A signal cancels previews; only with this step's weights can they be made up for.
            stop_signal = agreement.ask(request.signal_number)
            if stop_signal:
                saver.save()
        if stop_signal and not is_over:
            raise Interrupted(stop_message(active[0]), stop_signal)


def _check_all_finite(states: Sequence[TrainerState], continues_on_failure: bool) -> None:
    """Give up the LoRAs whose loss is not finite, or raise."""
    for state in states:
        try:
            check_finite(state)
        except TrainingError as error:
            if not continues_on_failure:
                raise
            state.failure = str(error)
            if state.is_main:
                write_text(state.paths.failure, f"{error}\n")
                message = f"{state.paths.name}: {error}"
                warnings.warn(message, LorasmithWarning, stacklevel=2)
