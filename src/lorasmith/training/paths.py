"""Where a training run writes."""

import os
from dataclasses import dataclass
from pathlib import Path

from lorasmith.config.run import SUFFIX
from lorasmith.core.errors import OutputError
from lorasmith.core.files import writable_folder

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

    def claim(self) -> None:
        """Make sure that the run can write, and that no other run's files are in its way.

        Raises:
            OutputError: the name is taken, or the folder cannot be written.
        """
        taken = [path for path in (self.lora, self.folder) if path.exists()]
        if taken:
            raise OutputError(
                f"{taken[0]} exists already and is not written over; choose another --out or "
                "delete it"
            )
        writable_folder(self.lora.parent)
