"""One dataset for all LoRAs of a joint run that use the same images in the same way."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from lorasmith.config.train_config import TrainConfig
from lorasmith.training.data.dataset import TrainDataset


def build_shared_datasets(
    runs: Sequence[TrainConfig],
    build: Callable[[int], TrainDataset],
    depends_on_seed: bool,
) -> list[TrainDataset]:
    """Return a dataset for each run. Runs with equal data share one, each with its own order.

    Args:
        runs: settings of runs on one model.
        build: builds the dataset of the run with an index.
        depends_on_seed: whether the images themselves depend on the run's seed.
    """
    built: dict[int, TrainDataset] = {}
    datasets = []
    for index, run in enumerate(runs):
        key = _dataset_key(run, depends_on_seed)
        keys = ((other, _dataset_key(runs[other], depends_on_seed)) for other in built)
        match = next((other for other, other_key in keys if other_key == key), None)
        if match is None:
            built[index] = build(index)
            match = index
        dataset = built[match]
        sampler = dataset.batch_sampler.with_seed(run.train.seed)
        datasets.append(replace(dataset, batch_sampler=sampler))
    return datasets


def _dataset_key(run: TrainConfig, depends_on_seed: bool) -> tuple[object, ...]:
    """Return everything that a dataset depends on, except the order of its images."""
    train = run.train
    return (
        run.data,
        run.lora.gate,
        run.preserve.strength > 0,
        train.mixed_precision,
        train.images_per_step(),
        train.loss.masked,
        train.seed if depends_on_seed else None,
    )
