"""Preparing a run: from settings to a session that can take steps."""

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from lorasmith.adapters.gating.gate_metadata import GateMetadata
from lorasmith.adapters.gating.token_mask import selects_tokens
from lorasmith.adapters.injection.inject import AttachedLora, attach_lora
from lorasmith.adapters.injection.trainable import TrainableLora, inject_trainable
from lorasmith.adapters.naming.layer_names import UNET
from lorasmith.adapters.targeting.targets import LayerTarget, resolve_targets
from lorasmith.config.load import dump_toml
from lorasmith.config.train_config import TrainConfig, TrainerConfig
from lorasmith.core.device import compute_dtype, pick_device
from lorasmith.core.errors import ConfigError
from lorasmith.loops.checkpoint import Checkpoint
from lorasmith.loops.distributed import all_reduce_sum, create_accelerator
from lorasmith.loops.ema import Ema
from lorasmith.loops.memory import limit_gpu_memory, require_disk_space
from lorasmith.loops.optimized_module import OptimizedModule
from lorasmith.loops.optimizers import ParamGroup, create_optimizer
from lorasmith.loops.progress import tell
from lorasmith.loops.tracking import check_wandb
from lorasmith.models.family import detect_family
from lorasmith.models.load import Model, load_model, suppress_logs
from lorasmith.runs.paths import RunPaths, check_outside_dataset
from lorasmith.training.data.dataset import TrainDataset
from lorasmith.training.data.dataset_builder import build_dataset, offload_unused_encoders
from lorasmith.training.data.resolution import buckets_for_model
from lorasmith.training.data.shared_datasets import build_shared_datasets
from lorasmith.training.data.split import DatasetSplit, split_dataset
from lorasmith.training.gating import GateRouting, caption_gating
from lorasmith.training.losses import build_noise_process
from lorasmith.training.lr_defaults import fill_learning_rates
from lorasmith.training.multi.frozen import FrozenFeature
from lorasmith.training.outputs.disk_usage import bytes_needed
from lorasmith.training.resume import check_settings, find_checkpoint
from lorasmith.training.state import TrainerState
from lorasmith.training.train_step import Denoiser, DiffusionLoss, TrainStep
from lorasmith.training.validation.previews import check_preview_loras, check_previews

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class RunPlan:
    """A feature that shall be trained."""

    run: TrainConfig
    """Its settings."""
    paths: RunPaths
    """Where it writes."""
    split: DatasetSplit
    """Its pictures."""
    checkpoint: Checkpoint | None
    """What it goes on from; None for a new one."""


@dataclass(frozen=True)
class DeviceContext:
    """What a run computes on."""

    device: torch.device
    accelerator: "Accelerator"

    @classmethod
    def from_settings(cls, train: TrainerConfig) -> "DeviceContext":
        """Find it.

        Raises:
            ConfigError: there is no such device, or it cannot do what the settings ask for.
        """
        device = pick_device(train.device)
        accelerator = create_accelerator(train.mixed_precision, device.type, "train")
        if accelerator.num_processes > 1:
            device = torch.device(accelerator.device)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # where kernels are launched and steps are recorded
        return cls(device, accelerator)


@contextmanager
def open_trainer(run: TrainConfig, resume: str | None) -> Iterator[TrainerState]:
    """Prepare a run, and take the adapters out of the model at its end.

    What can be refused is refused before anything is written.

    Args:
        run: the settings.
        resume: None for a new run, else which checkpoint it goes on from: ``latest``, ``step-120``.
    """
    paths = RunPaths.from_name(run.output.name)
    if resume is None:
        check_outside_dataset(paths.folder, run.data, "output.name (--out)")
    machine = DeviceContext.from_settings(run.train)
    chosen = split_dataset(run.data)
    found = reserve_output(paths, resume)
    with setup_trainers([RunPlan(run, paths, chosen, found)], machine) as sessions:
        yield sessions[0]


