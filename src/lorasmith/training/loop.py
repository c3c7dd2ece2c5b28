"""The training run: from settings to a LoRA file."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from lorasmith.adapters.formats import save_lora_file
from lorasmith.adapters.layers import LowRank
from lorasmith.adapters.metadata import Facts, metadata_of, parts_of
from lorasmith.adapters.targets import Target, resolve
from lorasmith.adapters.trainable import Trainable, exported, inject_targets
from lorasmith.config.load import dump_toml
from lorasmith.config.run import LoraSettings, TrainRun, TrainSettings
from lorasmith.core.device import dtype_of, generator, pick_device
from lorasmith.core.errors import TrainingError
from lorasmith.data.order import BatchOrder
from lorasmith.data.tags import tag_frequency
from lorasmith.loops.optim import adamw, set_learning_rate
from lorasmith.loops.schedule import lr_scale
from lorasmith.models.family import family_of
from lorasmith.models.load import Model, load_model, quiet
from lorasmith.models.noise import NoiseProcess
from lorasmith.training.chosen import tagged_rows
from lorasmith.training.dataset import Dataset, encode_dataset, picture_side
from lorasmith.training.paths import RunPaths
from lorasmith.training.rates import with_rates
from lorasmith.training.reporting import Reporter, reporting
from lorasmith.training.step import TrainStep, draw_batch

_BETAS = (0.9, 0.99)
# First positions in the stream of random numbers, so that no two uses share any.
_STEPS = 1


def train(run: TrainRun) -> Path:
    """Train a LoRA and return its file.

    The same settings give the same weights on the same machine.

    Raises:
        OutputError: the name is taken or cannot be written.
        DataError: no pictures, no captions, or none with the tag.
        WeightsError: the model cannot be loaded or is of an unsupported family.
        ConfigError: a setting does not fit the model or the machine.
        TrainingError: a loss or gradient was not finite; no LoRA is saved.
        KeyboardInterrupt: Ctrl-C, with the step in its message; no LoRA is saved.
    """
    paths = RunPaths.of(run.output.name)
    device = pick_device(run.train.device)
    rows = tagged_rows(run.data)
    paths.claim()
    model = load_model(run.model.path)
    family = family_of(model)
    side = picture_side(model, run.data.resolution)
    train_settings = with_rates(run.train, sum(p.numel() for p in model.unet.parameters()))
    targets = resolve(model, run.lora, train_settings)
    data = encode_dataset(model.to(device, torch.float32), rows, side)
    data = _for_unet(model, data, dtype_of(run.train.precision))
    paths.begin(dump_toml(run))
    with injected(targets, run.lora, run.train.seed) as attached:
        _optimize(train_settings, model, data, attached, paths)
        facts = Facts(
            name=paths.name,
            tag=run.data.tag,
            family=family,
            prediction_type=_process(model).prediction_type,
            parts=parts_of(attached),
            resolution=side,
            tag_frequency=tag_frequency(row.caption for row in rows),
            dataset=run.data.path.name,
        )
        save_lora_file(paths.lora, exported(attached), metadata_of(facts))
    return paths.lora


@contextmanager
def injected(targets: list[Target], settings: LoraSettings, seed: int) -> Iterator[Trainable]:
    """Put untrained adapters on layers while the block runs."""
    trainable = inject_targets(targets, settings, seed)
    try:
        yield trainable
    finally:
        trainable.detach()


def _for_unet(model: Model, data: Dataset, dtype: torch.dtype) -> Dataset:
    """Cast the U-Net and what it reads; let go of the parts that are done."""
    with quiet():
        model.unet.to(dtype=dtype)
    model.vae.to("cpu")
    model.text_encoder.to("cpu")
    return replace(data, contexts=data.contexts.to(dtype))


def _process(model: Model) -> NoiseProcess:
    return NoiseProcess.from_scheduler(model.scheduler_config, model.unet.device)


def _optimize(
    settings: TrainSettings, model: Model, data: Dataset, attached: Trainable, paths: RunPaths
) -> None:
    """Train the adapters in place."""
    adapters: list[LowRank] = list(attached.adapters.values())
    optimizer = adamw(adapters, settings.learning_rate, settings.weight_decay, _BETAS)
    parameters = [p for adapter in adapters for p in adapter.parameters()]
    process = _process(model)
    step_once = TrainStep(model.unet, process, parameters, optimizer, settings.clip)
    order = BatchOrder([1.0] * len(data.rows), settings.batch_size, settings.seed)
    with reporting(settings, paths.folder) as report, _naming_the_step(report, settings):
        for step in range(settings.steps):
            rate = _rate(settings, step)
            set_learning_rate(optimizer, rate)
            draws = generator(settings.seed, _STEPS, step)
            figures = step_once(draw_batch(data, order.batch(step), process.steps, draws))
            if report.due(step):
                _require_finite(step_once, data, order)
            report.step(step, figures, rate)


@contextmanager
def _naming_the_step(report: Reporter, settings: TrainSettings) -> Iterator[None]:
    """Say how far the training was when somebody presses Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(
            f"after step {report.done} of {settings.steps}; no LoRA was saved, the same command "
            "starts anew"
        ) from error


def _rate(settings: TrainSettings, step: int) -> float:
    scale = lr_scale(step, settings.steps, settings.warmup, settings.floor, settings.schedule)
    return settings.learning_rate * scale


def _require_finite(step_once: TrainStep, data: Dataset, order: BatchOrder) -> None:
    failed = step_once.failed_step()
    if failed is None:
        return
    names = ", ".join(data.keys_of(order.batch(failed)))
    raise TrainingError(
        f"loss or gradient is not finite at step {failed + 1}, with the pictures {names}; nothing "
        "was saved: lower train.learning_rate, or look at these pictures"
    )
