"""Batches of a training set: what they hold, what they depend on, and what is held out."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from lorasmith.config.run import TrainData, TrainSettings
from lorasmith.core.device import generator
from lorasmith.core.draws import Draws
from lorasmith.core.errors import ConfigError
from lorasmith.models.load import Model, load_model
from lorasmith.models.text import encode, tokenize
from lorasmith.training.batch import Batch
from lorasmith.training.dataset import TrainingSet, buckets_of, build_dataset

CPU = torch.device("cpu")


@pytest.fixture
def model(tiny_model: Path) -> Model:
    return load_model(tiny_model).to(CPU, torch.float32)


def write(folder: Path, sizes: list[tuple[int, int]], caption: str = "picture {}, ink") -> Path:
    folder.mkdir(exist_ok=True)
    for number, (width, height) in enumerate(sizes):
        noise = torch.randint(256, (height, width, 3), generator=generator(5, number))
        Image.fromarray(noise.to(torch.uint8).numpy()).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(caption.format(number))
    return folder


def data_of(folder: Path, **more) -> TrainData:
    return TrainData(path=folder, tag="ink", **more)


def built(model: Model, data: TrainData, **more) -> TrainingSet:
    return build_dataset(model, data, TrainSettings(batch_size=4), CPU, **more)


def take(made: TrainingSet, numbers: list[int], step: int = 0) -> Batch:
    return made.batch(torch.tensor(numbers), Draws(generator(0, 1, step), len(numbers)))


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


# --- fixed pictures and captions ------------------------------------------------------------


def test_a_batch_equals_the_parts_used_one_by_one(tmp_path: Path, model: Model) -> None:
    folder = write(tmp_path / "p", [(64, 64)] * 5)
    made = built(model, data_of(folder))
    batch = take(made, [4, 1, 3])

    unit = Draws(generator(0, 1, 0), 3).normal(4, 8, 8)
    mean, deviation = moments(model, pixels_of(folder, [4, 1, 3]))
    torch.testing.assert_close(batch.clean, mean + deviation * unit, rtol=1e-4, atol=1e-4)
    captions = [f"picture {n}, ink" for n in (4, 1, 3)]
    with torch.no_grad():
        context = encode(model.text_encoder, tokenize(model.tokenizer, captions))
    torch.testing.assert_close(batch.context, context, rtol=1e-4, atol=1e-5)
    assert batch.weight.tolist() == [1.0, 1.0, 1.0]
    assert batch.numbers.tolist() == [4, 1, 3]
    assert (batch.pooled, batch.time_ids, batch.mask, batch.ids) == (None, None, None, None)
    assert made.keys_of(torch.tensor([2, 0, 2])) == ["02.png", "00.png"]


def test_parts_of_a_batch_together_are_the_whole(tmp_path: Path, model: Model) -> None:
    folder = write(tmp_path / "p", [(80, 64)] * 4, "a {}, b, c, ink")
    plain = built(model, data_of(folder, flip=True, caption_dropout=0.4))
    moving = built(
        model,
        data_of(folder, crop="random", flip=True, colour_jitter=0.2, shuffle_captions=True),
    )
    for made in (plain, moving):
        whole = take(made, [0, 1, 2, 3])
        parts = [
            made.batch(torch.tensor(numbers), Draws(generator(0, 1, 0), 4, first, len(numbers)))
            for first, numbers in ((0, [0]), (1, [1, 2, 3]))
        ]
        for name in ("clean", "context", "weight", "numbers"):
            pieces = torch.cat([getattr(part, name) for part in parts])
            torch.testing.assert_close(pieces, getattr(whole, name), rtol=1e-4, atol=1e-4)


def test_batches_follow_their_draws_alone(tmp_path: Path, model: Model) -> None:
    folder = write(tmp_path / "p", [(96, 64)] * 4, "a {}, b, c, d, ink")
    more = {"crop": "random", "flip": True, "colour_jitter": 0.2, "shuffle_captions": True}
    made = built(model, data_of(folder, **more))
    one, same, other = (take(made, [0, 1, 2, 3], step) for step in (3, 3, 4))
    assert torch.equal(one.clean, same.clean)
    assert torch.equal(one.context, same.context)
    assert not torch.equal(one.context, other.context)
    again = built(model, data_of(folder, **more))
    assert torch.equal(take(again, [0, 1, 2, 3], 3).clean, one.clean)


def test_pictures_of_several_shapes_keep_them(tmp_path: Path, model: Model) -> None:
    folder = write(tmp_path / "p", [(256, 256), (400, 240), (240, 400), (300, 300), (420, 250)])
    made = built(model, data_of(folder, resolution=256, bucket_step=8))
    assert [str(made.buckets[k]) for k in made.bucket_of] == [
        "256x256", "320x192", "192x320", "256x256", "320x192",
    ]  # fmt: skip
    assert take(made, [1, 4]).clean.shape == (2, 4, 24, 40)
    assert take(made, [2]).clean.shape == (1, 4, 40, 24)
    seen = Counter(
        n for k in range(made.order.steps_per_epoch) for n in made.order.batch(k).tolist()
    )
    assert seen == dict.fromkeys(range(5), 1)
    assert [part.tolist() for part in made.by_bucket(1)] == [[2], [0], [3], [1], [4]]
    squares = built(model, data_of(folder, resolution=256, buckets=False))
    assert take(squares, [0, 1, 2]).clean.shape == (3, 4, 32, 32)


def test_sizes_follow_the_model(tmp_path: Path, model: Model) -> None:
    assert [str(b) for b in buckets_of(model, data_of(tmp_path))] == ["64x64"]
    sizes = [str(b) for b in buckets_of(model, data_of(tmp_path, resolution=192, bucket_step=1))]
    assert sizes == ["128x256", "192x192", "256x128"]
    with pytest.raises(
        ConfigError, match=r"data\.resolution: 100 is not a multiple of 64; use 128"
    ):
        buckets_of(model, data_of(tmp_path, resolution=100))
