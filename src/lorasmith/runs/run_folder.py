"""Reading a run's folder back, for its report."""

import io
import re
from dataclasses import dataclass
from pathlib import Path

from lorasmith.config.reading.load import load_saved_config
from lorasmith.config.train_config import TrainConfig
from lorasmith.core.errors import DataError
from lorasmith.core.regular_files import open_regular_file, read_regular_file
from lorasmith.data.images.decode import DECODE_ERRORS, decode_image
from lorasmith.data.images.open_image import open_image
from lorasmith.data.reading.row import MAX_FILE_BYTES
from lorasmith.inference.outputs.data_uri import (
    bytes_to_data_uri,
    image_to_data_uri,
    is_embedded_unchanged,
)
from lorasmith.inference.outputs.save import PARAMETERS_KEY
from lorasmith.loops.tracking import read_log
from lorasmith.runs.summary import RunSummary

_PREVIEW_FOLDER = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Preview:
    """The preview images of one step."""

    step: int
    """Training steps done; 0 is the base model."""
    images: tuple[Path, ...]
    """``0000.png``, ``0001.png``, ..."""


@dataclass(frozen=True)
class RunFolder:
    """The content of a run's folder; the run may be unfinished."""

    folder: Path
    config: TrainConfig
    settings_toml: str
    """The text of ``run.toml``."""
    log: list[dict[str, float]]
    """The lines of the log."""
    summary: RunSummary | None
    """None for an unfinished run."""
    previews: tuple[Preview, ...]
    """In the order of the steps."""


def read_run_folder(folder: Path) -> RunFolder:
    """Read a run's folder.

    Raises:
        DataError: it is not a run's folder, or its summary is damaged.
        ConfigError: its settings are damaged or of another version.
    """
    toml = folder / "run.toml"
    if not toml.is_file():
        raise not_a_run(folder)
    log, summary = folder / "log.jsonl", folder / "summary.json"
    return RunFolder(
        folder=folder,
        config=load_saved_config(TrainConfig, toml),
        settings_toml=toml.read_text(encoding="utf-8"),
        log=read_log(log) if log.is_file() else [],
        summary=RunSummary.read(summary) if summary.is_file() else None,
        previews=tuple(_find_previews(folder / "previews")),
    )


def not_a_run(folder: Path) -> DataError:
    """Return the error about a folder without ``run.toml``."""
    return DataError(
        f"{folder}: not a run's folder (it has no run.toml); a run's folder has the LoRA's name "
        "and is beside it, such as loras/inkmono"
    )


def _find_previews(folder: Path) -> list[Preview]:
    if not folder.is_dir():
        return []
    previews = []
    for subfolder in folder.iterdir():
        match = _PREVIEW_FOLDER.fullmatch(subfolder.name)
        images = sorted(p for p in subfolder.glob("*.png") if p.stem.isdigit()) if match else []
        if match and images:
            previews.append(Preview(int(match[1]), tuple(images)))
    return sorted(previews, key=lambda preview: preview.step)


def read_prompt(path: Path) -> str:
    """Return the prompt that a PNG's metadata names; empty if it names none.

    Raises:
        DataError: the file is not an image.
    """
    try:
        with open_regular_file(path, MAX_FILE_BYTES) as stream, open_image(stream) as image:
            parameters = str(image.info.get(PARAMETERS_KEY, ""))
    except DECODE_ERRORS as error:
        raise _unreadable(path, error) from error
    return re.split(r"\n(?:Negative prompt|Steps): ", parameters)[0]


def image_data_uri(path: Path) -> str:
    """Return a PNG as a data URI; large images become smaller WebP ones.

    Raises:
        DataError: the file is not an image.
    """
    try:
        encoded = read_regular_file(path, MAX_FILE_BYTES)
        with open_image(io.BytesIO(encoded)) as image:
            if is_embedded_unchanged(image):
                return bytes_to_data_uri(encoded, "png")
    except DECODE_ERRORS as error:
        raise _unreadable(path, error) from error
    return image_to_data_uri(decode_image(encoded, str(path)))


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: cannot be read as an image ({error}); delete it")
