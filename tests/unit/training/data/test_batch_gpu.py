"""On a GPU, taking a batch must not make the host wait for the device."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from helpers.tiny_models import open_model
from helpers.training.datasets import data_of, write
from lorasmith.config.train_config import TrainerConfig
from lorasmith.core.batch_rng import BatchRng
from lorasmith.core.device import make_generator
from lorasmith.training.data.dataset import TrainDataset
from lorasmith.training.data.dataset_builder import build_dataset

pytestmark = pytest.mark.gpu


@pytest.fixture
def waiting_fails() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "more",
    [{}, {"flip_aug": True, "caption_dropout_rate": 0.5}, {"crop": "random", "color_jitter": 0.1}],
    ids=["plain", "flips and dropout", "crops and colours"],
)
@pytest.mark.parametrize("family", ["tiny_model", "tiny_sdxl"])
def test_batches_do_not_wait_for_the_device(
    family: str,
    more: dict,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    waiting_fails: None,
) -> None:
    device = torch.device("cuda")
    model = open_model(request.getfixturevalue(family))
    folder = write(tmp_path / "p", [(96, 64)] * 4)
    dataset = build_dataset(model, data_of(folder, **more), TrainerConfig(), device)
    take(dataset, device)
    torch.cuda.set_sync_debug_mode("error")
    batch = take(dataset, device)
    torch.cuda.set_sync_debug_mode("default")
    assert batch.latents.device.type == "cuda"
    assert bool(batch.latents.isfinite().all())


def take(dataset: TrainDataset, device: torch.device):
    rng = BatchRng(make_generator(0, 1, device=device), 4)
    return dataset.get_batch(torch.tensor([3, 1, 0, 2]), rng)
