"""Metrics of a run: JSON lines always, TensorBoard and Weights & Biases if enabled."""

import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from lorasmith.core.errors import ConfigError, LorasmithWarning, OutputError
from lorasmith.core.files import write_text
from lorasmith.core.regular_files import read_regular_file
from lorasmith.core.text.json_text import parse_json_object


class MetricsLogger(Protocol):
    """Receives the metrics of each step."""

    title: str
    """What warnings call it."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of one step."""

    def close(self) -> None:
        """Finish."""


_OLD_METRICS = {
    "held_out": "validation_loss",
    "held_out_base": "validation_loss_base",
    "held_out_gain": "validation_loss_gain",
}
"""Names of metrics that earlier versions wrote, and those of today."""


@dataclass(frozen=True)
class WandbRun:
    """A run as Weights & Biases shows it."""

    project: str
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


class Tracker:
    """Appends one JSON object per step to ``log.jsonl`` and mirrors metrics to other loggers."""

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
            folder: of ``log.jsonl``, ``tensorboard/`` and ``wandb/``.
            tensorboard: also write event files.
            enabled: False writes nothing.
            steps_done: later lines, of a crashed run, are dropped.
            wandb: also send the metrics to Weights & Biases, or to a logger that is open already.

        Raises:
            ConfigError: wandb is not installed.
        """
        self._folder = folder
        self._loggers: list[MetricsLogger] = []
        self._stream: TextIOWrapper | None = None
        if not enabled:
            return
        folder.mkdir(parents=True, exist_ok=True)
        if wandb is not None:  # first, because it may not be installed
            logger = _WandbLogger(folder, wandb) if isinstance(wandb, WandbRun) else wandb
            self._loggers.append(logger)
        log = folder / "log.jsonl"
        records = (
            [record for record in read_log(log) if record["step"] <= steps_done]
            if log.is_file()
            else []
        )
        write_text(log, "".join(json.dumps(record) + "\n" for record in records))
        self._stream = log.open("a", encoding="utf-8")
        if tensorboard:
            self._loggers.append(_TensorBoardLogger(folder / "tensorboard", steps_done))

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Write the metrics of one step, with the Unix time in seconds.

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
        self._mirror(lambda logger: logger.log(step, metrics))

    def _mirror(self, call: Callable[[MetricsLogger], None]) -> None:
        """Call the other loggers; one that fails is given up, with a warning."""
        for logger in list(self._loggers):
            try:
                call(logger)
            except Exception as error:  # noqa: BLE001 (the log has it all: no reason to end a run)
                self._loggers.remove(logger)
                _warn_of_failure(logger, self._folder, error)

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
        self._mirror(lambda logger: logger.close())


class _TensorBoardLogger:
    title = "TensorBoard"

    def __init__(self, folder: Path, steps_done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Hide the later events of a crashed run.
        self._writer: Any = SummaryWriter(str(folder), purge_step=steps_done + 1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WandbLogger:
    """Weights & Biases; without an account its offline mode stores the metrics."""

    title = "Weights & Biases"

    def __init__(self, folder: Path, run: WandbRun) -> None:
        wandb = _import_wandb()
        mode = None if _has_account() or os.environ.get("WANDB_MODE") else "offline"
        self._run = wandb.init(
            project=run.project, name=run.name, config=dict(run.settings), dir=str(folder),
            mode=mode, resume="allow", id=_wandb_id(folder),
        )  # fmt: skip

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


@contextmanager
def open_wandb(folder: Path, run: WandbRun) -> Iterator[MetricsLogger]:
    """Open a run at Weights & Biases that several trackers share.

    Args:
        folder: of ``wandb/``.
        run: its name and settings.

    Raises:
        ConfigError: wandb is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    logger = _WandbLogger(folder, run)
    try:
        yield logger
    finally:
        try:
            logger.close()
        except Exception as error:  # noqa: BLE001 (results are still to be written)
            _warn_of_failure(logger, folder, error)


def _warn_of_failure(logger: MetricsLogger, folder: Path, error: Exception) -> None:
    warnings.warn(
        f"{folder}: {logger.title} gave up: {type(error).__name__}: {error}; the run goes on "
        "without it",
        LorasmithWarning,
        stacklevel=3,
    )


class ScopedLogger:
    """A logger that prefixes the names of its metrics."""

    title = "Weights & Biases"

    def __init__(self, logger: MetricsLogger, name: str) -> None:
        self._logger = logger
        self._name = name

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of one step as ``NAME/loss`` and so on."""
        self._logger.log(step, {f"{self._name}/{key}": value for key, value in metrics.items()})

    def close(self) -> None:
        """Leave the shared logger open."""


def check_wandb() -> None:
    """Check that Weights & Biases is installed.

    Raises:
        ConfigError: it is not.
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
    """Tell whether wandb can log in without asking; it must never wait for an answer."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    with suppress(OSError):
        return "api.wandb.ai" in (Path.home() / ".netrc").read_text(encoding="utf-8")
    return False


def _wandb_id(folder: Path) -> str:
    """Return the run's id at Weights & Biases, the same after a resume."""
    file = folder / "wandb-id"
    with suppress(OSError):
        return read_regular_file(file, 1000).decode("ascii", errors="replace").strip()
    run_id = f"{folder.name[:40]}-{os.urandom(4).hex()}"
    write_text(file, run_id + "\n")
    return run_id


def read_log(path: Path) -> list[dict[str, float]]:
    """Read a ``log.jsonl`` back up to the first damaged line, such as one cut off by a crash.

    Metrics of earlier versions have their names of today.
    """
    records: list[dict[str, float]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = parse_json_object(line)
        except ValueError:
            break
        step = record.get("step", -1)
        if not all(map(_is_metric, (step, *record.values()))) or not 0 <= step <= _LAST_STEP:
            break
        records.append({_OLD_METRICS.get(name, name): value for name, value in record.items()})
    return records


_LAST_STEP = 2**53


def _is_metric(value: Any) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) <= _LAST_STEP
    return isinstance(value, float)
