"""What the three pretraining commands share around their loops: data, manifest, results."""

from collections.abc import Sequence
from pathlib import Path

import torch

from lorasmith.config.base import BaseConfig
from lorasmith.config.data import PretrainDataConfig
from lorasmith.config.load import dump_toml
from lorasmith.core.files import write_text
from lorasmith.data.images.square_images import SquareImages
from lorasmith.data.reading.filters import filter_rows, matches_filter, split_by_hash
from lorasmith.data.reading.reader import read_rows
from lorasmith.data.reading.row import Row, hash_row
from lorasmith.loops.progress import progress_bar
from lorasmith.pretraining.loop import Loop

MANIFEST = "manifest.tsv"


def chosen_rows(settings: PretrainDataConfig) -> tuple[list[Row], list[Row]]:
    """Read, filter and split the rows; return ``(training, validation)``."""
    rows = filter_rows(read_rows(settings.path), settings.filters)
    training, validation = split_by_hash(rows, settings.validation_split)
    return training[: settings.max_images], validation


def mirror_allowed(rows: Sequence[Row], settings: PretrainDataConfig) -> torch.Tensor:
    """Tell which rows may be mirrored, bool ``[N]``."""
    against = set(settings.no_flip_words)

    def allowed(row: Row) -> bool:
        words = set(" ".join(row.captions).lower().replace(",", " ").split())
        return not (words & against) and all(
            matches_filter(row, rule) for rule in settings.flip_filters
        )

    return torch.tensor([settings.flip_aug and allowed(row) for row in rows], dtype=torch.bool)


def open_pictures(
    rows: Sequence[Row], side: int, settings: PretrainDataConfig, loop: Loop
) -> SquareImages:
    """Decode the rows for this loop's device, with a progress bar."""
    with progress_bar("decoding pictures", len(rows), enabled=loop.main) as advance:
        return SquareImages(rows, side, loop.device, settings.image_cache_gib, advance)


def write_start(loop: Loop, settings: BaseConfig, rows: Sequence[Row]) -> None:
    """Write the resolved settings and the manifest of training rows beside the run's log."""
    if loop.main:
        write_text(loop.out / "run.toml", dump_toml(settings))
        write_text(loop.out / MANIFEST, manifest_of(rows))


def manifest_of(rows: Sequence[Row]) -> str:
    """Return one ``key<tab>sha256`` line per row: the proof of what a model was trained on."""
    return "".join(f"{row.key}\t{hash_row(row)}\n" for row in rows)


def read_manifest(path: Path) -> dict[str, str]:
    """Read a manifest back as ``{key: sha256}``."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return {key: digest for key, _, digest in (line.rpartition("\t") for line in lines if line)}
