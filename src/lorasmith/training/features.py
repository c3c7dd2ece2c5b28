"""Runs of several features: one after another, or all at once."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from lorasmith.adapters.gate_facts import gate_of_metadata
from lorasmith.config.features import FeaturesRun
from lorasmith.config.load import dump_toml, load_settings
from lorasmith.core.errors import ConfigError, DataError, LorasmithWarning, OutputError
from lorasmith.core.weights import Tensors, load_metadata
from lorasmith.data.rules.facts import Finding
from lorasmith.data.rules.features import Featured, between_features
from lorasmith.evaluation.check_features import dropout_findings, tag_findings
from lorasmith.loops.checkpoint import Checkpoint, checkpoints, save_checkpoint
from lorasmith.loops.interrupt import StopRequest, stop_on_interrupt
from lorasmith.loops.track import Board, Corner, WandbRun, wandb_board
from lorasmith.loops.trained import under
from lorasmith.models.load import load_tokenizer, resolve_model
from lorasmith.training.chosen import ChosenRows, choose_rows
from lorasmith.training.earlier import Earlier
from lorasmith.training.features_paths import FeaturesPaths
from lorasmith.training.looks import Looks
from lorasmith.training.loop import (
    Due,
    Interrupted,
    asked,
    look,
    naming_memory,
    naming_the_rest,
    stopped,
    take_steps,
    why_ended,
)
from lorasmith.training.opening import Machine, Plan, claimed, prepared
from lorasmith.training.overview import write_overview
from lorasmith.training.paths import RunPaths
from lorasmith.training.reporting import Reporter, reporting, told_outside
from lorasmith.training.results import export, finish
from lorasmith.training.resuming import LATEST, find_checkpoint
from lorasmith.training.session import Session
from lorasmith.training.together import Together


def train_features(run: FeaturesRun, resume: str | None = None) -> list[Path]:
    """Train a LoRA for each feature of a run and return their files, in the order of the features.

    The same settings give the same weights on the same machine, whether in one go or resumed.

    Args:
        run: the settings.
        resume: go on with the run of this name from its ``latest`` checkpoint, or from
            ``step-120`` and no other; of staged runs, in the stage that is not finished.

    Raises:
        DataError: pictures that cannot be used, or captions that mix the features.
        LorasmithError: as from `lorasmith.training.loop.train`.
        KeyboardInterrupt: Ctrl-C, with what was saved and how to go on in its message.
    """
    paths = FeaturesPaths.of(run)
    if resume is None:
        paths.claim(run)
    else:
        paths.claim_again()
        _require_mode(run, paths)
    chosen = [choose_rows(one.data) for one in run.runs()]
    check_apart(run, chosen)
    if run.train.mode == "joint":
        _train_joint(run, paths, chosen, resume)
    else:
        _train_staged(run, paths, chosen, resume)
    return [feature.lora for feature in paths.features]


def _require_mode(run: FeaturesRun, paths: FeaturesPaths) -> None:
    """Refuse to go on with a run in another mode than it was started in.

    Raises:
        ConfigError: the mode differs, or the saved settings cannot be read.
    """
    before = load_settings(FeaturesRun, paths.own.settings).train.mode
    if before != run.train.mode:
        raise ConfigError(
            f"train.mode: this run was started with {before!r} and cannot go on with "
            f"{run.train.mode!r}; go on with {paths.own.how_to_resume}"
        )


def check_apart(run: FeaturesRun, chosen: Sequence[ChosenRows]) -> None:
    """Refuse or warn of what would mix the features.

    Raises:
        DataError: captions or tags of one call another.
    """
    featured = [
        Featured(feature.tag, feature.class_word, [*rows.tagged, *rows.held_out])
        for feature, rows in zip(run.feature, chosen, strict=True)
    ]
    tokenizer = load_tokenizer(resolve_model(run.model.path))
    found: list[Finding] = [
        *between_features(featured, run.train.mode == "joint"),
        *tag_findings(tokenizer, [feature.tag for feature in run.feature]),
        *dropout_findings(run.runs()),
    ]
    for finding in found:
        where = f" (first {finding.files[0]})" if finding.files else ""
        if finding.severity == "error":
            raise DataError(f"{finding.message}{where}")
        warnings.warn(f"{finding.message}{where}", LorasmithWarning, stacklevel=3)


# --- one after another ------------------------------------------------------------------------


def _train_staged(
    run: FeaturesRun, paths: FeaturesPaths, chosen: Sequence[ChosenRows], resume: str | None
) -> None:
    """Train the features that are not finished, each on top of those before it."""
    runs, earlier = run.runs(), list[Earlier]()
    first = 0 if resume is None else _first_unfinished(paths)
    for stage, (one, place) in enumerate(zip(runs, paths.features, strict=True)):
        if stage >= first:
            wanted = _wanted(place, resume if stage == first else None)
            plan = Plan(one, place, chosen[stage], claimed(place, wanted))
            with (
                prepared([plan], Machine.of(one.train), earlier, runs[stage + 1 :]) as sessions,
                naming_the_rest(place),
            ):
                _start(run, paths, sessions, resume is None and stage == 0)
                take_steps(sessions[0], f"training {one.data.tag}")
                _write_overview(run, paths, sessions[0])
        earlier.append(Earlier.read(place.lora, one.data, chosen[stage]))


def _first_unfinished(paths: FeaturesPaths) -> int:
    """Return the number of the stage to go on with; the last one where all are finished."""
    for stage, place in enumerate(paths.features):
        if not (place.lora.is_file() and place.summary.is_file()):
            return stage
    return len(paths.features) - 1


def _wanted(place: RunPaths, resume: str | None) -> str | None:
    """Return which checkpoint a stage goes on from; one that has none yet starts anew."""
    return None if resume == LATEST and not checkpoints(place.checkpoints) else resume


def _start(run: FeaturesRun, paths: FeaturesPaths, sessions: Sequence[Session], new: bool) -> None:
    """Put the whole run's settings in place, and one identity into all of its files."""
    if sessions[0].main:
        paths.begin(dump_toml(run), new)
    identity = sessions[0].progress.identity
    for place in paths.features:
        if run.train.mode == "staged" and place.lora.is_file():
            identity = gate_of_metadata(place.lora, load_metadata(place.lora)).run or identity
            break
    for session in sessions:
        session.progress.identity = identity


