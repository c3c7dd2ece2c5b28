"""The files of a training run: where they are, and whether a run may write or resume there."""

import os
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lorasmith.config.train_config import SUFFIX, DataConfig
from lorasmith.core.errors import ConfigError, OutputError
from lorasmith.core.file_lock import is_lock_file
from lorasmith.core.files import (
    ensure_writable_folder,
    remove_temporary_files,
    temporary_target,
    write_text,
)
from lorasmith.loops.checkpoint import CHECKPOINTS, PREVIEWS, list_checkpoints, remove_leftovers

WANDB, WANDB_ID = "wandb", "wandb-id"
"""The folder and the file of a run that logs to Weights & Biases."""
_FAILURE = "failed.txt"
_FILES = ("log.jsonl", "pictures.json", WANDB_ID, "report.html", _FAILURE)
_FOLDERS = (CHECKPOINTS, PREVIEWS, "tensorboard", WANDB)
LORA_FOLDER = Path("loras")
"""Folder of LoRAs whose name has no folder. Prompts find LoRAs by name in it."""


@dataclass(frozen=True)
class RunPaths:
    """The files of one run."""

    lora: Path
    """The trained LoRA, ``NAME.safetensors``."""
    folder: Path
    """The folder NAME beside it: settings, log, checkpoints and previews."""
    parent_folder: Path | None = None
    """Folder of the features run or sweep that this run is a part of."""
    shared_checkpoints: Path | None = None
    """Checkpoints of several LoRAs together, if this one has none of its own."""
    command: str = "train"
    """The command line command that resumes it."""

    @property
    def name(self) -> str:
        """The LoRA's name in prompts."""
        return self.lora.name.removesuffix(SUFFIX)

    @classmethod
    def from_name(cls, name: str) -> "RunPaths":
        """Return the paths for an output name: ``NAME`` without a folder goes into ``loras/``."""
        has_folder = any(separator in name for separator in ("/", os.sep))
        folder = (Path(name) if has_folder else LORA_FOLDER / name).expanduser()
        # with_suffix would cut off the end of a name like v1.5.
        return cls(folder.parent / f"{folder.name}{SUFFIX}", folder)

    @property
    def settings(self) -> Path:
        """The run's settings, the first file that it writes."""
        return self.folder / "run.toml"

    @property
    def log(self) -> Path:
        """Losses and other metrics of its steps, a JSON object per line."""
        return self.folder / "log.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of this run's own checkpoints."""
        return self.folder / CHECKPOINTS

    @property
    def resume_checkpoints(self) -> Path:
        """Folder of the checkpoints that ``--resume`` reads."""
        return self.shared_checkpoints or self.checkpoints

    @property
    def previews(self) -> Path:
        """Folder of the preview images."""
        return self.folder / PREVIEWS

    @property
    def best_lora(self) -> Path:
        """The LoRA at its lowest validation loss."""
        return self.folder / f"{self.name}-best{SUFFIX}"

    @property
    def summary(self) -> Path:
        """Facts about the finished run; see `RunSummary`."""
        return self.folder / "summary.json"

    @property
    def failure(self) -> Path:
        """Why this run was given up while the other runs of a sweep went on."""
        return self.folder / _FAILURE

    @property
    def report(self) -> Path:
        """The run's HTML page."""
        return self.folder / "report.html"

    @property
    def crops(self) -> Path:
        """How each training image was scaled and cropped."""
        return self.folder / "pictures.json"

    def lora_at_step(self, step: int) -> Path:
        """Return the file of the LoRA that is saved at a step."""
        return self.folder / f"{self.name}-{step:06d}{SUFFIX}"

    @property
    def resume_command(self) -> str:
        """The command line that resumes this run."""
        settings = (self.parent_folder or self.folder) / self.settings.name
        return f"lorasmith {self.command} {shlex.quote(str(settings))} --resume"

    def check_can_create(self) -> None:
        """Check that a new run can write here and that no other run's files are in the way.

        Files of a run without a checkpoint are not in the way: such a run may be started again.
        Nothing is removed yet.

        Raises:
            OutputError: the name is in use, or the folder cannot be written.
        """
        self.check_no_conflicts()
        ensure_writable_folder(self.lora.parent)

    def check_place(self) -> None:
        """Check that no file or link is where the run's folder or its LoRA will be.

        Raises:
            OutputError: there is one, or another run is going to write the same LoRA file.
        """
        if os.path.lexists(self.lora):
            raise OutputError(already_exists(self.lora))
        usual_folder = self.lora.with_name(self.name)
        if usual_folder != self.folder and (usual_folder / self.settings.name).exists():
            raise OutputError(
                f"{self.lora}: the run in {usual_folder} writes this file, also when it is "
                "resumed; choose another --out or delete it"
            )
        if os.path.lexists(self.folder) and (self.folder.is_symlink() or not self.folder.is_dir()):
            raise OutputError(already_exists(self.folder))

    def check_no_conflicts(self) -> None:
        """Check that no other run's files are in the way, without writing anything.

        Raises:
            OutputError: the name is in use.
        """
        self.check_place()
        saved = list_checkpoints(self.checkpoints)
        if saved:
            raise OutputError(
                f"{self.folder} holds an unfinished run ({saved[-1].name}); go on with "
                f"{self.resume_command}, or choose another --out or delete it"
            )
        unexpected = self._find_unexpected()
        if unexpected is not None:
            raise OutputError(already_exists(unexpected))

    def check_can_resume(self) -> None:
        """Check that there is a run to resume and that its folder can be written.

        Raises:
            OutputError: there is no checkpoint, or the folder cannot be written.
        """
        if not list_checkpoints(self.checkpoints):
            raise OutputError(
                f"{self.folder} holds no checkpoint to resume from; start without --resume"
            )
        ensure_writable_folder(self.folder)

    def prepare_folder(self, settings: str, is_new: bool, crops: str = "[]") -> None:
        """Write the run's settings and remove files that a killed process left half-written.

        Args:
            settings: TOML.
            is_new: also remove everything that an unfinished run of this name left.
            crops: JSON, how each image is scaled and cropped.

        Raises:
            OutputError: a file cannot be written or removed.
        """
        try:
            remove_leftovers(self.folder)
            remove_temporary_files(self.lora.parent, self.lora.name)
            for path in self._leftover_paths() if is_new else []:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            write_text(self.settings, settings)
            write_text(self.crops, crops)
        except OSError as error:
            raise cannot_write_folder(self.folder, error) from error

    def _find_unexpected(self) -> Path | None:
        """Return something in the folder that no unfinished run leaves, if there is any."""
        folders = {self.folder / name for name in _FOLDERS}
        files = {self.settings, *self._leftover_paths()} - folders
        return find_unexpected(
            self.folder,
            lambda path: (path in files and path.is_file()) or (path in folders and path.is_dir()),
        )

    def _leftover_paths(self) -> list[Path]:
        """Return what an unfinished run leaves, except its settings: they are replaced."""
        return [self.folder / name for name in (*_FILES, *_FOLDERS)]


