"""Sweeps: LoRAs of the same pictures that differ in settings, trained at the same time."""

from collections.abc import Sequence

from lorasmith.config.load import dump_toml, load_saved_config, read_toml
from lorasmith.config.sweep import SweepConfig, Variant
from lorasmith.config.train_config import TrainConfig
from lorasmith.core.errors import ConfigError, OutputError
from lorasmith.reports.sweep_page import write_sweep_page_after_training
from lorasmith.reports.sweep_results import SweepResult, read_sweep_results
from lorasmith.runs.paths import RunPaths
from lorasmith.runs.summary import RunSummary
from lorasmith.runs.sweep_paths import SweepPaths
from lorasmith.training.data.split import DatasetSplit, split_dataset
from lorasmith.training.joint_trainer import (
    JointRunConfig,
    find_joint_checkpoint,
    select_state,
    train_jointly,
)
from lorasmith.training.setup import DeviceContext, RunPlan, setup_trainers
from lorasmith.training.trainer import explain_interruption


def train_sweep(run: SweepConfig, resume: str | None = None) -> list[SweepResult]:
    """Train a LoRA for each combination of the varied settings; return what came of them.

    Each becomes, to rounding, what a run of its own would make of it; with dropout in the adapters,
    whose random numbers are drawn for all together, something equally good.

    Args:
        run: the settings.
        resume: go on with the sweep of this name from its ``latest`` checkpoint, or from
            ``step-120`` and no other, in the group that is not finished.

    Returns:
        the results, the best first where held-out pictures tell which that is.

    Raises:
        LorasmithError: as from `lorasmith.training.trainer.train`.
        KeyboardInterrupt: Ctrl-C, with what was saved and how to go on in its message.
    """
    paths = SweepPaths.from_config(run)
    if resume is None:
        paths.check_can_create([run.data])
    else:
        paths.check_can_resume()
        _require_same(run, paths)
    chosen = split_dataset(run.data)
    first = 0 if resume is None else _first_unfinished(run, paths)
    for number in range(first, len(run.groups())):
        _train_group(run, paths, chosen, number, resume if number == first else None)
    return read_sweep_results(run, paths)


def _require_same(run: SweepConfig, paths: SweepPaths) -> None:
    """Refuse to go on with a sweep of other LoRAs, or in other groups.

    Raises:
        OutputError: what is there is no sweep.
        ConfigError: it is another one, or its settings cannot be read.
    """
    if "vary" not in read_toml(paths.main.settings):
        raise OutputError(f"{paths.main.folder} holds no sweep to go on with; choose another --out")
    before = load_saved_config(SweepConfig, paths.main.settings)
    if [_told(group) for group in before.groups()] != [_told(group) for group in run.groups()]:
        raise ConfigError(
            f"vary: the sweep was started with other values, or with another --max-parallel; go on with {paths.main.resume_command}"
        )


def _told(group: Sequence[Variant]) -> list[dict[str, object]]:
    return [dict(variant.settings) for variant in group]


def _first_unfinished(run: SweepConfig, paths: SweepPaths) -> int:
    """Return the number of the group to go on with; how many there are where all are finished."""
    groups = len(paths.groups)
    for number in range(groups):
        if not all(
            _finished(place, run.train.steps) for place in paths.loras_of_group(run, number)
        ):
            return number
    return groups


def _finished(place: RunPaths, steps: int) -> bool:
    if place.failure.is_file():
        return True
    there = place.lora.is_file() and place.summary.is_file()
    return there and RunSummary.read(place.summary).steps >= steps


def _train_group(
    run: SweepConfig, paths: SweepPaths, chosen: DatasetSplit, number: int, resume: str | None
) -> None:
    """Train the LoRAs of a group (from 0), and write how the sweep stands."""
    groups, place = run.groups(), paths.groups[number]
    found = find_joint_checkpoint(place, resume)
    plans = [
        RunPlan(variant.config, own, chosen, select_state(found, own))
        for variant, own in zip(groups[number], paths.loras_of_group(run, number), strict=True)
    ]
    later = [variant.config for group in groups[number + 1 :] for variant in group]
    with (
        setup_trainers(
            plans, DeviceContext.from_settings(run.train), later=later, called=_called
        ) as sessions,
        explain_interruption(place),
    ):
        if sessions[0].is_main:
            paths.prepare_folder(dump_toml(run), found is None and number == 0)
        train_jointly(sessions, _whole(groups, place, number))
        if sessions[0].is_main:
            write_sweep_page_after_training(run, paths)


def _called(run: TrainConfig) -> str:
    return f"variant {RunPaths.from_name(run.output.name).name}"


def _whole(groups: Sequence[Sequence[Variant]], place: RunPaths, number: int) -> JointRunConfig:
    names = tuple(variant.name for variant in groups[number])
    title = f"training {len(names)} LoRAs"
    if len(groups) > 1:
        title += f", group {number + 1} of {len(groups)}"
    relief = f"Train fewer at the same time (--max-parallel, now {len(names)}). "
    return JointRunConfig(place, title, names, relief, lenient=True, same_base=True)
