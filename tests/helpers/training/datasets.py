"""Folders of images, and training sets made of them."""

from pathlib import Path

import torch
from PIL import Image

from lorasmith.config.train_config import DataConfig, LossConfig, TrainerConfig
from lorasmith.core.batch_rng import BatchRng
from lorasmith.core.device import make_generator
from lorasmith.models.model import Model
from lorasmith.training.data.batch import Batch
from lorasmith.training.data.dataset import TrainDataset
from lorasmith.training.data.dataset_builder import build_dataset

CPU = torch.device("cpu")


def write(folder: Path, sizes: list[tuple[int, int]], caption: str = "picture {}, ink") -> Path:
    folder.mkdir(exist_ok=True)
    for number, (width, height) in enumerate(sizes):
        noise = torch.randint(256, (height, width, 3), generator=make_generator(5, number))
        Image.fromarray(noise.to(torch.uint8).numpy()).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(caption.format(number))
    return folder


def data_of(folder: Path, **more) -> DataConfig:
    return DataConfig(path=folder, tag="ink", **more)


def built(
    model: Model, data: DataConfig, masked: bool = True, precision="fp32", **more
) -> TrainDataset:
    train = TrainerConfig(batch_size=4, mixed_precision=precision, loss=LossConfig(masked=masked))
    return build_dataset(model, data, train, CPU, **more)


def take(dataset: TrainDataset, numbers: list[int], step: int = 0) -> Batch:
    return dataset.get_batch(
        torch.tensor(numbers), BatchRng(make_generator(0, 1, step), len(numbers))
    )


def moments(model: Model, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The VAE used by hand on uint8 ``[B, 3, H, W]``."""
    with torch.no_grad():
        posterior = model.vae.encode(pixels.float() / 127.5 - 1).latent_dist
    scale = model.vae.config.scaling_factor
    return posterior.mean * scale, posterior.std * scale


def pixels_of(folder: Path, numbers: list[int]) -> torch.Tensor:
    arrays = [torch.tensor(list(Image.open(folder / f"{n:02}.png").getdata())) for n in numbers]
    sizes = [Image.open(folder / f"{n:02}.png").size for n in numbers]
    return torch.stack(
        [a.view(h, w, 3).permute(2, 0, 1) for a, (w, h) in zip(arrays, sizes, strict=True)]
    )
