"""Pictures that LoRAs trained at the same time have in common are prepared and kept once."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from lorasmith.config.train_config import TrainConfig
from lorasmith.training.data.dataset import TrainDataset


def build_shared_datasets(
    runs: Sequence[TrainConfig], build: Callable[[int], TrainDataset], seeded_pictures: bool
) -> list[TrainDataset]:
    """Return a training set for each run; of runs that use the same pictures alike, one set whose
    order alone is each one's own.

    Args:
        runs: their settings, of one model.
        build: prepares the set of the run with a number.
        seeded_pictures: whether the pictures themselves depend on the run's seed.
    """
    made: list[tuple[int, TrainDataset]] = []
    sets = []
    for number, run in enumerate(runs):
        alike = (own for first, own in made if _alike(run, runs[first], seeded_pictures))
        found = next(alike, None)
        if found is None:
            found = build(number)
            made.append((number, found))
        sets.append(replace(found, batch_sampler=found.batch_sampler.with_seed(run.train.seed)))
    return sets


def _alike(one: TrainConfig, other: TrainConfig, seeded_pictures: bool) -> bool:
    """Tell whether everything is the same that a set depends on, but for the order of its rows."""
    return _depends_on(one, seeded_pictures) == _depends_on(other, seeded_pictures)


def _depends_on(run: TrainConfig, seeded_pictures: bool) -> tuple[object, ...]:
    train = run.train
    return (
        run.data,
        run.lora.gate,
        run.preserve.strength > 0,
        train.mixed_precision,
        train.images_per_step(),
        train.loss.masked,
        train.seed if seeded_pictures else None,
    )
