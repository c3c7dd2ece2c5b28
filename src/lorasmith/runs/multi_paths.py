"""Where a run writes that trains several LoRAs."""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lorasmith.config.train_data import TrainData
from lorasmith.core.errors import OutputError
from lorasmith.core.files import TEMPORARY_PREFIX, writable_folder, write_text
from lorasmith.loops.checkpoint import CHECKPOINTS, checkpoints, remove_leftovers
from lorasmith.runs.paths import WANDB, WANDB_ID, RunPaths, keep_outside, taken


@dataclass(frozen=True)
class SeveralPaths:
    """The files of such a run: the folder ``NAME``, and in it a folder for each LoRA."""

    own: RunPaths
    """The run as a whole."""
    parts: tuple[RunPaths, ...]
    """Each LoRA's."""
    groups: tuple[RunPaths, ...] = ()
    """The checkpoints of those that are trained at the same time, where they are not the whole's
    or each one's own."""

    @property
    def pages(self) -> tuple[Path, ...]:
        """What is written about the whole."""
        return (self.own.report,)

    def claim(self, data: Iterable[TrainData]) -> None:
        """Make sure that a new run can write, and that no other run's files are in its way.

        Args:
            data: where the pictures are.

        Raises:
            OutputError: a name is taken, or a folder cannot be written.
            ConfigError: the folder lies among the pictures.
        """
        for one in data:
            keep_outside(self.own.folder, one, "output.name (--out)")
        if os.path.lexists(self.own.lora):
            raise OutputError(taken(self.own.lora))
        places = (self.own, *self.parts, *self.groups)
        unfinished = [place for place in places if checkpoints(place.checkpoints)]
        if unfinished:
            raise OutputError(
                f"{self.own.folder} holds a run already; go on with {self.own.how_to_resume}, or "
                "choose another --out or delete it"
            )
        strange = self._first_strange()
        if strange is not None:
            raise OutputError(taken(strange))
        for part in self.parts:
            part.refuse_taken()
        writable_folder(self.own.folder.parent)

    def claim_again(self) -> None:
        """Make sure that there is a run to go on with.

        Raises:
            OutputError: there is none.
        """
        if not self.own.settings.is_file():
            raise OutputError(
                f"{self.own.folder} holds no run to go on with; start without --resume"
            )

    def begin(self, settings: str, new: bool = False) -> None:
        """Put the run's settings in place; remove what killed processes left half written.

        Args:
            settings: TOML.
            new: also remove what an unfinished run of this name told Weights & Biases.

        Raises:
            OutputError: a file cannot be written or removed.
        """
        try:
            remove_leftovers(self.own.folder)
            if new:
                (self.own.folder / WANDB_ID).unlink(missing_ok=True)
                shutil.rmtree(self.own.folder / WANDB, ignore_errors=True)
            write_text(self.own.settings, settings)
        except OSError as error:
            raise OutputError(
                f"cannot write to folder {self.own.folder}: {error.strerror or error}"
            ) from error

    def _first_strange(self) -> Path | None:
        """Return something in the folder that no unfinished run leaves, if there is any."""
        folder = self.own.folder
        if not os.path.lexists(folder):
            return None
        if folder.is_symlink() or not folder.is_dir():
            return folder
        known = {self.own.settings, *self.pages, folder / CHECKPOINTS}
        known |= {place.folder for place in (*self.parts, *self.groups)}
        known |= {folder / WANDB, folder / WANDB_ID}
        found = (p for p in folder.iterdir() if p not in known)
        return min((p for p in found if not p.name.startswith(TEMPORARY_PREFIX)), default=None)
