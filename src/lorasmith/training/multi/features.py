"""Runs of several features: one after another, or all at once."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from lorasmith.adapters.gating.gate_metadata import parse_gate
from lorasmith.config.features import FeaturesConfig
from lorasmith.config.load import dump_toml, load_saved_config
from lorasmith.core.errors import ConfigError, DataError, LorasmithWarning
from lorasmith.core.safetensors_io import load_metadata
from lorasmith.data.rules.facts import Finding
from lorasmith.data.rules.feature_overlap import FeatureCaptions, check_features_overlap
from lorasmith.evaluation.features_check import check_caption_dropout, check_tags
from lorasmith.loops.checkpoint import list_checkpoints
from lorasmith.models.load import load_tokenizer, resolve_model_path
from lorasmith.reports.features_page import write_features_page_after_training
from lorasmith.runs.features_paths import FeaturesPaths
from lorasmith.runs.paths import RunPaths
from lorasmith.training.data.split import DatasetSplit, split_dataset
from lorasmith.training.joint_trainer import (
    JointRunConfig,
    find_joint_checkpoint,
    select_state,
    train_jointly,
)
from lorasmith.training.multi.frozen import FrozenFeature
from lorasmith.training.resume import LATEST
from lorasmith.training.setup import DeviceContext, RunPlan, reserve_output, setup_trainers
from lorasmith.training.state import TrainerState
from lorasmith.training.trainer import explain_interruption, take_steps


def train_features(run: FeaturesConfig, resume: str | None = None) -> list[Path]:
    """Train a LoRA for each feature of a run and return their files, in the order of the features.

    The same settings give the same weights on the same machine, whether in one go or resumed.

    Args:
        run: the settings.
        resume: go on with the run of this name from its ``latest`` checkpoint, or from
            ``step-120`` and no other; of staged runs, in the stage that is not finished.

    Raises:
        DataError: pictures that cannot be used, or captions that mix the features.
        LorasmithError: as from `lorasmith.training.trainer.train`.
        KeyboardInterrupt: Ctrl-C, with what was saved and how to go on in its message.
    """
    paths = FeaturesPaths.from_config(run)
    if resume is None:
        paths.check_can_create(one.data for one in run.train_configs())
    else:
        paths.check_can_resume()
        _require_mode(run, paths)
    chosen = [split_dataset(one.data) for one in run.train_configs()]
    check_apart(run, chosen)
    if run.train.mode == "joint":
        _train_joint(run, paths, chosen, resume)
    else:
        _train_staged(run, paths, chosen, resume)
    return [feature.lora for feature in paths.loras]


def _require_mode(run: FeaturesConfig, paths: FeaturesPaths) -> None:
    """Refuse to go on with a run in another mode than it was started in.

    Raises:
        ConfigError: the mode differs, or the saved settings cannot be read.
    """
    before = load_saved_config(FeaturesConfig, paths.main.settings).train.mode
    if before != run.train.mode:
        raise ConfigError(
            f"train.mode: this run was started with {before!r} and cannot go on with {run.train.mode!r}; go on with {paths.main.resume_command}"
        )


def check_apart(run: FeaturesConfig, chosen: Sequence[DatasetSplit]) -> None:
    """Refuse or warn of what would mix the features.

    Raises:
        DataError: captions or tags of one call another.
    """
    featured = [
        FeatureCaptions(feature.tag, feature.class_word, [*rows.train_rows, *rows.validation_rows])
        for feature, rows in zip(run.feature, chosen, strict=True)
    ]
    tokenizer = load_tokenizer(resolve_model_path(run.model.path))
    found: list[Finding] = [
        *check_features_overlap(featured, run.train.mode == "joint"),
        *check_tags(tokenizer, [feature.tag for feature in run.feature]),
        *check_caption_dropout(run.train_configs()),
    ]
    for finding in found:
        where = f" (first {finding.files[0]})" if finding.files else ""
        if finding.severity == "error":
            raise DataError(f"{finding.message}{where}")
        warnings.warn(f"{finding.message}{where}", LorasmithWarning, stacklevel=3)


# --- one after another ------------------------------------------------------------------------


def _train_staged(
    run: FeaturesConfig, paths: FeaturesPaths, chosen: Sequence[DatasetSplit], resume: str | None
) -> None:
    """Train the features that are not finished, each on top of those before it."""
    runs, earlier = run.train_configs(), list[FrozenFeature]()
    first = 0 if resume is None else _first_unfinished(paths)
    for stage, (one, place) in enumerate(zip(runs, paths.loras, strict=True)):
        if stage >= first:
            wanted = _wanted(place, resume if stage == first else None)
            plan = RunPlan(one, place, chosen[stage], reserve_output(place, wanted))
            with (
                setup_trainers(
                    [plan], DeviceContext.from_settings(one.train), earlier, runs[stage + 1 :]
                ) as sessions,
                explain_interruption(place),
            ):
                _start(run, paths, sessions, resume is None and stage == 0)
                take_steps(sessions[0], f"training {one.data.tag}")
                if sessions[0].is_main:
                    write_features_page_after_training(run, paths)
        earlier.append(FrozenFeature.load(place.lora, one.data, chosen[stage]))


def _first_unfinished(paths: FeaturesPaths) -> int:
    """Return the number of the stage to go on with; the last one where all are finished."""
    for stage, place in enumerate(paths.loras):
        if not (place.lora.is_file() and place.summary.is_file()):
            return stage
    return len(paths.loras) - 1


def _wanted(place: RunPaths, resume: str | None) -> str | None:
    """Return which checkpoint a stage goes on from; one that has none yet starts anew."""
    return None if resume == LATEST and not list_checkpoints(place.checkpoints) else resume


def _start(
    run: FeaturesConfig, paths: FeaturesPaths, sessions: Sequence[TrainerState], new: bool
) -> None:
    """Put the whole run's settings in place, and one identity into all of its files."""
    if sessions[0].is_main:
        paths.prepare_folder(dump_toml(run), new)
    identity = sessions[0].progress.identity
    for place in paths.loras:
        if run.train.mode == "staged" and place.lora.is_file():
            identity = parse_gate(place.lora, load_metadata(place.lora)).run_id or identity
            break
    for session in sessions:
        session.progress.identity = identity


# --- all at once ------------------------------------------------------------------------------


def _train_joint(
    run: FeaturesConfig, paths: FeaturesPaths, chosen: Sequence[DatasetSplit], resume: str | None
) -> None:
    found = find_joint_checkpoint(paths.main, resume)
    plans = [
        RunPlan(one, place, rows, select_state(found, place))
        for one, place, rows in zip(run.train_configs(), paths.loras, chosen, strict=True)
    ]
    tags = tuple(feature.tag for feature in run.feature)
    whole = JointRunConfig(paths.main, f"training {len(tags)} features", tags)
    with (
        setup_trainers(plans, DeviceContext.from_settings(run.train)) as sessions,
        explain_interruption(paths.main),
    ):
        _start(run, paths, sessions, found is None)
        train_jointly(sessions, whole)
        if sessions[0].is_main:
            write_features_page_after_training(run, paths)