def _write_overview(run: FeaturesRun, paths: FeaturesPaths, session: Session) -> None:
    """The LoRA is there by now: a page that cannot be written is no reason to fail."""
    if not session.main:
        return
    try:
        write_overview(run, paths)
    except (OutputError, DataError) as error:
        warnings.warn(f"no overview: {error}", LorasmithWarning, stacklevel=2)


# --- all at once ------------------------------------------------------------------------------


class _Watched:
    """A feature in training, with its log and its looks."""

    def __init__(self, session: Session, report: Reporter, request: StopRequest) -> None:
        self.session = session
        self.report = report
        self.looks = Looks(session, report, lambda: not request.asked)

    @property
    def goes_on(self) -> bool:
        """Whether it has steps left."""
        left = self.session.progress.done < self.session.run.train.steps
        return left and not self.looks.no_better


def _train_joint(
    run: FeaturesRun, paths: FeaturesPaths, chosen: Sequence[ChosenRows], resume: str | None
) -> None:
    found = None
    if resume is not None and not (resume == LATEST and not checkpoints(paths.own.checkpoints)):
        found = find_checkpoint(paths.own.checkpoints, resume)
    plans = [
        Plan(one, place, rows, None if found is None else _own_part(found, place))
        for one, place, rows in zip(run.runs(), paths.features, chosen, strict=True)
    ]
    with prepared(plans, Machine.of(run.train)) as sessions, naming_the_rest(paths.own):
        _start(run, paths, sessions, found is None)
        with _watching(run, paths, sessions) as (watched, request):
            for one in watched:
                one.looks.first()
            _joint_steps(watched, paths, request)
        for one in watched:
            finish(one.session, why_ended(one.session, one.looks))
        _write_overview(run, paths, sessions[0])


