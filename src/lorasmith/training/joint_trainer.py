"""LoRAs that are trained at the same time: one loop, one bar and one checkpoint for all."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from lorasmith.core.errors import LorasmithWarning, OutputError, TrainingError
from lorasmith.core.files import write_text
from lorasmith.core.safetensors_io import Tensors
from lorasmith.loops.checkpoint import Checkpoint, list_checkpoints, save_checkpoint
from lorasmith.loops.interrupt import StopRequest, stop_on_interrupt
from lorasmith.loops.optimized_module import select_prefix
from lorasmith.loops.tracking import MetricsLogger, ScopedLogger, WandbRun, open_wandb
from lorasmith.runs.paths import RunPaths
from lorasmith.training.joint_step import JointTrainStep
from lorasmith.training.outputs.export import export, finish
from lorasmith.training.outputs.logger import RunLogger, open_logger, public_config
from lorasmith.training.resume import LATEST, find_checkpoint
from lorasmith.training.state import TrainerState
from lorasmith.training.trainer import (
    Interrupted,
    ScheduledActions,
    end_reason,
    explain_oom,
    stop_message,
    stop_requested,
    validate,
)
from lorasmith.training.validation.validator import Validator

_STATES = "features"
"""Where a checkpoint has the states of each; what they were first called."""


@dataclass(frozen=True)
class JointRunConfig:
    """What LoRAs that are trained at the same time have in common."""

    paths: RunPaths
    """Where their checkpoints are, and how to go on with them."""
    title: str
    """Of the progress bar."""
    labels: tuple[str, ...]
    """What each is called where all are shown together."""
    relief: str = ""
    """What helps first when memory runs out."""
    lenient: bool = False
    """Whether the others go on where the loss of one is not finite."""
    same_base: bool = False
    """Whether the base model draws the same for all, and needs to do so only once."""


class _Watched:
    """A LoRA in training, with its log and its looks."""

    def __init__(self, session: TrainerState, report: RunLogger, request: StopRequest) -> None:
        self.session = session
        self.report = report
        self.looks = Validator(session, report, lambda: not request.is_requested)
        self.failed = session.paths.failure.is_file()

    @property
    def goes_on(self) -> bool:
        """Whether it has steps left."""
        left = self.session.progress.done < self.session.run.train.steps
        return left and not (self.failed or self.looks.early_stop)

    def look(self, due: ScheduledActions, lenient: bool) -> None:
        """Do what is due but for checkpoints; give up a run that is not finite, or raise."""
        try:
            validate(self.session, self.report, self.looks, due)
        except TrainingError as error:
            if not lenient:
                raise
            self._give_up(str(error))

    def _give_up(self, reason: str) -> None:
        self.failed = True
        paths = self.session.paths
        if self.session.is_main:
            write_text(paths.failure, f"{reason}\n")
            warnings.warn(f"{paths.name}: {reason}", LorasmithWarning, stacklevel=2)


def train_jointly(sessions: Sequence[TrainerState], whole: JointRunConfig) -> None:
    """Take all steps that are left, and write what each LoRA's run leaves.

    Raises:
        TrainingError: memory ran out, or a loss or gradient was not finite.
        KeyboardInterrupt: Ctrl-C, with what was saved and how to go on in its message.
    """
    with _watching(sessions, whole) as (watched, request):
        drawn = watched[0].session.paths.previews if whole.same_base else None
        for number, one in enumerate(watched):
            one.looks.run_baseline(drawn if number else None)
        _steps(watched, whole, request)
    for one in watched:
        if not one.failed:
            finish(one.session, end_reason(one.session, one.looks))


@contextmanager
def _watching(
    sessions: Sequence[TrainerState], whole: JointRunConfig
) -> Iterator[tuple[list[_Watched], StopRequest]]:
    """Open the logs; the first one's bar stands for all."""
    with ExitStack() as stack:
        request = stack.enter_context(stop_on_interrupt())
        board = stack.enter_context(_board(sessions, whole))
        watched = []
        for number, session in enumerate(sessions):
            title = None if number else whole.title
            shared = None if board is None else ScopedLogger(board, whole.labels[number])
            opened = open_logger(
                session.run, session.paths, session.progress.done, session.is_main, title, shared
            )
            watched.append(_Watched(session, stack.enter_context(opened), request))
        yield watched, request


