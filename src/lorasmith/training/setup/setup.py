"""Setting up runs: from settings to states that can take steps."""

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from lorasmith.adapters.gating.gate import Gate
from lorasmith.adapters.gating.token_mask import selects_tokens
from lorasmith.adapters.gating.trigger_tokens import check_tag_tokens
from lorasmith.adapters.injection.inject import AttachedLora, attach_lora
from lorasmith.config.optimization import TrainerConfig
from lorasmith.config.reading.load import dump_toml
from lorasmith.config.train_config import TrainConfig, ValidationConfig
from lorasmith.core.device import compute_dtype
from lorasmith.core.errors import ConfigError, LorasmithWarning
from lorasmith.loops.memory import limit_gpu_memory, require_disk_space
from lorasmith.loops.tracking import check_wandb
from lorasmith.models.load import load_model
from lorasmith.models.model import Model
from lorasmith.models.suppress_logs import suppress_logs
from lorasmith.registries import TRAINING_METHODS
from lorasmith.runs.paths import RunPaths, check_outside_dataset
from lorasmith.runs.run_lock import lock_runs
from lorasmith.training.data.captions.gating import caption_gating
from lorasmith.training.data.dataset import TrainDataset
from lorasmith.training.data.dataset_builder import build_dataset, offload_unused_encoders
from lorasmith.training.data.resolution import buckets_for_model
from lorasmith.training.data.shared_datasets import build_shared_datasets
from lorasmith.training.data.split import split_dataset
from lorasmith.training.losses import LossFn, diffusion_loss
from lorasmith.training.methods import MethodPlan, TrainableModules, TrainingMethod
from lorasmith.training.outputs.disk_usage import bytes_needed
from lorasmith.training.resume import check_settings
from lorasmith.training.setup.frozen_feature import FrozenFeature
from lorasmith.training.setup.lr_defaults import fill_learning_rates
from lorasmith.training.setup.run_plan import DeviceContext, RunPlan, reserve_output
from lorasmith.training.setup.state_factory import build_state
from lorasmith.training.state import TrainerState
from lorasmith.training.step.gating import GateRouting
from lorasmith.training.validation.previews import check_preview_loras, check_previews

logger = logging.getLogger(__name__)

Describe = Callable[[TrainConfig], str]
"""Returns what an error message calls one of several LoRAs."""


@contextmanager
def open_trainer(
    config: TrainConfig,
    resume: str | None = None,
    loss_fn: LossFn = diffusion_loss,
    break_lock: bool = False,
) -> Iterator[TrainerState]:
    """Set up a single run, and take the adapters out of the model at its end.

    Everything that can be refused is refused before anything is written.

    Args:
        config: the settings.
        resume: None for a new run, else the checkpoint to continue from: ``latest``, ``step-120``.
        loss_fn: what is minimised.
        break_lock: take over the lock of a run on another machine that seems to be dead.
    """
    paths = RunPaths.from_name(config.output.name)
    if resume is None:
        check_outside_dataset(paths.folder, config.data, "output.name (--out)")
    context = DeviceContext.from_settings(config.train)
    split = split_dataset(config.data)
    with lock_runs([paths], context.accelerator, resume is None, break_lock) as lock:
        checkpoint = reserve_output(paths, resume)
        plan = RunPlan(config, paths, lock, split, checkpoint, loss_fn)
        with setup_trainers([plan], context) as states:
            yield states[0]