@contextmanager
def setup_trainers(
    plans: Sequence[RunPlan],
    machine: DeviceContext,
    earlier: Sequence[FrozenFeature] = (),
    later: Sequence[TrainConfig] = (),
    called: Callable[[TrainConfig], str] | None = lambda run: f"feature {run.data.tag!r}",
) -> Iterator[list[TrainerState]]:
    """Prepare features that are trained at the same time, on one model.

    Args:
        plans: the features; what is common to all is as in the first.
        machine: what they are trained on.
        earlier: features that are in the model already, and stay as they are.
        later: features that come afterwards: what is wrong with them is told now.
        called: what errors call one of several.
    """
    first, device, accelerator = plans[0].run, machine.device, machine.accelerator
    if first.track.wandb:
        check_wandb()
    model = load_model(first.model.path).to(torch.device("cpu"), torch.float32)
    plans = [replace(plan, run=_completed(plan.run, model, plan.checkpoint)) for plan in plans]
    check_previews(first.validation, model)
    check_preview_loras(first.validation, model)
    if len(plans) + len(earlier) + len(later) == 1:
        called = None
    targets = [_targets(plan.run, model, called) for plan in plans]
    for run in later:
        _targets(_completed(run, model, None), model, called)
    needed = sum(
        bytes_needed(plan.run, own, model.default_size, new=plan.checkpoint is None)
        for plan, own in zip(plans, targets, strict=True)
    )
    require_disk_space(plans[0].paths.folder, needed, "checkpoints and LoRA files")
    words_live = _reads_live(targets, earlier)
    with accelerator.main_process_first():
        sets = build_shared_datasets(
            [plan.run for plan in plans],
            lambda number: _dataset(plans[number], model, machine, words_live, earlier),
            depends_on_seed=model.is_inpainting,
        )
        kept = _kept_sets(plans[0], model, machine, words_live, earlier)
        offload_unused_encoders(model, [*sets, *kept], words_live)
    _place(model, first.train, device, words_live)
    with _injected(model, plans, targets, earlier) as (trainables, lanes):
        sessions = [
            _session(plan, machine, model, data, trainable, lane, kept, earlier)
            for plan, data, trainable, lane in zip(plans, sets, trainables, lanes, strict=True)
        ]
        _begin(plans, sessions)
        if accelerator.is_main_process:
            tell(first.train.describe_batch(accelerator.num_processes))
        accelerator.wait_for_everyone()
        yield sessions


def _begin(plans: Sequence[RunPlan], sessions: Sequence[TrainerState]) -> None:
    """Restore what is gone on with, and put settings and records in place."""
    for plan, session in zip(plans, sessions, strict=True):
        if plan.checkpoint is not None:
            session.restore(plan.checkpoint)
        if session.is_main:
            record = json.dumps(session.dataset.describe_images(), indent=1, ensure_ascii=False)
            session.paths.prepare_folder(
                dump_toml(plan.run), plan.checkpoint is None, f"{record}\n"
            )


def _reads_live(targets: Sequence[Sequence[LayerTarget]], earlier: Sequence[FrozenFeature]) -> bool:
    """Tell whether text encoders run in the step: adapters in them are trained, or have a gate."""
    trained = any(target.ref.part != UNET for own in targets for target in own)
    return trained or any(one.has_text_layers for one in earlier)


def _targets(
    run: TrainConfig, model: Model, called: Callable[[TrainConfig], str] | None
) -> list[LayerTarget]:
    """Return a feature's layers; of several features, an error says whose they are."""
    try:
        buckets_for_model(model, run.data)
        return resolve_targets(model, run.lora, run.train)
    except ConfigError as error:
        if called is None:
            raise
        raise ConfigError(f"{called(run)}: {error}") from error


def _facts(run: TrainConfig) -> GateMetadata:
    return GateMetadata(run.lora.gate, run.data.tag, run.data.class_word)


def _dataset(
    plan: RunPlan,
    model: Model,
    machine: DeviceContext,
    words_live: bool,
    earlier: Sequence[FrozenFeature],
) -> TrainDataset:
    run = plan.run
    plain = run.preserve.strength > 0
    gating = caption_gating(model, _facts(run), [one.facts for one in earlier], plain)
    return build_dataset(
        model,
        run.data,
        run.train,
        machine.device,
        plan.split,
        words_live,
        gating,
        machine.accelerator.num_processes,
    )


def _kept_sets(
    plan: RunPlan,
    model: Model,
    machine: DeviceContext,
    words_live: bool,
    earlier: Sequence[FrozenFeature],
) -> tuple[TrainDataset, ...]:
    """Return the pictures of earlier features, where their prediction is to be kept."""
    if not plan.run.preserve.earlier_features_strength:
        return ()
    return tuple(
        build_dataset(
            model, one.data, plan.run.train, machine.device, one.split, words_live,
            caption_gating(model, one.facts, ()), machine.accelerator.num_processes,
        )
        for one in earlier
    )  # fmt: skip


