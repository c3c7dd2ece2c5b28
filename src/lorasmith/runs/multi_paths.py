"""The files of a run that trains several LoRAs: a features run or a sweep."""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lorasmith.config.train_data import DataConfig
from lorasmith.core.errors import OutputError
from lorasmith.core.files import ensure_writable_folder, write_text
from lorasmith.loops.checkpoint import CHECKPOINTS, list_checkpoints, remove_leftovers
from lorasmith.runs.paths import (
    WANDB,
    WANDB_ID,
    RunPaths,
    already_exists,
    cannot_write_folder,
    check_outside_dataset,
    find_unexpected,
)


@dataclass(frozen=True)
class MultiRunPaths:
    """The files of such a run: the folder ``NAME``, and in it a folder for each LoRA."""

    main: RunPaths
    """The run itself."""
    loras: tuple[RunPaths, ...]
    """Each LoRA."""
    groups: tuple[RunPaths, ...] = ()
    """Folders with the checkpoints of LoRAs that are trained at the same time, if those are not
    in the run's own folder or in each LoRA's."""

    @property
    def pages(self) -> tuple[Path, ...]:
        """The files that report on the run."""
        return (self.main.report,)

    @property
    def all_runs(self) -> tuple[RunPaths, ...]:
        """The run itself, each LoRA and each group."""
        return (self.main, *self.loras, *self.groups)

    def check_outside_datasets(self, datasets: Iterable[DataConfig]) -> None:
        """Check that the run's folder is not among its images.

        Args:
            datasets: name the folders of the images.

        Raises:
            ConfigError: the folder is inside a dataset.
        """
        for data in datasets:
            check_outside_dataset(self.main.folder, data, "output.name (--out)")

    def check_can_create(self) -> None:
        """Check that a new run can write here and that no other run's files are in the way.

        Raises:
            OutputError: a name is in use, or a folder cannot be written.
        """
        if os.path.lexists(self.main.lora):
            raise OutputError(already_exists(self.main.lora))
        if any(list_checkpoints(run.checkpoints) for run in self.all_runs):
            raise OutputError(
                f"{self.main.folder} already holds a run; go on with {self.main.resume_command}, "
                "or choose another --out or delete it"
            )
        unexpected = self._find_unexpected()
        if unexpected is not None:
            raise OutputError(already_exists(unexpected))
        for lora in self.loras:
            lora.check_no_conflicts()
        ensure_writable_folder(self.main.folder.parent)

    def check_can_resume(self) -> None:
        """Check that there is a run to resume.

        Raises:
            OutputError: there is none.
        """
        if not self.main.settings.is_file():
            raise OutputError(f"{self.main.folder} holds no run to resume; start without --resume")

    def prepare_folder(self, settings: str, is_new: bool = False) -> None:
        """Write the run's settings and remove files that a killed process left half-written.

        Args:
            settings: TOML.
            is_new: also remove what an unfinished run of this name logged to Weights & Biases.

        Raises:
            OutputError: a file cannot be written or removed.
        """
        folder = self.main.folder
        try:
            remove_leftovers(folder)
            if is_new:
                (folder / WANDB_ID).unlink(missing_ok=True)
                shutil.rmtree(folder / WANDB, ignore_errors=True)
            write_text(self.main.settings, settings)
        except OSError as error:
            raise cannot_write_folder(folder, error) from error

    def _find_unexpected(self) -> Path | None:
        """Return something in the folder that no unfinished run leaves, if there is any."""
        folder = self.main.folder
        names = (CHECKPOINTS, WANDB, WANDB_ID)
        expected = {self.main.settings, *self.pages, *(folder / name for name in names)}
        expected |= {run.folder for run in (*self.loras, *self.groups)}
        return find_unexpected(folder, expected.__contains__)