@contextmanager
def _watching(
    run: FeaturesRun, paths: FeaturesPaths, sessions: Sequence[Session]
) -> Iterator[tuple[list[_Watched], StopRequest]]:
    """Open the features' logs; the first one's bar stands for all."""
    with ExitStack() as stack:
        request = stack.enter_context(stop_on_interrupt())
        board = stack.enter_context(_board(run, paths, sessions))
        watched = []
        for number, session in enumerate(sessions):
            title = None if number else f"training {len(run.feature)} features"
            shared = None if board is None else Corner(board, session.run.data.tag)
            opened = reporting(
                session.run, session.paths, session.progress.done, session.main, title, shared
            )
            watched.append(_Watched(session, stack.enter_context(opened), request))
        yield watched, request


@contextmanager
def _board(
    run: FeaturesRun, paths: FeaturesPaths, sessions: Sequence[Session]
) -> Iterator[Board | None]:
    """Open the one run at Weights & Biases that all features are shown in, where it is wanted."""
    if not (run.track.wandb and sessions[0].main):
        yield None
        return
    told = {session.run.data.tag: told_outside(session.run) for session in sessions}
    wanted = WandbRun(run.track.wandb_project, paths.own.name, told)
    with wandb_board(paths.own.folder, wanted) as board:
        yield board


def _joint_steps(watched: Sequence[_Watched], paths: FeaturesPaths, request: StopRequest) -> None:
    """Take the steps that are left, with what is due after each."""
    before: list[_Watched] = []
    while active := [one for one in watched if one.goes_on]:
        if active != before:  # some have no steps left
            before, steps = active, Together([one.session for one in active])
        with naming_memory(active[0].session):
            taken = steps.advance()
        for one, (figures, pictures) in zip(active, taken, strict=True):
            one.report.step(figures, pictures)
        session = active[0].session
        due = Due.after(session)
        stopping = asked(session, request, due)
        if not (due.anything or stopping):
            continue
        for one in active:
            look(one.session, one.report, one.looks, due)
        ended = not all(one.goes_on for one in active)
        if due.checkpoint or stopping or ended:
            _save_all(watched, paths)
        for one in active:
            if due.file and session.main:
                export(one.session, one.session.paths.at_step(session.progress.done))
        if stopping and any(one.goes_on for one in watched):
            raise Interrupted(stopped(session))


def _save_all(watched: Sequence[_Watched], paths: FeaturesPaths) -> None:
    """Save one checkpoint for all: none of them can then be ahead of the others."""
    first = watched[0].session
    if first.main:
        tensors: Tensors = {}
        states: dict[str, Any] = {}
        for one in watched:
            own, states[one.session.paths.name] = one.session.packed()
            tensors |= {f"{one.session.paths.name}/{key}": value for key, value in own.items()}
        step = max(one.session.progress.done for one in watched)
        keep = first.run.train.keep_checkpoints
        save_checkpoint(paths.own.checkpoints, step, tensors, {"features": states}, keep)
    first.accelerator.wait_for_everyone()


def _own_part(found: Checkpoint, place: RunPaths) -> Checkpoint:
    """Return one feature's part of a checkpoint.

    Raises:
        OutputError: it has none.
    """
    state = found.state.get("features", {}).get(place.name)
    if state is None:
        raise OutputError(
            f"{place.whole}: the run that is there has no feature {place.name}; start a new one"
        )
    tensors: dict[str, torch.Tensor] = under(f"{place.name}/", found.tensors)
    return Checkpoint(int(state["progress"]["done"]), tensors, state)
