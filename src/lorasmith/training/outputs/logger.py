"""The log of a run, a line every few steps, and its progress bar."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from lorasmith.loops.progress import Advance, progress_bar
from lorasmith.loops.tracking import MetricsLogger, Tracker, WandbRun
from lorasmith.training.callbacks import Callback
from lorasmith.training.state import TrainerState
from lorasmith.training.step.train_step import StepMetrics

_SMOOTHING = 0.98
"""Weight of the past in the progress bar's loss: losses of single steps differ tenfold with the
noise levels drawn."""
_PRIVATE_SETTINGS = (
    "data.path", "data.reg_data_dir", "data.cache_dir", "model.path", "output.name",
)  # fmt: skip


class RunLogger(Callback):
    """Collects metrics of steps and reads them from the device only when a line is due."""

    def __init__(self, tracker: Tracker, advance: Advance) -> None:
        """Create a logger.

        Args:
            tracker: where lines go.
            advance: moves the progress bar and sets its note.
        """
        self._tracker = tracker
        self._advance = advance
        self._metrics: list[StepMetrics] = []
        self._validation: Mapping[str, float] = {}
        self._smoothed_loss = EmaMeter(_SMOOTHING)

    def on_validation_end(self, state: TrainerState, metrics: Mapping[str, float]) -> None:
        """Keep validation losses for the next line; those of the base model have their own."""
        if state.step == 0:
            self._tracker.log(0, dict(metrics))
        else:
            self._validation = metrics

    def on_step_end(self, state: TrainerState, metrics: StepMetrics) -> None:
        """Collect a step's metrics; write a line if one is due."""
        self._metrics.append(metrics)
        self._advance(1)
        if state.scheduled_actions.log:
            gpu_seconds = state.gpu_timer.pop_seconds()
            self.write_line(state.step, state.learning_rates(), gpu_seconds)

    def write_line(
        self, step: int, learning_rates: Mapping[str, float], gpu_seconds: float | None = None
    ) -> None:
        """Write the means since the last line; this waits for the device.

        Args:
            step: steps done.
            learning_rates: by their names in the log.
            gpu_seconds: for how long a GPU worked on these steps, if known.
        """
        losses = _read_scalars([metrics.loss for metrics in self._metrics])
        norms = _read_scalars([metrics.grad_norm for metrics in self._metrics])
        preservation = _read_scalars(
            [m.preservation_loss for m in self._metrics if m.preservation_loss is not None]
        )
        seconds = max(1e-9, sum(metrics.seconds for metrics in self._metrics))
        images_per_second = sum(metrics.images for metrics in self._metrics) / seconds
        for loss in losses:
            self._smoothed_loss.add(loss)
        values = {"loss": sum(losses) / len(losses), "grad_norm": max(norms)}
        if preservation:
            values["preserve"] = sum(preservation) / len(preservation)
        if gpu_seconds is not None:
            values["gpu_idle"] = max(0.0, 1.0 - gpu_seconds / seconds)
        speed = {"images_per_s": images_per_second}
        self._tracker.log(step, {**values, **learning_rates, **speed, **self._validation})
        loss, rate = self._smoothed_loss.value, learning_rates["lr"]
        self._advance(0, f"loss {loss:.4f}  lr {rate:.1e}  {images_per_second:.1f} images/s")
        self._metrics, self._validation = [], {}


def _read_scalars(values: Sequence[torch.Tensor]) -> list[float]:
    """Read scalars from the device, all at once."""
    return torch.stack(list(values)).tolist() if values else []


class EmaMeter:
    """An exponential average without the pull towards zero at its start (Kingma and Ba 2015)."""

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._sum = 0.0
        self._weight = 0.0

    def add(self, value: float) -> None:
        """Add a value."""
        self._sum = self._decay * self._sum + (1.0 - self._decay) * value
        self._weight = self._decay * self._weight + (1.0 - self._decay)

    @property
    def value(self) -> float:
        """The average so far; 0 before the first value."""
        return self._sum / self._weight if self._weight else 0.0


def public_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a tracker on the network may know: none that are paths.

    Args:
        settings: all settings of a run, as JSON.
    """
    return _without(settings, "")


def _without(settings: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {
        key: _without(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in settings.items()
        if prefix + key not in _PRIVATE_SETTINGS
    }


@contextmanager
def open_logger(
    state: TrainerState, title: str | None = "training", shared_wandb: MetricsLogger | None = None
) -> Iterator[RunLogger]:
    """Open a run's log, its trackers and its progress bar.

    Args:
        state: the run.
        title: of the progress bar; None shows none.
        shared_wandb: a run at Weights & Biases that several LoRAs share; None opens one if the
            settings ask for it.
    """
    track, first_step, is_main = state.track, state.step, state.is_main
    wandb: WandbRun | MetricsLogger | None = shared_wandb
    if track.wandb and shared_wandb is None:
        wandb = WandbRun(track.wandb_project, state.paths.name, public_config(state.settings))
    has_bar = is_main and title is not None
    with (
        Tracker(state.paths.folder, track.tensorboard, is_main, first_step, wandb) as tracker,
        progress_bar(title or "", state.total_steps, first_step, enabled=has_bar) as advance,
    ):
        yield RunLogger(tracker, advance)
