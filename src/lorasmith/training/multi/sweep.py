"""Sweeps: LoRAs of the same images that differ in settings, trained jointly."""

from collections.abc import Sequence
from dataclasses import dataclass

from lorasmith.config.reading.load import dump_toml, load_saved_config
from lorasmith.config.reading.read_toml import read_toml
from lorasmith.config.sweep import SweepConfig, Variant
from lorasmith.config.train_config import TrainConfig
from lorasmith.core.errors import ConfigError, DataError, OutputError
from lorasmith.reports.pages.sweep import write_sweep_page_after_training
from lorasmith.reports.sweep_results import SweepResult, read_sweep_results
from lorasmith.runs.paths import RunPaths
from lorasmith.runs.run_lock import RunLock, has_lock_file, lock_runs
from lorasmith.runs.summary import RunSummary
from lorasmith.runs.sweep_paths import SweepPaths
from lorasmith.training.builtin_callbacks import LoopOptions
from lorasmith.training.callbacks import Callback
from lorasmith.training.data.split import DatasetSplit, split_dataset
from lorasmith.training.interruption import Interrupted, explain_interruption
from lorasmith.training.losses import LossFn, diffusion_loss
from lorasmith.training.resume import find_joint_checkpoint, select_state
from lorasmith.training.setup.run_plan import DeviceContext, RunPlan
from lorasmith.training.setup.setup import setup_trainers
from lorasmith.training.trainer import run_training


def train_sweep(
    config: SweepConfig,
    resume: str | None = None,
    callbacks: Sequence[Callback] = (),
    loss_fn: LossFn = diffusion_loss,
    break_lock: bool = False,
) -> list[SweepResult]:
    """Train a LoRA for each combination of the varied settings; return the results.

    Each LoRA is, to rounding, what a single run would give; with adapter dropout, whose random
    numbers are drawn for all together, it is equally good but not the same.

    Args:
        config: the settings.
        resume: continue the sweep of this name from its ``latest`` checkpoint, or from
            ``step-120`` and no other, in the group that is not finished.
        callbacks: called during the training of each LoRA.
        loss_fn: what is minimised.
        break_lock: as in `lorasmith.training.trainer.train`.

    Returns:
        the results, the best first where validation images tell which that is.

    Raises:
        LorasmithError: as from `lorasmith.training.trainer.train`.
        KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP; the message says what is saved and how to
            resume.
    """
    paths = SweepPaths.from_config(config)
    accelerator = DeviceContext.from_settings(config.train).accelerator
    is_new = resume is None
    if is_new:
        paths.check_outside_datasets([config.data])
        if not has_lock_file(paths.main):
            paths.check_can_create()
    else:
        paths.check_can_resume()
    with lock_runs(paths.all_runs, accelerator, is_new, break_lock) as lock:
        if is_new:
            paths.check_can_create()
        else:
            _require_same_variants(config, paths)
        split = split_dataset(config.data)
        sweep = _SweepRun(config, paths, lock, split, callbacks, loss_fn)
        first = 0 if is_new else _first_unfinished_group(config, paths)
        for index in range(first, len(config.groups())):
            sweep.train_group(index, resume if index == first else None)
    return read_sweep_results(config, paths)


def _require_same_variants(config: SweepConfig, paths: SweepPaths) -> None:
    """Refuse to resume a sweep of other LoRAs, or in other groups.

    Raises:
        OutputError: what is there is no sweep.
        ConfigError: it is another one, or its settings cannot be read.
    """
    if "vary" not in read_toml(paths.main.settings):
        raise OutputError(f"{paths.main.folder} holds no sweep to go on with; choose another --out")
    before = load_saved_config(SweepConfig, paths.main.settings)
    if _varied_settings(before) != _varied_settings(config):
        raise ConfigError(
            "vary: the sweep was started with other values, or with another --max-parallel; go on "
            f"with {paths.main.resume_command}"
        )


def _varied_settings(config: SweepConfig) -> list[list[dict[str, object]]]:
    return [[dict(variant.settings) for variant in group] for group in config.groups()]


def _first_unfinished_group(config: SweepConfig, paths: SweepPaths) -> int:
    """Return the group to resume (from 0); the number of groups if all are finished."""
    for index in range(len(paths.groups)):
        loras = paths.loras_of_group(config, index)
        if not all(_is_finished(lora, config.train.steps) for lora in loras):
            return index
    return len(paths.groups)


def _is_finished(paths: RunPaths, steps: int) -> bool:
    if paths.failure.is_file():
        return True
    if not (paths.lora.is_file() and paths.summary.is_file()):
        return False
    try:
        return RunSummary.read(paths.summary).steps >= steps
    except DataError:  # written again when its last steps are
        return False


@dataclass(frozen=True)
class _SweepRun:
    config: SweepConfig
    paths: SweepPaths
    lock: RunLock
    split: DatasetSplit
    callbacks: Sequence[Callback]
    loss_fn: LossFn

    def train_group(self, index: int, resume: str | None) -> None:
        """Train the LoRAs of a group (from 0), and write the results so far."""
        groups, paths = self.config.groups(), self.paths.groups[index]
        checkpoint = find_joint_checkpoint(paths, resume)
        plans = [
            RunPlan(
                variant.config,
                lora,
                self.lock,
                self.split,
                select_state(checkpoint, lora),
                self.loss_fn,
            )
            for variant, lora in zip(
                groups[index], self.paths.loras_of_group(self.config, index), strict=True
            )
        ]
        later = [variant.config for group in groups[index + 1 :] for variant in group]
        context = DeviceContext.from_settings(self.config.train)
        with (
            setup_trainers(plans, context, later=later, describe=_describe_variant) as states,
            explain_interruption(paths),
        ):
            is_main = states[0].is_main
            if is_main:
                is_new = checkpoint is None and index == 0
                self.paths.prepare_folder(dump_toml(self.config), is_new)
            options = _loop_options(groups, paths, index)
            stop_signal = run_training(states, options, self.callbacks)
            if is_main:
                write_sweep_page_after_training(self.config, self.paths)
            if stop_signal and later:
                raise Interrupted(
                    f"stopped after group {index + 1} of {len(groups)}, all saved; go on with: "
                    f"{self.paths.main.resume_command}",
                    stop_signal,
                )


def _describe_variant(config: TrainConfig) -> str:
    return f"variant {RunPaths.from_name(config.output.name).name}"


def _loop_options(groups: Sequence[Sequence[Variant]], paths: RunPaths, index: int) -> LoopOptions:
    names = tuple(variant.name for variant in groups[index])
    title = f"training {len(names)} LoRAs"
    if len(groups) > 1:
        title += f", group {index + 1} of {len(groups)}"
    return LoopOptions(
        paths,
        title,
        is_joint=True,
        labels=names,
        oom_hint=f"Train fewer at the same time (--max-parallel, now {len(names)}). ",
        continues_on_failure=True,
        shares_base_previews=True,
    )
