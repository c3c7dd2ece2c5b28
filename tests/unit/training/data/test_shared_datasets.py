"""Images that several LoRAs share are encoded once, and each LoRA has its order."""

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.training.datasets import CPU, write
from lorasmith.config.train_config import TrainConfig
from lorasmith.models.load import load_model
from lorasmith.training.data.dataset import TrainDataset
from lorasmith.training.data.dataset_builder import build_dataset
from lorasmith.training.data.shared_datasets import build_shared_datasets


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write(tmp_path / "pictures", [(64, 64)] * 5 + [(64, 128)] * 4)


def settings(pictures: Path, **sections: Any) -> TrainConfig:
    tree = {
        "data": {"path": pictures, "tag": "ink", "validation_split": 0.2},
        "output": {"name": "n"},
    }
    return TrainConfig.model_validate(tree | sections)


def test_runs_that_differ_in_their_seeds_share_all_but_the_order(
    pictures: Path, tiny_model: Path
) -> None:
    model = load_model(tiny_model)
    runs = [
        settings(pictures, train={"seed": seed, "batch_size": 4}, lora={"rank": rank})
        for seed, rank in ((3, 4), (4, 8))
    ]
    separate = [build_dataset(model, run.data, run.train, CPU) for run in runs]
    built: list[int] = []

    def build(index: int) -> TrainDataset:
        built.append(index)
        return build_dataset(model, runs[index].data, runs[index].train, CPU)

    shared = build_shared_datasets(runs, build, depends_on_seed=False)
    assert built == [0]
    assert shared[0].latents is shared[1].latents
    assert shared[1].validation is not None
    for step in range(7):
        for dataset, expected in zip(shared, separate, strict=True):
            assert torch.equal(
                dataset.batch_sampler.get_batch(step), expected.batch_sampler.get_batch(step)
            )
    assert any(
        not torch.equal(
            shared[0].batch_sampler.get_batch(step), shared[1].batch_sampler.get_batch(step)
        )
        for step in range(7)
    )
    build_shared_datasets(runs, build, depends_on_seed=True)
    assert built == [0, 0, 1]


@pytest.mark.parametrize(
    "other",
    [{"lora": {"gate": "token"}}, {"preserve": {"strength": 1}}, {"train": {"batch_size": 2}},
     {"train": {"loss": {"masked": False}}}],
)  # fmt: skip
def test_runs_with_different_batches_share_no_dataset(
    pictures: Path, tiny_model: Path, other: dict[str, Any]
) -> None:
    run = settings(pictures)
    dataset = build_dataset(load_model(tiny_model), run.data, run.train, CPU)
    built: list[int] = []

    def build(index: int) -> TrainDataset:
        built.append(index)
        return dataset

    runs = [settings(pictures), settings(pictures, **other), settings(pictures)]
    build_shared_datasets(runs, build, depends_on_seed=False)
    assert built == [0, 1]
