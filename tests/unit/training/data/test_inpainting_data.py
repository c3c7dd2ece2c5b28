"""Inputs of inpainting models beside the noisy latents."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from helpers.tiny_models import open_model
from helpers.training.datasets import CPU, data_of, pixels_of, write
from lorasmith.config.train_config import DataConfig, LossConfig, TrainerConfig
from lorasmith.core.batch_rng import BatchRng
from lorasmith.core.device import make_generator
from lorasmith.models.model import Model
from lorasmith.training.data.batch import Batch, concat_batches
from lorasmith.training.data.dataset import TrainDataset
from lorasmith.training.data.dataset_builder import build_dataset
from lorasmith.training.losses import build_noise_process, sample_noise
from lorasmith.training.step.train_step import Denoiser

Tiny = Callable[[str], Path]


@pytest.fixture(scope="module")
def model(tiny_of: Tiny) -> Model:
    return open_model(tiny_of("sd1-inpainting"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six square images; the first two have masks, which are not symmetric."""
    folder = write(tmp_path / "p", [(64, 64)] * 6)
    for index in range(2):
        mask = Image.new("L", (64, 64), 0)
        ImageDraw.Draw(mask).ellipse((3, 9 + 7 * index, 33, 57), fill=255)
        mask.save(folder / f"{index:02}.mask.png")
    return folder


def built(model: Model, data: DataConfig, seed: int = 0) -> TrainDataset:
    train = TrainerConfig(batch_size=4, seed=seed, loss=LossConfig(masked=False))
    return build_dataset(model, data, train, CPU)


def surroundings(dataset: TrainDataset, numbers: list[int], step: int = 0) -> torch.Tensor:
    batch = dataset.get_batch(
        torch.tensor(numbers), BatchRng(make_generator(0, 1, step), len(numbers))
    )
    assert batch.inpaint_cond is not None
    assert batch.inpaint_cond.shape == (len(numbers), 5, 8, 8)
    return batch.inpaint_cond


def given_masks(folder: Path, numbers: list[int]) -> torch.Tensor:
    arrays = [np.asarray(Image.open(folder / f"{n:02}.mask.png")).copy() for n in numbers]
    return torch.stack([torch.from_numpy(array).float() / 255.0 for array in arrays]).unsqueeze(1)


