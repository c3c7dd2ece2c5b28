"""What a run says while it goes on: a line of the log every few steps, and the progress bar."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lorasmith.config.run import TrainSettings
from lorasmith.loops.progress import Advance, progress_bar
from lorasmith.loops.track import Tracker
from lorasmith.training.step import Figures

_KEPT = 0.98
"""Share of its past that the bar's loss keeps with every step: losses of single steps differ
tenfold with the noise levels drawn."""


class Reporter:
    """Gathers the figures of steps and reads them from the device only when they are due."""

    def __init__(self, settings: TrainSettings, tracker: Tracker, advance: Advance) -> None:
        self._settings = settings
        self._tracker = tracker
        self._advance = advance
        self._pending: list[Figures] = []
        self._clock = time.perf_counter()
        self._smooth = Smoothed(_KEPT)
        self.done = 0
        """Steps taken."""

    def due(self, step: int) -> bool:
        """Tell whether figures are read after this step (from 0)."""
        done = step + 1
        return done % self._settings.log_every == 0 or done == self._settings.steps

    def step(self, step: int, figures: Figures, learning_rate: float) -> None:
        """Take in one step's figures; write the mean since the last line where one is due."""
        self.done = step + 1
        self._pending.append(figures)
        if not self.due(step):
            self._advance(1)
            return
        losses = [float(one.loss) for one in self._pending]
        norms = [float(one.grad_norm) for one in self._pending]
        now = time.perf_counter()
        speed = len(losses) * self._settings.batch_size / (now - self._clock)
        for loss in losses:
            self._smooth.add(loss)
        figures_now = {
            "loss": sum(losses) / len(losses),
            "grad_norm": max(norms),
            "lr": learning_rate,
            "images_per_s": speed,
        }
        self._tracker.log(step + 1, figures_now)
        note = f"loss {self._smooth.value:.4f}  lr {learning_rate:.1e}  {speed:.1f} images/s"
        self._advance(1, note)
        self._pending, self._clock = [], now


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


@contextmanager
def reporting(settings: TrainSettings, folder: Path) -> Iterator[Reporter]:
    """Open the run's log and its progress bar."""
    with (
        Tracker(folder, tensorboard=False) as tracker,
        progress_bar("training", settings.steps) as advance,
    ):
        yield Reporter(settings, tracker, advance)
