"""Runs of several features, each with its own trigger word: staged, or jointly."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorasmith.adapters.gating.gate_metadata import parse_gate
from lorasmith.config.features import FeaturesConfig
from lorasmith.config.reading.load import dump_toml, load_saved_config
from lorasmith.core.errors import ConfigError, DataError, LorasmithWarning
from lorasmith.core.safetensors_io import load_metadata
from lorasmith.data.rules.facts import Finding
from lorasmith.data.rules.feature_overlap import FeatureCaptions, check_features_overlap
from lorasmith.evaluation.checks.features import check_caption_dropout, check_tags
from lorasmith.loops.checkpoint import list_checkpoints
from lorasmith.models.files.open import resolve_model_path
from lorasmith.models.load import load_tokenizer
from lorasmith.reports.pages.features import write_features_page_after_training
from lorasmith.runs.features_paths import FeaturesPaths
from lorasmith.runs.paths import RunPaths
from lorasmith.runs.run_lock import RunLock, has_lock_file, lock_runs
from lorasmith.training.builtin_callbacks import LoopOptions
from lorasmith.training.callbacks import Callback
from lorasmith.training.data.split import DatasetSplit, split_dataset
from lorasmith.training.interruption import Interrupted, explain_interruption
from lorasmith.training.losses import LossFn, diffusion_loss
from lorasmith.training.resume import LATEST, find_joint_checkpoint, select_state
from lorasmith.training.setup.frozen_feature import FrozenFeature
from lorasmith.training.setup.run_plan import DeviceContext, RunPlan, reserve_output
from lorasmith.training.setup.setup import setup_trainers
from lorasmith.training.state import TrainerState
from lorasmith.training.trainer import run_training


def train_features(
    config: FeaturesConfig,
    resume: str | None = None,
    callbacks: Sequence[Callback] = (),
    loss_fn: LossFn = diffusion_loss,
    break_lock: bool = False,
) -> list[Path]:
    """Train a LoRA for each feature of a run and return their files, in the order of the features.

    The same settings give the same weights on the same machine, in one go or resumed.

    Args:
        config: the settings.
        resume: continue the run of this name from its ``latest`` checkpoint, or from ``step-120``
            and no other; of staged runs, in the stage that is not finished.
        callbacks: called during the training of each feature.
        loss_fn: what is minimised.
        break_lock: as in `lorasmith.training.trainer.train`.

    Raises:
        DataError: images that cannot be used, or captions that mix the features.
        LorasmithError: as from `lorasmith.training.trainer.train`.
        KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP; the message says what is saved and how to
            resume.
    """
    paths = FeaturesPaths.from_config(config)
    accelerator = DeviceContext.from_settings(config.train).accelerator
    is_new = resume is None
    if is_new:
        paths.check_outside_datasets(run.data for run in config.train_configs())
        if not has_lock_file(paths.main):
            paths.check_can_create()
    else:
        paths.check_can_resume()
    with lock_runs(paths.all_runs, accelerator, is_new, break_lock) as lock:
        if is_new:
            paths.check_can_create()
        else:
            _require_same_mode(config.train.mode, paths)
        splits = [split_dataset(run.data) for run in config.train_configs()]
        check_feature_separation(config, splits)
        run = _FeaturesRun(config, paths, lock, splits, callbacks, loss_fn)
        if config.train.mode == "joint":
            run.train_joint(resume)
        else:
            run.train_staged(resume)
    return [lora.lora for lora in paths.loras]


def _require_same_mode(mode: str, paths: FeaturesPaths) -> None:
    """Refuse to resume a run in another mode.

    Raises:
        ConfigError: the mode differs, or the saved settings cannot be read.
    """
    before = load_saved_config(FeaturesConfig, paths.main.settings).train.mode
    if before != mode:
        raise ConfigError(
            f"train.mode: this run was started with {before!r} and cannot go on with "
            f"{mode!r}; go on with {paths.main.resume_command}"
        )


def check_feature_separation(config: FeaturesConfig, splits: Sequence[DatasetSplit]) -> None:
    """Refuse or warn of what would mix the features.

    Raises:
        DataError: captions or trigger words of one contain another's.
    """
    captions = [
        FeatureCaptions(
            feature.tag, feature.class_word, [*split.train_rows, *split.validation_rows]
        )
        for feature, split in zip(config.feature, splits, strict=True)
    ]
    tokenizer = load_tokenizer(resolve_model_path(config.model.path))
    findings: list[Finding] = [
        *check_features_overlap(captions, config.train.mode == "joint"),
        *check_tags(tokenizer, [feature.tag for feature in config.feature]),
        *check_caption_dropout(config.train_configs()),
    ]
    for finding in findings:
        where = f" (first {finding.files[0]})" if finding.files else ""
        if finding.severity == "error":
            raise DataError(f"{finding.message}{where}")
        warnings.warn(f"{finding.message}{where}", LorasmithWarning, stacklevel=3)


@dataclass(frozen=True)
class _FeaturesRun:
    config: FeaturesConfig
    paths: FeaturesPaths
    lock: RunLock
    splits: Sequence[DatasetSplit]
    callbacks: Sequence[Callback]
    loss_fn: LossFn

    # --- one after another --------------------------------------------------------------------

    def train_staged(self, resume: str | None) -> None:
        """Train the features that are not finished, each on top of those before it."""
        configs, frozen = self.config.train_configs(), list[FrozenFeature]()
        first = 0 if resume is None else self._first_unfinished_stage()
        for stage, (config, paths) in enumerate(zip(configs, self.paths.loras, strict=True)):
            if stage >= first:
                is_new = resume is None and stage == 0
                self._train_stage(stage, frozen, resume if stage == first else None, is_new)
            frozen.append(FrozenFeature.load(paths.lora, config.data, self.splits[stage]))

    def _train_stage(
        self, stage: int, frozen: Sequence[FrozenFeature], resume: str | None, is_new: bool
    ) -> None:
        configs, paths = self.config.train_configs(), self.paths.loras[stage]
        config, later = configs[stage], configs[stage + 1 :]
        checkpoint = reserve_output(paths, _stage_resume(paths, resume))
        plan = RunPlan(config, paths, self.lock, self.splits[stage], checkpoint, self.loss_fn)
        context = DeviceContext.from_settings(config.train)
        with (
            setup_trainers([plan], context, frozen, later) as states,
            explain_interruption(paths),
        ):
            self._start(states, is_new)
            options = LoopOptions(paths, f"training {config.data.tag}")
            stop_signal = run_training(states, options, self.callbacks)
            if states[0].is_main:
                write_features_page_after_training(self.config, self.paths)
            if stop_signal and later:
                raise Interrupted(
                    f"stopped after feature {config.data.tag!r}, {stage + 1} of {len(configs)}, "
                    f"all saved; go on with: {self.paths.main.resume_command}",
                    stop_signal,
                )

    def _first_unfinished_stage(self) -> int:
        """Return the stage to resume (from 0); the last one if all are finished."""
        for stage, paths in enumerate(self.paths.loras):
            if not (paths.lora.is_file() and paths.summary.is_file()):
                return stage
        return len(self.paths.loras) - 1

    # --- jointly ------------------------------------------------------------------------------

    def train_joint(self, resume: str | None) -> None:
        """Train all features at once."""
        checkpoint = find_joint_checkpoint(self.paths.main, resume)
        plans = [
            RunPlan(config, paths, self.lock, split, select_state(checkpoint, paths), self.loss_fn)
            for config, paths, split in zip(
                self.config.train_configs(), self.paths.loras, self.splits, strict=True
            )
        ]
        tags = tuple(feature.tag for feature in self.config.feature)
        options = LoopOptions(
            self.paths.main, f"training {len(tags)} features", is_joint=True, labels=tags
        )
        context = DeviceContext.from_settings(self.config.train)
        with (
            setup_trainers(plans, context) as states,
            explain_interruption(self.paths.main),
        ):
            self._start(states, checkpoint is None)
            run_training(states, options, self.callbacks)
            if states[0].is_main:
                write_features_page_after_training(self.config, self.paths)

    # --- files --------------------------------------------------------------------------------

    def _start(self, states: Sequence[TrainerState], is_new: bool) -> None:
        """Write the settings of the whole run, and give all LoRAs the same run identity."""
        if states[0].is_main:
            self.paths.prepare_folder(dump_toml(self.config), is_new)
        run_id = states[0].progress.run_id
        for paths in self.paths.loras:
            if self.config.train.mode == "staged" and paths.lora.is_file():
                run_id = parse_gate(paths.lora, load_metadata(paths.lora)).run_id or run_id
                break
        for state in states:
            state.progress.run_id = run_id


def _stage_resume(paths: RunPaths, resume: str | None) -> str | None:
    """Return which checkpoint a stage continues from; one that has none yet starts anew."""
    return None if resume == LATEST and not list_checkpoints(paths.checkpoints) else resume
