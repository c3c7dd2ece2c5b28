"""What a run says while it goes on: a line of the log every few steps, and the progress bar."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from lorasmith.config.train_config import TrainConfig
from lorasmith.loops.progress import Advance, progress_bar
from lorasmith.loops.tracking import MetricsLogger, Tracker, WandbRun
from lorasmith.runs.paths import RunPaths
from lorasmith.training.train_step import StepMetrics

_KEPT = 0.98
"""Share of its past that the bar's loss keeps with every step: losses of single steps differ
tenfold with the noise levels drawn."""


class RunLogger:
    """Gathers the figures of steps and reads them from the device only when a line is due."""

    def __init__(self, tracker: Tracker, advance: Advance) -> None:
        self._tracker = tracker
        self._advance = advance
        self._pending: list[StepMetrics] = []
        self._pictures = 0
        self._clock = time.perf_counter()
        self._idle = 0.0
        self._smooth = Smoothed(_KEPT)

    def step(self, figures: StepMetrics, pictures: int) -> None:
        """Take in one step's figures."""
        self._pending.append(figures)
        self._pictures += pictures
        self._advance(1)

    def line(
        self,
        step: int,
        rates: Mapping[str, float],
        more: Mapping[str, float],
        busy: Callable[[], float | None] = lambda: None,
    ) -> None:
        """Write the means since the last line; this waits for the device.

        Args:
            step: steps done.
            rates: learning rates by their names in the log.
            more: further figures.
            busy: tells for how many seconds a GPU was at work on steps since it was last asked.
        """
        losses = _read([one.loss for one in self._pending])
        norms = _read([one.grad_norm for one in self._pending])
        kept = _read(
            [one.preservation_loss for one in self._pending if one.preservation_loss is not None]
        )
        worked, now = busy(), time.perf_counter()
        seconds = max(1e-9, now - self._clock - self._idle)
        speed = self._pictures / seconds
        for loss in losses:
            self._smooth.add(loss)
        figures = {"loss": sum(losses) / len(losses), "grad_norm": max(norms)}
        if kept:
            figures["preserve"] = sum(kept) / len(kept)
        if worked is not None:
            figures["gpu_idle"] = max(0.0, 1.0 - worked / seconds)
        self._tracker.log(step, {**figures, **rates, "images_per_s": speed, **more})
        note = f"loss {self._smooth.value:.4f}  lr {rates['lr']:.1e}  {speed:.1f} images/s"
        self._advance(0, note)
        self._pending, self._pictures, self._clock, self._idle = [], 0, now, 0.0

    def extra(self, step: int, figures: Mapping[str, float]) -> None:
        """Write a line with figures that no step has, such as the base model's."""
        if figures:
            self._tracker.log(step, dict(figures))

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Do not count the block as training time."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._idle += time.perf_counter() - started


def _read(values: Sequence[torch.Tensor]) -> list[float]:
    """Bring scalars from the device, all at once."""
    return torch.stack(list(values)).tolist() if values else []


class Smoothed:
    """An exponential average without the pull towards zero at its start (Kingma and Ba 2015)."""

    def __init__(self, kept: float) -> None:
        self._kept = kept
        self._sum = 0.0
        self._weight = 0.0

    def add(self, value: float) -> None:
        """Take in one value."""
        self._sum = self._kept * self._sum + (1.0 - self._kept) * value
        self._weight = self._kept * self._weight + (1.0 - self._kept)

    @property
    def value(self) -> float:
        """The average so far; 0 before the first value."""
        return self._sum / self._weight if self._weight else 0.0


def public_config(run: TrainConfig) -> dict[str, Any]:
    """Return the settings that a tracker on the network is told: none that are paths."""
    return run.model_dump(
        mode="json",
        exclude={
            "data": {"path", "reg_data_dir", "cache_dir"}, "model": {"path"}, "output": {"name"},
        },
    )  # fmt: skip


@contextmanager
def open_logger(
    run: TrainConfig,
    paths: RunPaths,
    first: int,
    main: bool,
    title: str | None = "training",
    shared: MetricsLogger | None = None,
) -> Iterator[RunLogger]:
    """Open the run's log, its boards and its progress bar.

    Args:
        run: the run's settings.
        paths: where it writes.
        first: steps done before.
        main: False says and writes nothing.
        title: of the progress bar; None shows none.
        shared: the board of a run at Weights & Biases that others write to as well; None opens one
            where the settings want it.
    """
    track = run.track
    wandb: WandbRun | MetricsLogger | None = shared
    if track.wandb and shared is None:
        wandb = WandbRun(track.wandb_project, paths.name, public_config(run))
    with (
        Tracker(paths.folder, track.tensorboard, main, first, wandb) as tracker,
        progress_bar(
            title or "", run.train.steps, first, enabled=main and title is not None
        ) as advance,
    ):
        yield RunLogger(tracker, advance)
