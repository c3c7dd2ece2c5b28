"""What a run leaves: LoRA files, its summary and its report."""

from dataclasses import replace
from pathlib import Path

import torch

from lorasmith.core.safetensors_io import load_metadata
from lorasmith.data.caption_tags import count_tags
from lorasmith.models.families.family import detect_family
from lorasmith.reports.html import failure_as_warning
from lorasmith.reports.pages.run import write_run_page
from lorasmith.runs.summary import RunSummary
from lorasmith.training.methods import ExportMetadata
from lorasmith.training.state import TrainerState, dataset_hash

_HASH_DIGITS = 16
"""Of a hash in a file's metadata: enough to tell datasets apart."""


def export_lora(state: TrainerState, path: Path) -> None:
    """Write what was learned so far; in the main process.

    Raises:
        WeightsError: it is all zero or not finite.
        OutputError: the file cannot be written, or another run has taken the name over.
    """
    state.lock.check()
    dataset, info = state.dataset, state.export_info
    metadata = ExportMetadata(
        name=path.name.removesuffix(path.suffix),
        gate=replace(info.gate, run_id=state.progress.run_id, step=state.step),
        family=detect_family(state.model).name,
        prediction_type=state.loss.process.prediction_type,
        resolution=info.resolution,
        tag_frequency=count_tags(row.caption for row in dataset.rows[: dataset.num_tagged]),
        dataset_name=info.dataset_name,
        base_hash=state.base_hash,
        dataset_hash=dataset_hash(dataset)[:_HASH_DIGITS],
    )
    with state.ema_weights():
        state.method.export(state.trainable, path, metadata)
    state.callbacks.on_save(state, path)


def finish_run(state: TrainerState, stop_reason: str) -> None:
    """Write the LoRA, the summary and the report of a run that has taken its last step.

    Args:
        state: the run.
        stop_reason: why it ended, as a phrase.
    """
    if state.is_main:
        export_lora(state, state.paths.lora)
        _summarize(state, stop_reason).write(state.paths.summary)
        with failure_as_warning("report", state.paths.folder):
            write_run_page(state.paths)
    state.accelerator.wait_for_everyone()


def _summarize(state: TrainerState, stop_reason: str) -> RunSummary:
    dataset, paths = state.dataset, state.paths
    return RunSummary(
        name=paths.name,
        tag=state.export_info.gate.tag,
        family=detect_family(state.model).name,
        images=dataset.num_tagged,
        validation_images=len(dataset.validation.rows) if dataset.validation else 0,
        steps=state.step,
        effective_batch_size=state.train.images_per_step(state.accelerator.num_processes),
        seconds=round(state.elapsed_seconds(), 1),
        parameters=sum(parameter.numel() for parameter in state.trainable.parameters()),
        layers=len(state.trainable.adapters),
        best_step=state.progress.best_step,
        stop_reason=stop_reason,
        sha256=load_metadata(paths.lora).get("sshs_model_hash", ""),
        file=paths.lora.name,
        device=_device_name(state.device),
        model=state.model.path.name,
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