@contextmanager
def _injected(
    model: Model,
    plans: Sequence[RunPlan],
    targets: Sequence[Sequence[LayerTarget]],
    earlier: Sequence[FrozenFeature],
) -> Iterator[tuple[list[TrainableLora], list[GateRouting]]]:
    """Put adapters into the model while the block runs, those of earlier features first."""
    frozen: list[AttachedLora] = []
    trainables: list[TrainableLora] = []
    try:
        for one in earlier:
            frozen.append(attach_lora(model, one.file))  # noqa: PERF401 (detach what got in)
        for plan, own in zip(plans, targets, strict=True):
            run = plan.run
            trainables.append(inject_trainable(own, run.lora, run.train.seed, _facts(run)))
        before = [(one.gate, selects_tokens(one.gate_metadata)) for one in frozen]
        gates = [one.attached.gate for one in trainables]
        lanes = [
            GateRouting(
                own,
                selects_tokens(_facts(plan.run)),
                before,
                [one for one in gates if one is not own],
            )
            for own, plan in zip(gates, plans, strict=True)
        ]
        yield trainables, lanes
    finally:
        if plans[0].run.train.vram_limit:
            limit_gpu_memory(model.unet.device, None)
        for trainable in trainables:
            trainable.detach()
        for attached in frozen:
            attached.detach()


def reserve_output(paths: RunPaths, resume: str | None) -> Checkpoint | None:
    """Make sure of the run's place; return what it goes on from."""
    if resume is None:
        paths.check_can_create()
        return None
    paths.check_can_resume()
    return find_checkpoint(paths.checkpoints, resume)


def _completed(run: TrainConfig, model: Model, found: Checkpoint | None) -> TrainConfig:
    """Fill in what depends on the model, and compare with the run that is gone on with."""
    size = sum(parameter.numel() for parameter in model.unet.parameters())
    run = run.model_copy(update={"train": fill_learning_rates(run.train, size)})
    if found is not None:
        check_settings(found.state["settings"], run)
    return run


def _place(model: Model, train: TrainerConfig, device: torch.device, text_trained: bool) -> None:
    """Bring what the steps use to the device, in the number format of the run."""
    used: list[nn.Module] = [model.unet, *(model.text_encoders if text_trained else ())]
    with suppress_logs():
        for network in used:
            network.to(device=device, dtype=compute_dtype(train.mixed_precision))
    if not train.gradient_checkpointing:
        return
    for encoder in model.text_encoders if text_trained else ():
        encoder.gradient_checkpointing_enable()
        encoder.train()  # transformers checkpoints in training mode only


def _session(
    plan: RunPlan,
    machine: DeviceContext,
    model: Model,
    data: TrainDataset,
    trainable: TrainableLora,
    lane: GateRouting,
    kept: tuple[TrainDataset, ...],
    earlier: Sequence[FrozenFeature],
) -> TrainerState:
    train, accelerator = plan.run.train, machine.accelerator
    known = detect_family(model).num_timesteps
    process = build_noise_process(model.scheduler_config, train.loss, model.unet.device, known)
    objective = DiffusionLoss(Denoiser(model), process, train.loss, lane)
    groups = _groups(trainable, train)
    optimizer, peaks = create_optimizer(
        train.optimizer, groups, train.weight_decay, train.optimizer_args
    )
    adapters = nn.ModuleList(trainable.adapters.values())
    average = Ema(adapters, train.ema_decay) if train.ema_decay > 0 else None
    alone = accelerator.num_processes == 1
    # A scaler's state is that of one optimizer's gradients: features do not share it.
    scaler = None if accelerator.scaler is None else copy.deepcopy(accelerator.scaler)
    step_once = TrainStep(
        objective,
        trainable.parameters(),
        optimizer,
        train.max_grad_norm,
        None if alone else partial(all_reduce_sum, accelerator),
        scaler,
    )
    return TrainerState(
        run=plan.run,
        paths=plan.paths,
        accelerator=accelerator,
        model=model,
        dataset=data,
        trainable=trainable,
        optimized=OptimizedModule(adapters, adapters, optimizer, peaks[0], average),
        loss=objective,
        base_lrs=peaks,
        param_group_names=[group.name for group in groups],
        train_step=step_once,
        scaler=scaler,
        preservation_sets=kept,
        frozen_hashes={one.file.path.name: one.weights_hash for one in earlier},
    )


def _groups(trainable: TrainableLora, train: TrainerConfig) -> list[ParamGroup]:
    """Return the parameters with their learning rates; LoRA+ raises that of the up-matrices."""
    ratio = {"down": 1.0, "up": train.loraplus_lr_ratio}
    return [
        ParamGroup(_label(group.part, group.factor, train), group.parameters,
                  group.learning_rate * ratio[group.factor])
        for group in trainable.parameter_groups()
    ]  # fmt: skip


def _label(part: str, kind: str, train: TrainerConfig) -> str:
    return f"{part} {kind}" if train.loraplus_lr_ratio > 1 else part
