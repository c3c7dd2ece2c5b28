"""Validation loss and previews: reproducible, and equal to plain code."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.training.datasets import CPU, data_of, write
from lorasmith.adapters.gating.gate_metadata import GateMetadata
from lorasmith.config.train_config import LossConfig, TrainerConfig, ValidationConfig
from lorasmith.core.errors import ConfigError
from lorasmith.data.reading.row import Row
from lorasmith.inference.pipeline import Pipeline
from lorasmith.training.data.dataset import TrainDataset
from lorasmith.training.data.dataset_builder import build_dataset
from lorasmith.training.step.train_step import compute_loss
from lorasmith.training.validation.loss import ValidationLoss
from lorasmith.training.validation.previews import Previews, PreviewsCancelledError


def data_for(tiny_training, folder: Path, sizes: list[tuple[int, int]]) -> TrainDataset:
    train = TrainerConfig(batch_size=4, loss=LossConfig())
    return build_dataset(
        tiny_training.model, data_of(write(folder, sizes), cache=False), train, CPU
    )


def learn_something(tiny_training) -> None:
    generator = torch.Generator().manual_seed(3)
    for adapter in tiny_training.trainable.adapters.values():
        adapter.up.data.normal_(0.0, 0.05, generator=generator)


# --- validation loss ------------------------------------------------------------------------


def test_validation_loss_is_the_mean_over_images_levels_and_noise(
    tiny_training, tmp_path: Path
) -> None:
    from lorasmith.core.device import make_generator
    from lorasmith.training.losses import Noise

    learn_something(tiny_training)
    data = data_for(tiny_training, tmp_path / "p", [(64, 64), (64, 64), (128, 64)])
    objective = tiny_training.objective(
        min_snr_gamma=5.0, noise_offset=0.3
    )  # neither may influence the validation loss
    grid = ValidationLoss(objective, data, num_timesteps=2, batch_size=8, seed=4)
    plain, losses = tiny_training.objective(), []
    for number in range(3):
        for level in (250, 750):
            ((batch, drawn),) = [(b, d) for b, d in grid.batches() if number in b.indices.tolist()]
            pairs = list(zip(batch.indices.tolist(), drawn.timesteps.tolist(), strict=True))
            part = slice(pairs.index((number, level)), pairs.index((number, level)) + 1)
            shape = batch.latents.shape[1:]
            noise = torch.randn(shape, generator=make_generator(4, 2, number, level))[None]
            single = type(batch)(batch.latents[part], batch.loss_weights[part], batch.indices[part],
                              batch.context[part])  # fmt: skip
            with torch.no_grad():
                losses.append(
                    float(compute_loss(plain, single, Noise(torch.tensor([level]), noise)))
                )
    assert grid.mean() == pytest.approx(sum(losses) / 6, rel=1e-4)


def test_validation_changes_nothing_and_measures_the_base_once(
    tiny_training, tmp_path: Path
) -> None:
    data = data_for(tiny_training, tmp_path / "p", [(64, 64)] * 3)
    grid = ValidationLoss(tiny_training.objective(), data, num_timesteps=2, batch_size=4, seed=0)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    untrained = grid.measure(tiny_training.trainable, None)
    assert untrained.loss == untrained.base_loss
    learn_something(tiny_training)
    trained = grid.measure(tiny_training.trainable, None)
    assert trained.base_loss == untrained.base_loss
    assert trained.loss != trained.base_loss
    assert grid.measure(tiny_training.trainable, 123.0).base_loss == 123.0
    assert grid.measure(tiny_training.trainable, None) == trained
    assert torch.equal(torch.get_rng_state(), before)
    assert all(
        adapter.strength == 1.0 and adapter.training
        for adapter in tiny_training.trainable.adapters.values()
    )
    assert trained.log_entries("validation_loss") == {
        "validation_loss": trained.loss, "validation_loss_base": trained.base_loss,
        "validation_loss_gain": trained.base_loss - trained.loss,
    }  # fmt: skip


def test_validation_measures_evenly_spread_images_of_many() -> None:
    from lorasmith.training.validation.loss import _spread

    assert _spread(3, 32) == [0, 1, 2]
    chosen = _spread(1000, 32)
    assert len(set(chosen)) == 32
    assert max(np.diff(chosen)) <= 32
    assert chosen[-1] > 960


# --- previews -------------------------------------------------------------------------------


def previews(tiny_training, folder: Path, **more) -> Previews:
    settings = ValidationConfig(**{"num_inference_steps": 2, "num_images": 2, **more})
    captions = ["a cat", "a <dog>", "a cat", "a mouse", "<lora:x:1> y"]
    rows = [Row(str(k), (caption,), {}, folder / f"{k}.png") for k, caption in enumerate(captions)]
    return Previews(settings, tiny_training.model, rows, folder)


def test_previews_are_what_generate_draws(tiny_training, tmp_path: Path) -> None:
    learn_something(tiny_training)
    drawn = previews(tiny_training, tmp_path, prompts=["a cat", "a dog"], seed=5).generate(
        30, tiny_training.trainable, lambda: True
    )
    assert [p.relative_to(tmp_path).as_posix() for p in drawn] == [
        "step-000030/0000.png", "step-000030/0001.png",
    ]  # fmt: skip
    expected = Pipeline(tiny_training.model)(
        ["a cat", "a dog"], seed=5, num_inference_steps=2, guidance_scale=5.0
    )
    for path, picture in zip(drawn, expected, strict=True):
        with Image.open(path) as saved:
            assert np.array_equal(np.asarray(saved), np.asarray(picture))
            assert saved.info["parameters"] == picture.info["parameters"]


def test_previews_are_drawn_under_the_gate_of_what_is_trained(
    tiny_training, tmp_path: Path
) -> None:
    learn_something(tiny_training)
    attached = tiny_training.trainable.attached
    before, attached.gate_metadata = attached.gate_metadata, GateMetadata("prompt", "ink")
    try:
        generator = previews(tiny_training, tmp_path, prompts=["a cat", "an ink cat"])
        tiny_training.trainable.set_strength(0.0)
        base = [
            Image.open(p).tobytes()
            for p in generator.generate(0, tiny_training.trainable, lambda: True)
        ]
        tiny_training.trainable.set_strength(1.0)
        images = [
            Image.open(p).tobytes()
            for p in generator.generate(30, tiny_training.trainable, lambda: True)
        ]
    finally:
        attached.gate_metadata = before
    assert images[0] == base[0]
    assert images[1] != base[1]
    assert not attached.gate.is_closed


def test_previews_without_prompts_draw_the_captions(tiny_training, tmp_path: Path) -> None:
    generator = previews(tiny_training, tmp_path, num_images=9)
    assert [job.prompt.text for job in generator._jobs] == ["a cat", "a <dog>", "a mouse",
                                                       "<lora:x:1> y"]  # fmt: skip
    assert [job.seed for job in generator._jobs] == [0, 1, 2, 3]
    assert all(job.prompt.loras == () for job in generator._jobs)
    assert [j.prompt.text for j in previews(tiny_training, tmp_path)._jobs] == ["a cat", "a mouse"]
    assert len(previews(tiny_training, tmp_path, prompts=[])) == 0


def test_previews_can_be_cancelled(tiny_training, tmp_path: Path) -> None:
    with pytest.raises(PreviewsCancelledError):
        previews(tiny_training, tmp_path / "previews").generate(
            1, tiny_training.trainable, lambda: False
        )
    assert not (tmp_path / "previews").exists()
    assert all(adapter.training for adapter in tiny_training.trainable.adapters.values())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"size": "60x64"}, r"validation\.size: 60x64 is not in steps of 8 pixels"),
        ({"prompts": ["x <lora:"]}, r"validation\.prompt, column 3: .* is not closed"),
        ({"num_inference_steps": 2000}, r"num_inference_steps: .* less than or equal to 1000"),
    ],
)
def test_impossible_previews_are_refused_before_training(
    tiny_training, tmp_path: Path, more: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        previews(tiny_training, tmp_path, **more)