def find_unexpected(folder: Path, is_expected: Callable[[Path], bool]) -> Path | None:
    """Return the first entry of a run's folder that is not expected there.

    Locks and temporary files are expected. A link or a file in the folder's place is itself
    unexpected.
    """
    if not os.path.lexists(folder):
        return None
    if folder.is_symlink() or not folder.is_dir():
        return folder
    unexpected = (
        path
        for path in folder.iterdir()
        if not (is_expected(path) or temporary_target(path) or is_lock_file(path))
    )
    return min(unexpected, default=None)


def check_outside_dataset(path: Path, data: DataConfig, field: str) -> None:
    """Check that an output path is not inside a dataset, where its files would count as data.

    Args:
        path: what will be written.
        data: names the folders of the images.
        field: the setting that names the path, for the message.

    Raises:
        ConfigError: it is in the folder of the training images or of the class images.
    """
    for folder in (data.path, data.reg_data_dir):
        if folder is not None and path.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(
                f"{field}: {path} lies among the pictures in {folder}; put it elsewhere"
            )


def already_exists(path: Path) -> str:
    """Return the message about something that is in the way of a new run."""
    return f"{path} already exists and is not overwritten; choose another --out or delete it"


def cannot_write_folder(folder: Path, error: OSError) -> OutputError:
    """Return the error about a run's folder that cannot be written."""
    return OutputError(f"cannot write to folder {folder}: {error.strerror or error}")
