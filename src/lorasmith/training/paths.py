"""Where a training run writes."""

import glob
import os
from dataclasses import dataclass
from pathlib import Path

from lorasmith.config.run import SUFFIX
from lorasmith.core.errors import OutputError
from lorasmith.core.files import TEMPORARY_PREFIX, writable_folder, write_text

LORA_FOLDER = Path("loras")
"""Where a LoRA goes whose name has no folder, and where prompts look for it."""


@dataclass(frozen=True)
class RunPaths:
    """The files of one run."""

    lora: Path
    """The result, ``NAME.safetensors``."""
    folder: Path
    """Settings and log, in the folder NAME beside it."""

    @property
    def name(self) -> str:
        """The LoRA's name in prompts."""
        return self.folder.name

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

    def claim(self) -> None:
        """Make sure that the run can write, and that no other run's files are in its way.

        What a run that never got to its LoRA left behind is not in the way: such a run may
        simply be started again. Nothing is removed yet.

        Raises:
            OutputError: the name is taken, or the folder cannot be written.
        """
        taken = self.lora if os.path.lexists(self.lora) else self._first_strange()
        if taken is not None:
            raise OutputError(
                f"{taken} exists already and is not written over; choose another --out or delete it"
            )
        writable_folder(self.lora.parent)

    def begin(self, settings: str) -> None:
        """Put the settings of this run in the place of what an unfinished one left behind.

        Raises:
            OutputError: a file cannot be written or removed.
        """
        try:
            for path in self._leftovers():
                path.unlink(missing_ok=True)
            write_text(self.settings, settings)
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
        known = {self.settings, *self._leftovers()}
        strange = (p for p in self.folder.iterdir() if p not in known or not p.is_file())
        return min(strange, default=None)

    def _leftovers(self) -> list[Path]:
        """Return the files of an unfinished run but its settings, which are replaced in one go."""
        cut_off = [
            *self.folder.glob(f"{TEMPORARY_PREFIX}*"),
            *self.lora.parent.glob(f"{TEMPORARY_PREFIX}*-{glob.escape(self.lora.name)}"),
        ]
        return [self.log, *cut_off]