@contextmanager
def setup_trainers(
    plans: Sequence[RunPlan],
    context: DeviceContext,
    frozen: Sequence[FrozenFeature] = (),
    later: Sequence[TrainConfig] = (),
    describe: Describe = lambda config: f"feature {config.data.tag!r}",
) -> Iterator[list[TrainerState]]:
    """Set up LoRAs that are trained jointly on one model.

    Args:
        plans: the LoRAs; what is common to all is as in the first.
        context: what they are trained on.
        frozen: LoRAs of earlier features, which are in the model and stay as they are.
        later: settings of LoRAs that are trained afterwards; their errors are raised now.
        describe: what errors call one of several LoRAs.
    """
    first = plans[0].config
    if first.track.wandb:
        check_wandb()
    model = load_model(first.model.path).to(torch.device("cpu"), torch.float32)
    _check_validation(first.validation, model)
    is_single = len(plans) + len(frozen) + len(later) == 1
    label = None if is_single else describe
    plans = [replace(plan, config=_fill_config(plan.config, model)) for plan in plans]
    for plan in plans:
        if plan.checkpoint is not None:
            check_settings(plan.checkpoint.state["settings"], plan.config)
    method_plans = [_plan_method(plan.config, model, label) for plan in plans]
    for config in later:
        _plan_method(_fill_config(config, model), model, label)
    _require_disk_space(plans, method_plans, model.default_size)
    runs_text = any(plan.trains_text_encoder for plan in method_plans) or any(
        feature.has_text_layers for feature in frozen
    )
    builder = _DatasetBuilder(model, context, runs_text, frozen)
    datasets, preservation_sets = builder.build_all(plans)
    _move_to_device(model, first.train, context.device, runs_text)
    with _injected(model, plans, method_plans, frozen) as (trainables, routings):
        states = [
            build_state(plan, context, model, trainable, routing, data, preservation_sets, frozen)
            for plan, data, trainable, routing in zip(
                plans, datasets, trainables, routings, strict=True
            )
        ]
        _start_runs(plans, states)
        if context.accelerator.is_main_process:
            logger.info(first.train.describe_batch(context.accelerator.num_processes))
        context.accelerator.wait_for_everyone()
        yield states


# --- checks before anything is written --------------------------------------------------------


def _check_validation(validation: ValidationConfig, model: Model) -> None:
    check_previews(validation, model)
    check_preview_loras(validation, model)


def _fill_config(config: TrainConfig, model: Model) -> TrainConfig:
    """Fill in the settings that depend on the model."""
    size = sum(parameter.numel() for parameter in model.unet.parameters())
    return config.model_copy(update={"train": fill_learning_rates(config.train, size)})


def _plan_method(config: TrainConfig, model: Model, describe: Describe | None) -> MethodPlan:
    """Return what is trained in the model; of several LoRAs, an error says whose it is."""
    method: TrainingMethod = TRAINING_METHODS.get(config.train.method)
    try:
        buckets_for_model(model, config.data)
        check_tag_tokens(model.main_tokenizer, config.data.tag)
        preserve = config.preserve
        if not method.has_gate and (preserve.strength or preserve.earlier_features_strength):
            raise ConfigError(
                f"preserve: it needs a training method with a gate, which {config.train.method!r} "
                "has not; set its strengths to 0"
            )
        plan = method.plan(model, config.lora, config.train)
        _warn_about_unused_rate(config, plan, model)
        return plan
    except ConfigError as error:
        if describe is None:
            raise
        raise ConfigError(f"{describe(config)}: {error}") from error


def _warn_about_unused_rate(config: TrainConfig, plan: MethodPlan, model: Model) -> None:
    """Warn of a learning rate for text encoders where none is trained."""
    without = config.train.model_copy(update={"text_encoder_lr": None})
    default = _fill_config(config.model_copy(update={"train": without}), model).train
    if plan.trains_text_encoder or config.train.text_encoder_lr == default.text_encoder_lr:
        return
    warnings.warn(
        "train.text_encoder_lr has no effect: lora.targets has no text encoder layer; "
        'targets = ["all-linear", "text-encoder"] has them',
        LorasmithWarning,
        stacklevel=2,
    )


def _require_disk_space(
    plans: Sequence[RunPlan], method_plans: Sequence[MethodPlan], default_image_size: int
) -> None:
    needed = sum(
        bytes_needed(
            plan.config,
            method_plan.num_parameters,
            default_image_size,
            is_new=plan.checkpoint is None,
        )
        for plan, method_plan in zip(plans, method_plans, strict=True)
    )
    require_disk_space(plans[0].paths.folder, needed, "checkpoints and LoRA files")


