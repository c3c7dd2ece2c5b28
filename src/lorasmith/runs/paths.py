"""Where a training run writes."""

import glob
import os
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from lorasmith.config.train_config import SUFFIX, TrainData
from lorasmith.core.errors import ConfigError, OutputError
from lorasmith.core.files import TEMPORARY_PREFIX, writable_folder, write_text
from lorasmith.loops.checkpoint import CHECKPOINTS, checkpoints, remove_leftovers

WANDB, WANDB_ID = "wandb", "wandb-id"
"""The folder and the file of a run that goes to Weights & Biases."""
_FAILURE = "failed.txt"
_FILES = ("log.jsonl", "pictures.json", WANDB_ID, "report.html", _FAILURE)
_FOLDERS = (CHECKPOINTS, "previews", "tensorboard", WANDB)
LORA_FOLDER = Path("loras")
"""Where a LoRA goes whose name has no folder, and where prompts look for it."""


@dataclass(frozen=True)
class RunPaths:
    """The files of one run."""

    lora: Path
    """The result, ``NAME.safetensors``."""
    folder: Path
    """Settings, log, checkpoints and previews, in the folder NAME beside it."""
    whole: Path | None = None
    """The folder of the run of several LoRAs that this is a part of."""
    shared: Path | None = None
    """The checkpoints of several LoRAs together, where this one has none of its own."""
    command: str = "train"
    """The command that goes on with it."""

    @property
    def name(self) -> str:
        """The LoRA's name in prompts."""
        return self.lora.name.removesuffix(SUFFIX)

    @classmethod
    def of(cls, name: str) -> "RunPaths":
        """Return the paths for an output name: ``NAME`` alone goes into ``loras/``."""
        bare = not any(separator in name for separator in ("/", os.sep))
        folder = (LORA_FOLDER / name if bare else Path(name)).expanduser()
        # with_suffix would take the end off a name like v1.5.
        return cls(folder.parent / f"{folder.name}{SUFFIX}", folder)

    @property
    def settings(self) -> Path:
        """The run's settings, the first file that it writes."""
        return self.folder / "run.toml"

    @property
    def log(self) -> Path:
        """The figures of its steps."""
        return self.folder / "log.jsonl"

    @property
    def checkpoints(self) -> Path:
        """This run's own checkpoints."""
        return self.folder / CHECKPOINTS

    @property
    def saved(self) -> Path:
        """What `--resume` goes on from."""
        return self.shared or self.checkpoints

    @property
    def previews(self) -> Path:
        """Pictures drawn on the way."""
        return self.folder / "previews"

    @property
    def best(self) -> Path:
        """The LoRA as it was at the lowest held-out loss."""
        return self.folder / f"{self.name}-best{SUFFIX}"

    @property
    def summary(self) -> Path:
        """What a finished run says about itself."""
        return self.folder / "summary.json"

    @property
    def failure(self) -> Path:
        """Why a run was given up while others went on."""
        return self.folder / _FAILURE

    @property
    def report(self) -> Path:
        """The run on one page."""
        return self.folder / "report.html"

    def at_step(self, step: int) -> Path:
        """Return the file of the LoRA as it was at a step."""
        return self.folder / f"{self.name}-{step:06d}{SUFFIX}"

    @property
    def how_to_resume(self) -> str:
        """The command that goes on with this run."""
        settings = self.settings if self.whole is None else self.whole / self.settings.name
        return f"lorasmith {self.command} {shlex.quote(str(settings))} --resume"

    def claim(self) -> None:
        """Make sure that a new run can write, and that no other run's files are in its way.

        What a run that never got to a checkpoint left behind is not in the way: such a run may
        simply be started again. Nothing is removed yet.

        Raises:
            OutputError: the name is taken, or the folder cannot be written.
        """
        self.refuse_taken()
        writable_folder(self.lora.parent)

    def refuse_taken(self) -> None:
        """Make sure that no other run's files are in the way; nothing is written to find out.

        Raises:
            OutputError: the name is taken.
        """
        if os.path.lexists(self.lora):
            raise OutputError(taken(self.lora))
        there = checkpoints(self.checkpoints)
        if there:
            raise OutputError(
                f"{self.folder} holds an unfinished run ({there[-1].name}); go on with "
                f"{self.how_to_resume}, or choose another --out or delete it"
            )
        strange = self._first_strange()
        if strange is not None:
            raise OutputError(taken(strange))

    def claim_again(self) -> None:
        """Make sure that there is a run to go on with.

        Raises:
            OutputError: there is none, or its folder cannot be written.
        """
        if not checkpoints(self.checkpoints):
            raise OutputError(
                f"{self.folder} holds no checkpoint to resume from; start without --resume"
            )
        writable_folder(self.folder)

    @property
    def pictures(self) -> Path:
        """How each picture was scaled and cropped."""
        return self.folder / "pictures.json"

    def begin(self, settings: str, new: bool, pictures: str = "[]") -> None:
        """Put this run's settings in place; remove what killed processes left half written.

        Args:
            settings: TOML.
            new: also remove everything that an unfinished run of this name left behind.
            pictures: JSON about what was done to the pictures.

        Raises:
            OutputError: a file cannot be written or removed.
        """
        try:
            remove_leftovers(self.folder)
            for path in self._cut_off():
                path.unlink(missing_ok=True)
            for path in self._leftovers() if new else []:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            write_text(self.settings, settings)
            write_text(self.pictures, pictures)
        except OSError as error:
            raise OutputError(
                f"cannot write to folder {self.folder}: {error.strerror or error}"
            ) from error

    def _first_strange(self) -> Path | None:
        """Return something at the folder's place that no unfinished run leaves, if there is any."""
        if not os.path.lexists(self.folder):
            return None
        if self.folder.is_symlink() or not self.folder.is_dir():
            return self.folder
        folders = {self.folder / name for name in _FOLDERS}
        files = {self.settings, *self._leftovers(), *self._cut_off()} - folders
        strange = (
            p
            for p in self.folder.iterdir()
            if not (p in files and p.is_file())
            and not (p in folders and p.is_dir())
            and not p.name.startswith(TEMPORARY_PREFIX)
        )
        return min(strange, default=None)

    def _cut_off(self) -> list[Path]:
        """Return half-written LoRA files beside the folder."""
        return list(self.lora.parent.glob(f"{TEMPORARY_PREFIX}*-{glob.escape(self.lora.name)}"))

    def _leftovers(self) -> list[Path]:
        """Return what an unfinished run leaves but its settings, which are replaced in one go."""
        return [self.folder / name for name in (*_FILES, *_FOLDERS)]


def keep_outside(place: Path, data: TrainData, field: str) -> None:
    """Refuse to write among the user's pictures: what lies there later counts as part of them.

    Args:
        place: where something shall be written.
        data: says where the pictures are.
        field: the setting that names the place, for the message.

    Raises:
        ConfigError: it lies in the folder of the pictures or of the class pictures.
    """
    for pictures in (data.path, data.class_path):
        if pictures is not None and place.resolve().is_relative_to(pictures.resolve()):
            raise ConfigError(
                f"{field}: {place} lies among the pictures in {pictures}; put it elsewhere"
            )


def taken(path: Path) -> str:
    """Say that something is in the way of a new run."""
    return f"{path} exists already and is not written over; choose another --out or delete it"
