"""How far a run is, as its checkpoints say."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any
from uuid import uuid4

_FILE_KEYS = {
    "step": "done", "base_loss": "base", "best_loss": "best",
    "validations_without_improvement": "waited", "run_id": "identity",
}  # fmt: skip
"""Fields that have another key in checkpoints; all others have their own name."""


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0
    """Optimizer steps taken."""
    seconds: float = 0.0
    """Time spent, in all parts of a resumed run together."""
    base_loss: float | None = None
    """The base model's validation loss."""
    best_loss: float | None = None
    """Lowest validation loss so far."""
    best_step: int | None = None
    """The step that it was measured at."""
    validations_without_improvement: int = 0
    """How often the validation loss was measured since then."""
    run_id: str = field(default_factory=lambda: uuid4().hex)
    """Shared by all files of a run and by no other's."""

    def forget_validation(self) -> None:
        """Drop losses that cannot be compared with those to come."""
        self.base_loss = self.best_loss = self.best_step = None
        self.validations_without_improvement = 0

    def to_json(self) -> dict[str, Any]:
        """Return the values as checkpoints hold them."""
        return {_FILE_KEYS.get(name, name): value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "Progress":
        """Read what `to_json` returned; unknown keys are ignored."""
        keys = {item.name: _FILE_KEYS.get(item.name, item.name) for item in fields(cls)}
        return cls(**{name: saved[key] for name, key in keys.items() if key in saved})
