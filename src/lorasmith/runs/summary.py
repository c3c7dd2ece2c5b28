"""The facts about a finished run, in ``summary.json`` of its folder."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from pydantic import FiniteFloat, TypeAdapter

from lorasmith.core.errors import DataError
from lorasmith.core.files import write_text
from lorasmith.core.regular_files import read_regular_file
from lorasmith.core.text.json_text import parse_json_object
from lorasmith.core.text.terminal import shorten

_OLD_KEYS = {"pictures": "images", "held_out": "validation_images", "stopped": "stop_reason"}
"""Keys that earlier versions wrote, and those of today."""

_MAX_BYTES = 2**20
"""Longer files are no summaries."""


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What is known about a finished run besides its log and settings."""

    name: str
    """The LoRA's name."""
    tag: str
    """Its trigger word."""
    family: str
    """Family of the base model, such as ``sd1``."""
    images: int
    """Training images."""
    validation_images: int = 0
    """Images that the validation loss is measured on."""
    steps: int
    """Optimizer steps taken."""
    effective_batch_size: int = 0
    """Images of an optimizer step, over accumulation steps and processes; 0 if not recorded."""
    seconds: FiniteFloat
    """Training time; of a resumed run the sum of all its parts."""
    parameters: int
    """Trainable parameters."""
    layers: int = 0
    """Layers with an adapter."""
    best_step: int | None = None
    """Step with the lowest validation loss; None if that was not measured."""
    stop_reason: str = "all steps done"
    """Why training ended, as a phrase."""
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
    def read(cls, path: Path) -> "RunSummary":
        """Read the file.

        Raises:
            DataError: it is damaged, lacks a key, or has an unknown one.
        """
        names = [field.name for field in fields(cls)]
        known = {**{name: name for name in names}, **_OLD_KEYS}
        try:
            facts = parse_json_object(read_regular_file(path, _MAX_BYTES).decode("utf-8"))
            values = {known[key]: value for key, value in facts.items()}
            # Once more as JSON, which refuses halves of characters: they cannot be written.
            return TypeAdapter(cls).validate_json(json.dumps(values))
        except (OSError, ValueError, KeyError) as error:
            reason = shorten(" ".join(str(error).split()), 200)
            raise DataError(
                f"{path}: not a run summary ({reason}); it has the keys {', '.join(names)}"
            ) from error
