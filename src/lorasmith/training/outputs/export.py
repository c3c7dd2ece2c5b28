"""What a run leaves: LoRA files, its summary and its report."""

from pathlib import Path

import torch

from lorasmith.adapters.files.lora_file import save_lora_file
from lorasmith.adapters.files.metadata import LoraMetadata, build_metadata
from lorasmith.adapters.injection.trainable import export_layers, summarize_parts
from lorasmith.core.safetensors_io import load_metadata
from lorasmith.data.tags import count_tags
from lorasmith.models.family import detect_family
from lorasmith.reports.html import failure_as_warning
from lorasmith.reports.run_page import write_run_page
from lorasmith.runs.summary import RunSummary
from lorasmith.training.data.resolution import resolve_resolution
from lorasmith.training.state import TrainerState, dataset_hash

_DIGITS = 16
"""Of a hash in a file's metadata: enough to tell sets of pictures apart."""


def export(session: TrainerState, path: Path) -> None:
    """Write the adapters as they are as a LoRA file.

    Raises:
        WeightsError: they are all zero or not finite.
        OutputError: the file cannot be written.
    """
    run, rows = session.run, session.dataset.rows[: session.dataset.num_tagged]
    facts = LoraMetadata(
        name=path.name.removesuffix(path.suffix),
        tag=run.data.tag,
        family=detect_family(session.model).name,
        prediction_type=session.loss.process.prediction_type,
        parts=summarize_parts(session.trainable),
        resolution=resolve_resolution(session.model, run.data.resolution),
        tag_frequency=count_tags(row.caption for row in rows),
        dataset=run.data.path.resolve().name,
        gate=run.lora.gate,
        class_word=run.data.class_word,
        run_id=session.progress.identity,
        step=session.progress.done,
        base_hash=session.base_hash,
        dataset_hash=dataset_hash(session.dataset)[:_DIGITS],
    )
    with session.ema_weights():
        save_lora_file(path, export_layers(session.trainable), build_metadata(facts))


def finish(session: TrainerState, ended: str) -> Path:
    """Write the LoRA, the summary and the report; return the LoRA's file.

    Args:
        session: a run that has taken its last step.
        ended: why it ended, in words.
    """
    paths = session.paths
    if session.is_main:
        export(session, paths.lora)
        _summary(session, ended).write(paths.summary)
        with failure_as_warning("report"):
            write_run_page(paths)
    session.accelerator.wait_for_everyone()
    return paths.lora


def _summary(session: TrainerState, ended: str) -> RunSummary:
    data, paths, progress = session.dataset, session.paths, session.progress
    return RunSummary(
        name=paths.name,
        tag=session.run.data.tag,
        family=detect_family(session.model).name,
        images=data.num_tagged,
        validation_images=len(data.validation.rows) if data.validation else 0,
        steps=progress.done,
        seconds=round(session.seconds(), 1),
        parameters=sum(parameter.numel() for parameter in session.trainable.parameters()),
        layers=len(session.trainable.adapters),
        best_step=progress.best_step,
        stop_reason=ended,
        sha256=load_metadata(paths.lora).get("sshs_model_hash", ""),
        file=paths.lora.name,
        device=_device_name(session.device),
        model=session.model.folder.name,
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
