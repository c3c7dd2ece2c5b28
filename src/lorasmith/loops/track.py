"""Writing a run's figures: JSON lines always, TensorBoard when wanted."""

import json
import time
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from lorasmith.core.files import write_text

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Tracker:
    """Appends one JSON object per call to ``log.jsonl`` and mirrors numbers to TensorBoard."""

    def __init__(
        self, folder: Path, tensorboard: bool = True, enabled: bool = True, first: int = 0
    ) -> None:
        """Open the log.

        Args:
            folder: where ``log.jsonl`` and ``tensorboard/`` are.
            tensorboard: also write event files.
            enabled: False writes nothing.
            first: steps already done; lines of a crashed run beyond them are dropped.
        """
        self._board: SummaryWriter | None = None
        self._stream: TextIOWrapper | None = None
        if not enabled:
            return
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "log.jsonl"
        kept = [r for r in read_log(log) if r["step"] <= first] if log.is_file() else []
        write_text(log, "".join(json.dumps(record) + "\n" for record in kept))
        self._stream = log.open("a", encoding="utf-8")
        if tensorboard:
            self._board = _board(folder / "tensorboard", first)

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Write the figures of one step, with the time of day in seconds."""
        if self._stream is None:
            return
        record = {"step": step, "time": round(time.time(), 3), **figures}
        self._stream.write(json.dumps(record) + "\n")
        self._stream.flush()
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(name, value, step)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._stream is not None:
            self._stream.close()
        if self._board is not None:
            self._board.close()


def _board(folder: Path, first: int) -> "SummaryWriter":
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=first + 1)


def read_log(path: Path) -> list[dict[str, float]]:
    """Read a ``log.jsonl`` back; a last line cut off by a crash is left out."""
    records: list[dict[str, float]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