@contextmanager
def _board(
    sessions: Sequence[TrainerState], whole: JointRunConfig
) -> Iterator[MetricsLogger | None]:
    """Open the one run at Weights & Biases that all are shown in, where it is wanted."""
    track = sessions[0].run.track
    if not (track.wandb and sessions[0].is_main):
        yield None
        return
    told = {
        label: public_config(session.run)
        for label, session in zip(whole.labels, sessions, strict=True)
    }
    wanted = WandbRun(track.wandb_project, whole.paths.name, told)
    with open_wandb(whole.paths.folder, wanted) as board:
        yield board


def _steps(watched: Sequence[_Watched], whole: JointRunConfig, request: StopRequest) -> None:
    """Take the steps that are left, with what is due after each."""
    before: list[_Watched] = []
    while active := [one for one in watched if one.goes_on]:
        if active != before:  # some have no steps left
            before, steps = active, JointTrainStep([one.session for one in active])
        with explain_oom(active[0].session, whole.relief):
            taken = steps.step()
        for one, (figures, pictures) in zip(active, taken, strict=True):
            one.report.step(figures, pictures)
        session = active[0].session
        due = ScheduledActions.after(session)
        stopping = stop_requested(session, request, due)
        if not (due.anything or stopping):
            continue
        for one in active:
            one.look(due, whole.lenient)
        ended = not all(one.goes_on for one in active)
        if due.checkpoint or stopping or ended:
            _save_all(watched, whole.paths)
        for one in active:
            if due.file and session.is_main and not one.failed:
                export(one.session, one.session.paths.lora_at_step(session.progress.done))
        if stopping and any(one.goes_on for one in watched):
            raise Interrupted(stop_message(session))


# --- checkpoints ------------------------------------------------------------------------------


def _save_all(watched: Sequence[_Watched], paths: RunPaths) -> None:
    """Save one checkpoint for all: none of them can then be ahead of the others."""
    first = watched[0].session
    if first.is_main:
        tensors: Tensors = {}
        states: dict[str, Any] = {}
        for one in watched:
            own, states[one.session.paths.name] = one.session.state_dict()
            tensors |= {f"{one.session.paths.name}/{key}": value for key, value in own.items()}
        step = max(one.session.progress.done for one in watched)
        keep = first.run.train.keep_checkpoints
        save_checkpoint(paths.checkpoints, step, tensors, {_STATES: states}, keep)
    first.accelerator.wait_for_everyone()


def find_joint_checkpoint(paths: RunPaths, resume: str | None) -> Checkpoint | None:
    """Return what LoRAs that are trained at the same time go on from; None where they start anew.

    Raises:
        OutputError, WeightsError: see `lorasmith.training.resume.find_checkpoint`.
    """
    if resume is None or (resume == LATEST and not list_checkpoints(paths.checkpoints)):
        return None
    return find_checkpoint(paths.checkpoints, resume)


def select_state(found: Checkpoint | None, place: RunPaths) -> Checkpoint | None:
    """Return one LoRA's part of a checkpoint of all.

    Raises:
        OutputError: it has none.
    """
    if found is None:
        return None
    state = found.state.get(_STATES, {}).get(place.name)
    if state is None:
        raise OutputError(
            f"{place.parent_folder}: the run that is there has no {place.name}; start a new one"
        )
    tensors: dict[str, torch.Tensor] = select_prefix(f"{place.name}/", found.tensors)
    return Checkpoint(int(state["progress"]["done"]), tensors, state)
