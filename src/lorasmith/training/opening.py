"""Preparing a run: from settings to a session that can take steps."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from lorasmith.adapters.names import UNET
from lorasmith.adapters.targets import resolve
from lorasmith.adapters.trainable import Trainable, inject_targets
from lorasmith.config.load import dump_toml
from lorasmith.config.run import TrainRun, TrainSettings
from lorasmith.core.device import dtype_of, pick_device
from lorasmith.loops.checkpoint import Checkpoint
from lorasmith.loops.ema import Ema
from lorasmith.loops.memory import require_space
from lorasmith.loops.optimizers import RateGroup, build_optimizer
from lorasmith.loops.processes import accelerator_for, sum_over
from lorasmith.loops.track import check_wandb
from lorasmith.loops.trained import Trained
from lorasmith.models.load import Model, load_model, quiet
from lorasmith.training.chosen import choose_rows
from lorasmith.training.dataset import TrainingSet, build_dataset
from lorasmith.training.losses import process_of
from lorasmith.training.paths import RunPaths, keep_outside
from lorasmith.training.preview import check_previews
from lorasmith.training.rates import with_rates
from lorasmith.training.resuming import check_settings, find_checkpoint
from lorasmith.training.session import Session
from lorasmith.training.space import bytes_needed
from lorasmith.training.step import Denoiser, Objective, TrainStep

if TYPE_CHECKING:
    from accelerate import Accelerator


@contextmanager
def opened(run: TrainRun, resume: str | None) -> Iterator[Session]:
    """Prepare a run, and take the adapters out of the model at its end.

    What can be refused is refused before anything is written.

    Args:
        run: the settings.
        resume: None for a new run, else which checkpoint it goes on from: ``latest``, ``step-120``.
    """
    paths = RunPaths.of(run.output.name)
    if resume is None:
        keep_outside(paths.folder, run.data, "output.name (--out)")
    device = pick_device(run.train.device)
    accelerator = accelerator_for(run.train.precision, device.type, "train")
    if accelerator.num_processes > 1:
        device = torch.device(accelerator.device)
    chosen = choose_rows(run.data)
    found = _claimed(paths, resume)
    if run.track.wandb:
        check_wandb()
    model = load_model(run.model.path).to(torch.device("cpu"), torch.float32)
    run = _completed(run, model, found)
    check_previews(run.preview, model)
    targets = resolve(model, run.lora, run.train)
    needed = bytes_needed(run, targets, model.default_size, new=found is None)
    require_space(paths.folder, needed, "checkpoints and LoRA files")
    text_trained = any(target.place.part != UNET for target in targets)
    with accelerator.main_process_first():
        data = build_dataset(model, run.data, run.train, device, chosen, text_trained)
    _place(model, run.train, device, text_trained)
    trainable = inject_targets(targets, run.lora, run.train.seed)
    try:
        session = _session(run, paths, accelerator, model, data, trainable)
        if found is not None:
            session.restore(found)
        if session.main:
            record = json.dumps(data.record(), indent=1, ensure_ascii=False)
            paths.begin(dump_toml(run), found is None, f"{record}\n")
        accelerator.wait_for_everyone()
        yield session
    finally:
        trainable.detach()


def _claimed(paths: RunPaths, resume: str | None) -> Checkpoint | None:
    """Make sure of the run's place; return what it goes on from."""
    if resume is None:
        paths.claim()
        return None
    paths.claim_again()
    return find_checkpoint(paths.checkpoints, resume)


def _completed(run: TrainRun, model: Model, found: Checkpoint | None) -> TrainRun:
    """Fill in what depends on the model, and compare with the run that is gone on with."""
    size = sum(parameter.numel() for parameter in model.unet.parameters())
    run = run.model_copy(update={"train": with_rates(run.train, size)})
    if found is not None:
        check_settings(found.state["settings"], run)
    return run


def _place(model: Model, train: TrainSettings, device: torch.device, text_trained: bool) -> None:
    """Bring what the steps use to the device, in the number format of the run."""
    used: list[nn.Module] = [model.unet, *(model.text_encoders if text_trained else ())]
    with quiet():
        for network in used:
            network.to(device=device, dtype=dtype_of(train.precision))
    if not train.gradient_checkpointing:
        return
    model.unet.enable_gradient_checkpointing()
    for encoder in model.text_encoders if text_trained else ():
        encoder.gradient_checkpointing_enable()
        encoder.train()  # transformers checkpoints in training mode only


def _session(
    run: TrainRun,
    paths: RunPaths,
    accelerator: "Accelerator",
    model: Model,
    data: TrainingSet,
    trainable: Trainable,
) -> Session:
    train = run.train
    process = process_of(model.scheduler_config, train.loss, model.unet.device)
    objective = Objective(Denoiser(model), process, train.loss)
    groups = _groups(trainable, train)
    optimizer, peaks = build_optimizer(train, groups)
    adapters = nn.ModuleList(trainable.adapters.values())
    average = Ema(adapters, train.ema) if train.ema > 0 else None
    alone = accelerator.num_processes == 1
    step_once = TrainStep(
        objective,
        trainable.parameters(),
        optimizer,
        train.clip,
        None if alone else partial(sum_over, accelerator),
        accelerator.scaler,
    )
    return Session(
        run=run,
        paths=paths,
        accelerator=accelerator,
        model=model,
        data=data,
        trainable=trainable,
        state=Trained(adapters, adapters, optimizer, peaks[0], average),
        objective=objective,
        peaks=peaks,
        labels=[group.part for group in groups],
        step_once=step_once,
    )


def _groups(trainable: Trainable, train: TrainSettings) -> list[RateGroup]:
    """Return the parameters with their learning rates; LoRA+ raises that of the up-matrices."""
    ratio = {"down": 1.0, "up": train.loraplus_ratio}
    return [
        RateGroup(_label(group.part, group.kind, train), group.parameters,
                  group.learning_rate * ratio[group.kind])
        for group in trainable.groups()
    ]  # fmt: skip


def _label(part: str, kind: str, train: TrainSettings) -> str:
    return f"{part} {kind}" if train.loraplus_ratio > 1 else part
