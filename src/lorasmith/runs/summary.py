"""What a finished run says about itself, in ``summary.json`` of its folder."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lorasmith.core.errors import DataError
from lorasmith.core.files import write_text


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The facts of a run that its log and settings do not have."""

    name: str
    """The LoRA's name."""
    tag: str
    """The words that call it."""
    family: str
    """Family of its model, such as ``sd1``."""
    pictures: int
    """Pictures that were trained on."""
    held_out: int = 0
    """Pictures kept out for the held-out loss."""
    steps: int
    """Optimizer steps taken."""
    seconds: float
    """Time from start to end, all parts of a resumed run together."""
    parameters: int
    """Numbers that were trained."""
    layers: int = 0
    """Layers that carry an adapter."""
    best_step: int | None = None
    """Step with the lowest held-out loss, where that was measured."""
    stopped: str = "all steps done"
    """Why the training ended, in words."""
    sha256: str = ""
    """``sshs_model_hash`` of the LoRA file."""
    file: str = ""
    """Name of the LoRA file, without folders."""
    device: str = ""
    """Where it was trained: ``cpu`` or the GPU's name."""
    model: str = ""
    """Name of the base model, without folders."""

    def write(self, path: Path) -> None:
        """Write the file atomically."""
        write_text(path, json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Summary":
        """Read the file back.

        Raises:
            DataError: it is damaged, lacks a fact, or has one that is not known.
        """
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return cls(**values)
        except (OSError, ValueError, TypeError) as error:
            known = ", ".join(field.name for field in fields(cls))
            raise DataError(
                f"{path}: not a run's summary ({error}); it has the keys {known}"
            ) from error
