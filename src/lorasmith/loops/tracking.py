"""Writing a run's figures: JSON lines always, TensorBoard and Weights & Biases when wanted."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from lorasmith.core.errors import ConfigError, OutputError
from lorasmith.core.files import write_text


class MetricsLogger(Protocol):
    """Something that figures are mirrored to."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the figures of one step."""

    def close(self) -> None:
        """Finish."""


@dataclass(frozen=True)
class WandbRun:
    """What Weights & Biases is told about a run."""

    project: str
    """The project there."""
    name: str
    """The run's name."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The run's settings."""


class Tracker:
    """Appends one JSON object per call to ``log.jsonl`` and mirrors numbers to boards."""

    def __init__(
        self,
        folder: Path,
        tensorboard: bool = True,
        enabled: bool = True,
        steps_done: int = 0,
        wandb: WandbRun | MetricsLogger | None = None,
    ) -> None:
        """Open the log.

        Args:
            folder: where ``log.jsonl``, ``tensorboard/`` and ``wandb/`` are.
            tensorboard: also write event files.
            enabled: False writes nothing.
            first: steps already done; lines of a crashed run beyond them are dropped.
            wandb: also send the figures to Weights & Biases, or show them on a board that is
                there already.

        Raises:
            ConfigError: wandb is wanted and not installed.
        """
        self._boards: list[MetricsLogger] = []
        self._stream: TextIOWrapper | None = None
        if not enabled:
            return
        folder.mkdir(parents=True, exist_ok=True)
        if wandb is not None:  # before anything is opened: it may not be installed
            board = _Wandb(folder, wandb) if isinstance(wandb, WandbRun) else wandb
            self._boards.append(board)
        log = folder / "log.jsonl"
        kept = [r for r in read_log(log) if r["step"] <= steps_done] if log.is_file() else []
        write_text(log, "".join(json.dumps(record) + "\n" for record in kept))
        self._stream = log.open("a", encoding="utf-8")
        if tensorboard:
            self._boards.append(_TensorBoard(folder / "tensorboard", steps_done))

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Write the figures of one step, with the time of day in seconds.

        Raises:
            OutputError: the disk refused.
        """
        if self._stream is None:
            return
        record = {"step": step, "time": round(time.time(), 3), **metrics}
        try:
            self._stream.write(json.dumps(record) + "\n")
            self._stream.flush()
        except OSError as error:
            raise OutputError(
                f"cannot write {self._stream.name}: {error.strerror or error}"
            ) from error
        for board in self._boards:
            board.log(step, metrics)

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
        for board in self._boards:
            board.close()


class _TensorBoard:
    def __init__(self, folder: Path, first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Events of steps beyond the first are those of a crashed run: hide them.
        self._writer: Any = SummaryWriter(str(folder), purge_step=first + 1)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """Weights & Biases: without a network or an account its own offline mode keeps the figures."""

    def __init__(self, folder: Path, run: WandbRun) -> None:
        wandb = _import_wandb()
        mode = None if _has_account() or os.environ.get("WANDB_MODE") else "offline"
        self._run = wandb.init(
            project=run.project, name=run.name, config=dict(run.settings), dir=str(folder),
            mode=mode, resume="allow", id=_wandb_id(folder),
        )  # fmt: skip

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        self._run.finish()


@contextmanager
def open_wandb(folder: Path, run: WandbRun) -> Iterator[MetricsLogger]:
    """Open a run at Weights & Biases that several logs share.

    Args:
        folder: where ``wandb/`` is.
        run: what is told about it.

    Raises:
        ConfigError: it is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    board = _Wandb(folder, run)
    try:
        yield board
    finally:
        board.close()


class ScopedLogger:
    """One log's share of a board: its figures have names of their own."""

    def __init__(self, board: MetricsLogger, name: str) -> None:
        self._board = board
        self._name = name

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Show the figures of one step, ``NAME/loss`` and so on."""
        self._board.log(step, {f"{self._name}/{key}": value for key, value in figures.items()})

    def close(self) -> None:
        """Leave the board to the others."""


def check_wandb() -> None:
    """Make sure that Weights & Biases can be used.

    Raises:
        ConfigError: it is not installed.
    """
    _import_wandb()


def _import_wandb() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(
            "track.wandb: the package wandb is missing; install it with "
            "pip install 'lorasmith[wandb]', or set it to false"
        ) from error
    return wandb


def _has_account() -> bool:
    """Tell whether wandb could log in without asking: it must never wait for an answer."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    with suppress(OSError):
        return "api.wandb.ai" in (Path.home() / ".netrc").read_text(encoding="utf-8")
    return False


def _wandb_id(folder: Path) -> str:
    """Return the run's identity there, the same when it is resumed."""
    file = folder / "wandb-id"
    with suppress(OSError):
        return file.read_text(encoding="utf-8").strip()
    identity = f"{folder.name[:40]}-{os.urandom(4).hex()}"
    write_text(file, identity + "\n")
    return identity


def read_log(path: Path) -> list[dict[str, float]]:
    """Read a ``log.jsonl`` back; a last line cut off by a crash is left out."""
    records: list[dict[str, float]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
