"""What lies in a run's folder, read back for its report."""

import io
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from lorasmith.config.load import load_settings
from lorasmith.config.train_config import TrainRun
from lorasmith.core.errors import DataError
from lorasmith.inference.outputs.data_uri import encoded_uri, fits, picture_uri
from lorasmith.inference.outputs.save import PARAMETERS
from lorasmith.loops.tracking import read_log
from lorasmith.runs.summary import Summary

_PREVIEWS = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Preview:
    """The preview pictures of one step."""

    step: int
    """Steps that were done; 0 is the base model."""
    pictures: tuple[Path, ...]
    """``0000.png``, ``0001.png``, ..."""


@dataclass(frozen=True)
class RunFolder:
    """A run, as far as it got."""

    folder: Path
    """Where it lies."""
    run: TrainRun
    """Its settings."""
    settings: str
    """The same as they were written, TOML."""
    log: list[dict[str, float]]
    """The lines of its log; empty before the first."""
    summary: Summary | None
    """What it says about itself; None of a run that is not finished."""
    previews: tuple[Preview, ...]
    """Its previews in the order of the steps."""


def read_run(folder: Path) -> RunFolder:
    """Read a run's folder.

    Raises:
        DataError: it is none, or its summary is damaged.
        ConfigError: its settings are damaged or of another version.
    """
    toml = folder / "run.toml"
    if not toml.is_file():
        raise DataError(
            f"{folder}: not a run's folder (it has no run.toml); a run lies in the folder of its "
            "name beside the LoRA, such as loras/inkmono"
        )
    log, summary = folder / "log.jsonl", folder / "summary.json"
    return RunFolder(
        folder=folder,
        run=load_settings(TrainRun, toml),
        settings=toml.read_text(encoding="utf-8"),
        log=read_log(log) if log.is_file() else [],
        summary=Summary.read(summary) if summary.is_file() else None,
        previews=tuple(_previews(folder / "previews")),
    )


def _previews(folder: Path) -> list[Preview]:
    if not folder.is_dir():
        return []
    found = []
    for place in folder.iterdir():
        name = _PREVIEWS.fullmatch(place.name)
        pictures = sorted(p for p in place.glob("*.png") if p.stem.isdigit()) if name else []
        if name and pictures:
            found.append(Preview(int(name[1]), tuple(pictures)))
    return sorted(found, key=lambda preview: preview.step)


def prompt_of(picture: Path) -> str:
    """Return the prompt that a PNG says it was drawn from; empty where it says none.

    Raises:
        DataError: the file is no picture.
    """
    try:
        with Image.open(picture) as image:
            text = str(image.info.get(PARAMETERS, ""))
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{picture}: cannot be read as a picture ({error}); delete it") from error
    return re.split(r"\n(?:Negative prompt|Steps): ", text)[0]


def data_uri(picture: Path) -> str:
    """Return a PNG as a data URI; large pictures become smaller WebP ones.

    Raises:
        DataError: the file is no picture.
    """
    encoded = picture.read_bytes()
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return encoded_uri(encoded, "png") if fits(image) else picture_uri(image)
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{picture}: cannot be read as a picture ({error}); delete it") from error
