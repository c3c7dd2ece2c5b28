"""Run folders and LoRA files as they were written on one day, packed: how they are opened."""

import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

OLD = Path(__file__).parent / "old"
PACKED, SETTINGS = OLD / "packed", OLD / "settings"


@dataclass(frozen=True)
class OldRun:
    """A run that was stopped: `RUNS` of that day had it, and its straight result is stored."""

    command: str
    name: str
    """Of the run in `RUNS`, which also says what its files are."""
    stop: int
    """Which move of an optimizer Ctrl-C came with."""


STOPPED: Mapping[str, OldRun] = {
    "single": OldRun("train", "everything", 3),
    "staged": OldRun("train", "staged", 4),
    "joint": OldRun("train", "joint", 3),
    "sweep": OldRun("sweep", "sweep", 7),
}
OUT = "loras/golden"
"""Where each of them lies in the working folder, which also has its model and its pictures."""

LORAS = ("plain", "gated", "compensated", "text")
"""LoRA files of runs that ended."""


def unpack(name: str, into: Path) -> None:
    """Unpack a stored folder."""
    with tarfile.open(PACKED / f"{name}.tar.xz") as packed:
        packed.extractall(into, filter="data")
