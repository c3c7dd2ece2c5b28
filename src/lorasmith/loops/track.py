"""Writing a run's figures: JSON lines always, TensorBoard when wanted."""

import json
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Tracker:
    """Appends one JSON object per call to ``log.jsonl`` and mirrors numbers to TensorBoard."""

    def __init__(self, folder: Path, tensorboard: bool = True, enabled: bool = True) -> None:
        self._board: SummaryWriter | None = None
        self._stream = None
        if not enabled:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._stream = (folder / "log.jsonl").open("a", encoding="utf-8")
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"))

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
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()
        if self._board is not None:
            self._board.close()


def read_log(path: Path) -> list[dict[str, float]]:
    """Read a ``log.jsonl`` back; a last line cut off by a crash is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
