"""The rows and images that a pretraining run trains on, and the manifest that lists them."""

from collections.abc import Sequence

import torch

from lorasmith.config.base import BaseConfig
from lorasmith.config.data import PretrainDataConfig
from lorasmith.config.reading.load import dump_toml
from lorasmith.core.files import write_text
from lorasmith.data.images.square_images import SquareImages
from lorasmith.data.reading.filters import filter_rows, matches_filter, split_by_hash
from lorasmith.data.reading.options import ReadOptions
from lorasmith.data.reading.reader import read_rows
from lorasmith.data.reading.row import Row, hash_row
from lorasmith.loops.progress import progress_bar
from lorasmith.pretraining.loop import PretrainLoop

MANIFEST = "manifest.tsv"


def select_rows(settings: PretrainDataConfig) -> tuple[list[Row], list[Row]]:
    """Read, filter and split the rows; return ``(training, validation)``."""
    options = ReadOptions(follow_links=settings.follow_links)
    rows = filter_rows(read_rows(settings.path, options), settings.filters)
    training, validation = split_by_hash(rows, settings.validation_split)
    return training[: settings.max_images], validation


def find_flippable(rows: Sequence[Row], settings: PretrainDataConfig) -> torch.Tensor:
    """Return which rows may be flipped horizontally, bool ``[N]``."""
    no_flip_words = set(settings.no_flip_words)

    def is_flippable(row: Row) -> bool:
        words = set(" ".join(row.captions).lower().replace(",", " ").split())
        return not (words & no_flip_words) and all(
            matches_filter(row, rule) for rule in settings.flip_filters
        )

    flippable = [settings.flip_aug and is_flippable(row) for row in rows]
    return torch.tensor(flippable, dtype=torch.bool)


def load_images(
    rows: Sequence[Row], side: int, settings: PretrainDataConfig, loop: PretrainLoop
) -> SquareImages:
    """Decode the rows' images for the loop's device, with a progress bar."""
    with progress_bar("decoding images", len(rows), enabled=loop.is_main) as advance:
        return SquareImages(rows, side, loop.device, settings.image_cache_gib, advance)


def write_run_files(loop: PretrainLoop, settings: BaseConfig, rows: Sequence[Row]) -> None:
    """Write the resolved settings and the manifest of training rows to the output folder."""
    if loop.is_main:
        write_text(loop.output_dir / "run.toml", dump_toml(settings))
        write_text(loop.output_dir / MANIFEST, format_manifest(rows))


def format_manifest(rows: Sequence[Row]) -> str:
    """Return a ``key<tab>sha256`` line for each row: the record of what a model was trained on."""
    return "".join(f"{row.key}\t{hash_row(row)}\n" for row in rows)