def by_hand(
    model: Model, folder: Path, masks: torch.Tensor, numbers: list[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The mask, and mean and deviation around it, in diffusers' words."""
    pixels = pixels_of(folder, numbers).float() / 127.5 - 1
    with torch.no_grad():
        posterior = model.vae.encode(pixels * (masks < 0.5)).latent_dist
    scale = model.vae.config.scaling_factor
    return F.interpolate(masks, size=(8, 8)), posterior.mean * scale, posterior.std * scale


@pytest.mark.parametrize(
    "more", [{}, {"num_random_masks": 0}], ids=["encoded once", "in every step"]
)
def test_given_masks_are_used(model: Model, folder: Path, more: dict[str, Any]) -> None:
    dataset = built(model, data_of(folder, **more))
    mask, mean, deviation = by_hand(model, folder, given_masks(folder, [1, 0]), [1, 0])
    samples = torch.stack([surroundings(dataset, [1, 0], step) for step in range(60)])
    assert torch.equal(samples[:, :, :1], mask.expand(60, -1, -1, -1, -1))
    error = (samples[:, :, 1:].mean(dim=0) - mean) / deviation * 60**0.5
    assert abs(float(error.mean())) < 0.3
    assert float(error.std()) == pytest.approx(1.0, abs=0.2)


def test_flipped_images_have_flipped_masks(model: Model, folder: Path) -> None:
    dataset = built(model, data_of(folder, flip_aug=True))
    mask = given_masks(folder, [0])
    expected = [F.interpolate(image, size=(8, 8)) for image in (mask, mask.flip(-1))]
    sides = set()
    for step in range(20):
        result = surroundings(dataset, [0], step)[:, :1]
        sides |= {side for side in (0, 1) if torch.equal(result, expected[side])}
    assert sides == {0, 1}


def test_random_masks_are_a_few_of_each_image_and_the_seeds(model: Model, folder: Path) -> None:
    dataset = built(model, data_of(folder, num_random_masks=3))
    drawn = [surroundings(dataset, [4, 5], step) for step in range(30)]
    masks = [
        {tuple(batch_masks[row, 0].flatten().tolist()) for batch_masks in drawn} for row in range(2)
    ]
    assert [len(mask) for mask in masks] == [3, 3]
    assert masks[0] != masks[1]
    repeated = built(model, data_of(folder, num_random_masks=3))
    assert torch.equal(surroundings(repeated, [4, 5], 7), drawn[7])
    other = built(model, data_of(folder, num_random_masks=3), seed=1)
    assert not any(torch.equal(surroundings(other, [4, 5], k), drawn[k]) for k in range(5))


def test_random_masks_change_every_time(model: Model, folder: Path) -> None:
    dataset = built(model, data_of(folder, num_random_masks=0))
    drawn = [surroundings(dataset, [4], step)[0, 0] for step in range(12)]
    assert len({tuple(random_mask.flatten().tolist()) for random_mask in drawn}) > 6
    assert torch.equal(surroundings(dataset, [4], 3)[0, 0], drawn[3])


def test_masks_can_weight_only_the_loss(model: Model, folder: Path) -> None:
    """With random masks, the given masks weight the loss and do not hide anything."""
    data = data_of(folder, inpaint_masks="random")
    train = TrainerConfig(batch_size=4, loss=LossConfig(masked=True))
    dataset = build_dataset(model, data, train, CPU)
    mask = given_masks(folder, [0])
    hidden = []
    for step in range(12):
        batch = dataset.get_batch(torch.tensor([0]), BatchRng(make_generator(0, 1, step), 1))
        assert batch.loss_mask is not None
        assert batch.inpaint_cond is not None
        torch.testing.assert_close(batch.loss_mask, F.avg_pool2d(mask, 8))
        hidden.append(batch.inpaint_cond[:, :1])
    assert not any(
        torch.equal(hidden_mask, F.interpolate(mask, size=(8, 8))) for hidden_mask in hidden
    )


@pytest.mark.parametrize("more", [{}, {"num_random_masks": 0}, {"flip_aug": True}], ids=str)
def test_batch_does_not_depend_on_how_it_is_divided(
    model: Model, folder: Path, more: dict[str, Any]
) -> None:
    dataset = built(model, data_of(folder, **more))
    numbers = torch.tensor([4, 0, 5, 2])
    full = dataset.get_batch(numbers, BatchRng(make_generator(9), 4)).inpaint_cond
    parts = [
        dataset.get_batch(
            numbers[first : first + 2], BatchRng(make_generator(9), 4, first, 2)
        ).inpaint_cond
        for first in (0, 2)
    ]
    assert full is not None
    torch.testing.assert_close(torch.cat([part for part in parts if part is not None]), full)


def test_second_run_encodes_nothing(
    model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, encoded = type(model.vae).encode, []

    def counted(vae: Any, pixels: torch.Tensor) -> Any:
        encoded.append(len(pixels))
        return encode(vae, pixels)

    monkeypatch.setattr(type(model.vae), "encode", counted)
    built(model, data_of(folder, num_random_masks=3))
    assert sum(encoded) == 6 + 2 + 4 * 3
    built(model, data_of(folder, num_random_masks=3))
    assert sum(encoded) == 20
    mask = Image.open(folder / "00.mask.png").transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    mask.save(folder / "00.mask.png")
    built(model, data_of(folder, num_random_masks=3))
    assert sum(encoded) == 21


def test_other_models_have_no_inpainting_input(tiny_model: Path, folder: Path) -> None:
    plain = open_model(tiny_model)
    dataset = built(plain, data_of(folder))
    assert dataset.get_batch(torch.tensor([0]), BatchRng(make_generator(0), 1)).inpaint_cond is None


def test_concatenated_batches_keep_the_inpainting_input(model: Model, folder: Path) -> None:
    """The network gets the same input for each image as in a batch of one."""
    dataset = built(model, data_of(folder))
    batches: list[Batch] = [
        dataset.get_batch(torch.tensor([index]), BatchRng(make_generator(0, index), 1))
        for index in (0, 4)
    ]
    predict, times = Denoiser(model), torch.tensor([300, 700])
    with torch.no_grad():
        combined = concat_batches(batches)
        actual = predict(combined.latents, times, combined)
        expected = [
            predict(batch.latents, times[k : k + 1], batch) for k, batch in enumerate(batches)
        ]
    torch.testing.assert_close(actual, torch.cat(expected), atol=1e-5, rtol=1e-5)


def test_refiner_gets_an_aesthetic_score(tiny_of: Tiny, folder: Path) -> None:
    refiner = open_model(tiny_of("sdxl-refiner"))
    for more in ({}, {"color_jitter": 0.1}):
        dataset = built(refiner, data_of(folder, aesthetic_score=7.5, **more))
        batch = dataset.get_batch(torch.tensor([0, 1]), BatchRng(make_generator(0), 2))
        expected = torch.tensor([[64.0, 64.0, 0.0, 0.0, 7.5]] * 2)
        assert batch.time_ids is not None
        assert torch.equal(batch.time_ids, expected)


def test_refiner_samples_the_lowest_noise_levels() -> None:
    config: dict[str, object] = {"beta_schedule": "scaled_linear"}
    process = build_noise_process(config, LossConfig(), CPU, num_timesteps=200)
    assert process.num_timesteps == 200
    clean = torch.zeros(400, 1, 1, 1)
    batch = Batch(latents=clean, loss_weights=torch.ones(400), indices=torch.arange(400))
    levels = sample_noise(process, LossConfig(), batch, BatchRng(make_generator(0), 400)).timesteps
    assert 190 < int(levels.max()) < 200
    assert int(levels.min()) < 10
    full = build_noise_process(config, LossConfig(), CPU)
    assert full.num_timesteps == 1000
    assert torch.equal(full.alphas_cumprod, process.alphas_cumprod)
