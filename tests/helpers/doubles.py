"""Stand-ins that several test modules use: a pipeline that keeps its output, a disk that fails."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lorasmith.core import safetensors_io
from lorasmith.inference.pipeline import Pipeline

DISK_CALLS = (
    (os, "fsync"),
    (Path, "replace"),
    (Path, "write_text"),
    (safetensors_io, "save_file"),
)


class RecordingPipeline(Pipeline):
    """Keeps what it decodes, before it is rounded to bytes."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        self.decoded = super().decode(latents)
        return self.decoded


class FailingDisk:
    """Lets some calls that change the disk pass, then refuses all others."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        allowed: int,
        functions: Sequence[tuple[Any, str]] = DISK_CALLS,
    ) -> None:
        self.calls, self.allowed = 0, allowed
        for owner, name in functions:
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls > self.allowed:
                raise OSError(28, "No space left on device")
            return function(*args, **kwargs)

        return call
