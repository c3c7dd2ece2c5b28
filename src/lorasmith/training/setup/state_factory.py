"""Building the state of a LoRA in training from its plan, its modules and its images."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from lorasmith.config.optimization import LossConfig, TrainerConfig
from lorasmith.config.reading.old_keys import CONFIG_VERSION, VERSION_KEY
from lorasmith.config.train_config import TrainConfig
from lorasmith.loops.distributed import all_reduce_sum
from lorasmith.loops.ema import Ema
from lorasmith.loops.optimization.lr_schedule import lr_factor, resolve_warmup_steps
from lorasmith.loops.optimization.optimized_module import OptimizedModule
from lorasmith.loops.optimization.optimizers import ParamGroup, create_optimizer
from lorasmith.models.families.family import detect_family
from lorasmith.models.model import Model
from lorasmith.registries import TRAINING_METHODS
from lorasmith.training.data.dataset import TrainDataset
from lorasmith.training.data.resolution import resolve_resolution
from lorasmith.training.losses import LossFn, build_noise_process
from lorasmith.training.methods import TrainableModules, TrainingMethod
from lorasmith.training.setup.frozen_feature import FrozenFeature
from lorasmith.training.setup.run_plan import DeviceContext, RunPlan
from lorasmith.training.state import ExportInfo, TrainerState
from lorasmith.training.step.denoiser import Denoiser
from lorasmith.training.step.gating import GateRouting
from lorasmith.training.step.step_data import StepData
from lorasmith.training.step.train_step import DiffusionLoss, TrainStep

if TYPE_CHECKING:
    from accelerate import Accelerator


def build_state(
    plan: RunPlan,
    context: DeviceContext,
    model: Model,
    trainable: TrainableModules,
    routing: GateRouting | None,
    dataset: TrainDataset,
    preservation_sets: tuple[TrainDataset, ...],
    frozen: Sequence[FrozenFeature],
) -> TrainerState:
    """Return a LoRA's state.

    Args:
        plan: the LoRA.
        context: what it is trained on.
        model: the model with the trainable modules in it.
        trainable: these modules; ``routing`` has their gates.
        dataset: its images.
        preservation_sets: images of earlier features whose predictions are preserved.
        frozen: LoRAs of earlier features in the model.
    """
    config, train, accelerator = plan.config, plan.config.train, context.accelerator
    method: TrainingMethod = TRAINING_METHODS.get(train.method)
    loss = _build_loss(model, train.loss, routing, plan.loss_fn)
    groups = method.parameter_groups(trainable, train)
    optimized, base_lrs = _build_optimizer(trainable, groups, train)
    scaler = _copy_scaler(accelerator)
    return TrainerState(
        paths=plan.paths,
        lock=plan.lock,
        train=train,
        validation=config.validation,
        track=config.track,
        settings=dump_settings(config),
        accelerator=accelerator,
        model=model,
        method=method,
        trainable=trainable,
        optimized=optimized,
        loss=loss,
        step_data=_build_step_data(plan, context, loss, dataset, preservation_sets),
        train_step=_build_train_step(plan, context, loss, trainable, optimized, scaler),
        lr_factor=_build_lr_factor(train),
        base_lrs=base_lrs,
        param_group_names=[group.name for group in groups],
        export_info=_build_export_info(plan, model),
        dropout=config.lora.dropout,
        scaler=scaler,
        frozen_hashes={feature.file.path.name: feature.weights_hash for feature in frozen},
    )


def _copy_scaler(accelerator: "Accelerator") -> torch.amp.GradScaler | None:
    # A scaler's state is that of one optimizer's gradients: LoRAs do not share it.
    return None if accelerator.scaler is None else copy.deepcopy(accelerator.scaler)


def _build_train_step(
    plan: RunPlan,
    context: DeviceContext,
    loss: DiffusionLoss,
    trainable: TrainableModules,
    optimized: OptimizedModule,
    scaler: torch.amp.GradScaler | None,
) -> TrainStep:
    accelerator = context.accelerator
    all_reduce = partial(all_reduce_sum, accelerator) if accelerator.num_processes > 1 else None
    return TrainStep(
        loss,
        trainable.parameters(),
        optimized.optimizer,
        plan.config.train.max_grad_norm,
        all_reduce,
        scaler,
    )


def _build_optimizer(
    trainable: TrainableModules, groups: Sequence[ParamGroup], train: TrainerConfig
) -> tuple[OptimizedModule, list[float]]:
    """Return the trainable modules with their optimizer, and its peak learning rates."""
    optimizer, base_lrs = create_optimizer(
        train.optimizer, groups, train.weight_decay, train.optimizer_args
    )
    modules = nn.ModuleList(trainable.adapters.values())
    ema = Ema(modules, train.ema_decay) if train.ema_decay > 0 else None
    return OptimizedModule(modules, modules, optimizer, base_lrs[0], ema), base_lrs


def _build_export_info(plan: RunPlan, model: Model) -> ExportInfo:
    data = plan.config.data
    resolution = resolve_resolution(model, data.resolution)
    return ExportInfo(plan.gate, resolution, data.path.resolve().name)


def _build_loss(
    model: Model, settings: LossConfig, routing: GateRouting | None, loss_fn: LossFn
) -> DiffusionLoss:
    num_timesteps = detect_family(model).num_timesteps
    process = build_noise_process(
        model.scheduler_config, settings, model.unet.device, num_timesteps
    )
    return DiffusionLoss(Denoiser(model), process, settings, routing, loss_fn)


def _build_step_data(
    plan: RunPlan,
    context: DeviceContext,
    loss: DiffusionLoss,
    dataset: TrainDataset,
    preservation_sets: tuple[TrainDataset, ...],
) -> StepData:
    train = plan.config.train
    return StepData(
        dataset=dataset,
        preservation_sets=preservation_sets,
        preserve=plan.config.preserve,
        process=loss.process,
        loss_settings=train.loss,
        seed=train.seed,
        accumulation_steps=train.gradient_accumulation_steps,
        num_processes=context.accelerator.num_processes,
        process_index=context.accelerator.process_index,
    )


def _build_lr_factor(train: TrainerConfig) -> Callable[[int], float]:
    warmup = resolve_warmup_steps(train.lr_warmup_steps, train.steps)
    return partial(
        lr_factor,
        total_steps=train.steps,
        warmup_steps=warmup,
        min_ratio=train.lr_scheduler_min_lr_ratio,
        schedule=train.lr_scheduler,
    )


def dump_settings(config: TrainConfig) -> dict[str, object]:
    """Return settings as checkpoints hold them."""
    return {VERSION_KEY: CONFIG_VERSION, **config.model_dump(mode="json")}