# --- data -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _DatasetBuilder:
    """Encodes the images and captions of LoRAs that are trained on one model."""

    model: Model
    context: DeviceContext
    runs_text: bool
    """Whether text encoders run in the step: adapters in them are trained, or have a gate."""
    frozen: Sequence[FrozenFeature]

    def build_all(
        self, plans: Sequence[RunPlan]
    ) -> tuple[list[TrainDataset], tuple[TrainDataset, ...]]:
        """Return each LoRA's images, and those of earlier features that are to be preserved."""
        with self.context.accelerator.main_process_first():
            datasets = build_shared_datasets(
                [plan.config for plan in plans],
                lambda index: self._build(plans[index]),
                self.model.is_inpainting,
            )
            preservation_sets = self._build_preservation_sets(plans[0].config)
            offload_unused_encoders(self.model, [*datasets, *preservation_sets], self.runs_text)
        return datasets, preservation_sets

    def _build(self, plan: RunPlan) -> TrainDataset:
        config = plan.config
        gates = [feature.gate for feature in self.frozen]
        needs_plain_captions = config.preserve.strength > 0
        return build_dataset(
            self.model,
            config.data,
            config.train,
            self.context.device,
            plan.split,
            self.runs_text,
            caption_gating(self.model, plan.gate, gates, needs_plain_captions),
            self.context.accelerator.num_processes,
        )

    def _build_preservation_sets(self, config: TrainConfig) -> tuple[TrainDataset, ...]:
        if not config.preserve.earlier_features_strength:
            return ()
        return tuple(
            build_dataset(
                self.model,
                feature.data,
                config.train,
                self.context.device,
                feature.split,
                self.runs_text,
                caption_gating(self.model, feature.gate, ()),
                self.context.accelerator.num_processes,
            )
            for feature in self.frozen
        )


# --- model ------------------------------------------------------------------------------------


def _move_to_device(
    model: Model, train: TrainerConfig, device: torch.device, runs_text: bool
) -> None:
    """Move the networks of a step to the device, in the run's precision."""
    text_encoders = model.text_encoders if runs_text else ()
    networks: list[nn.Module] = [model.unet, *text_encoders]
    with suppress_logs():
        for network in networks:
            network.to(device=device, dtype=compute_dtype(train.mixed_precision))
    if train.gradient_checkpointing:
        for encoder in text_encoders:
            encoder.gradient_checkpointing_enable()
            encoder.train()  # transformers checkpoints in training mode only


@contextmanager
def _injected(
    model: Model,
    plans: Sequence[RunPlan],
    method_plans: Sequence[MethodPlan],
    frozen: Sequence[FrozenFeature],
) -> Iterator[tuple[list[TrainableModules], list[GateRouting | None]]]:
    """Put trainable modules into the model while the block runs, after frozen LoRAs."""
    attached: list[AttachedLora] = []
    trainables: list[TrainableModules] = []
    try:
        for feature in frozen:
            attached.append(attach_lora(model, feature.file))  # noqa: PERF401 (detach what got in)
        for plan, method_plan in zip(plans, method_plans, strict=True):
            config = plan.config
            method: TrainingMethod = TRAINING_METHODS.get(config.train.method)
            trainables.append(
                method.inject(model, method_plan, config.lora, config.train.seed, plan.gate)
            )
        yield trainables, _route_gates(plans, trainables, attached)
    finally:
        if plans[0].config.train.vram_limit:
            limit_gpu_memory(model.unet.device, None)
        for trainable in trainables:
            trainable.detach()
        for lora in attached:
            lora.detach()


def _route_gates(
    plans: Sequence[RunPlan],
    trainables: Sequence[TrainableModules],
    frozen: Sequence[AttachedLora],
) -> list[GateRouting | None]:
    """Return which gates the batches of each LoRA set; None for one without a gate."""
    frozen_gates = [(lora.gate, selects_tokens(lora.gate_metadata)) for lora in frozen]
    gates: list[Gate | None] = [
        None if trainable.attached is None else trainable.attached.gate for trainable in trainables
    ]
    return [
        None
        if gate is None
        else GateRouting(
            gate,
            selects_tokens(plan.gate),
            frozen_gates,
            [other for other in gates if other is not None and other is not gate],
        )
        for gate, plan in zip(gates, plans, strict=True)
    ]


def _start_runs(plans: Sequence[RunPlan], states: Sequence[TrainerState]) -> None:
    """Load checkpoints, and write settings and the record of the images."""
    for plan, state in zip(plans, states, strict=True):
        if plan.checkpoint is not None:
            state.load_checkpoint(plan.checkpoint)
        if state.is_main:
            crops = json.dumps(state.dataset.describe_images(), indent=1, ensure_ascii=False)
            is_new = plan.checkpoint is None
            state.paths.prepare_folder(dump_toml(plan.config), is_new, f"{crops}\n")
