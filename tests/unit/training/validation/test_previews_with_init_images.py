"""Previews of models that need init images."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from helpers.tiny_models import open_model
from helpers.training.datasets import write
from lorasmith.adapters.injection.trainable import TrainableLora, inject_trainable
from lorasmith.adapters.targeting.targets import resolve_targets
from lorasmith.config.train_config import LoraConfig, TrainerConfig, ValidationConfig
from lorasmith.core.errors import ConfigError
from lorasmith.data.reading.row import Row
from lorasmith.inference.pipeline import Pipeline
from lorasmith.models.load import load_model
from lorasmith.models.model import Model
from lorasmith.training.validation.previews import Previews, check_previews

Tiny = Callable[[str], Path]


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    """Three images, the second and third with masks; the first two have one caption."""
    folder = write(tmp_path / "p", [(64, 64), (96, 64), (64, 64)])
    preview_rows = []
    for number, caption in enumerate(("a cat", "a cat", "a dog")):
        mask = None
        if number:
            mask = folder / f"{number:02}.mask.png"
            drawn = Image.new("L", (96 if number == 1 else 64, 64), 0)
            ImageDraw.Draw(drawn).ellipse((9, 9, 50, 40), fill=255)
            drawn.save(mask)
        preview_rows.append(
            Row(f"{number:02}", (caption,), {}, folder / f"{number:02}.png", mask_path=mask)
        )
    return preview_rows


@pytest.fixture
def adapted_model(tiny_of: Tiny) -> Iterator[Callable[[str], tuple[Model, TrainableLora]]]:
    trainables: list[TrainableLora] = []

    def of(family: str) -> tuple[Model, TrainableLora]:
        model = open_model(tiny_of(family))
        lora = LoraConfig(rank=2, targets="attention")
        trainables.append(
            inject_trainable(
                resolve_targets(model, lora, TrainerConfig(learning_rate=1.0)), lora, 0
            )
        )
        return model, trainables[-1]

    yield of
    for trainable in trainables:
        trainable.detach()


def drawn(
    model: Model, trained: TrainableLora, rows: list[Row], folder: Path, **more: object
) -> list[np.ndarray]:
    settings = ValidationConfig.model_validate({"num_inference_steps": 4, "seed": 5, **more})
    paths = Previews(settings, model, rows, folder).generate(1, trained, lambda: True)
    return [np.asarray(Image.open(path)) for path in paths]


def is_close(image: np.ndarray, expected: Image.Image) -> bool:
    """Equal up to rounding, as images of another batch are."""
    other = np.asarray(expected).astype(int)
    return image.shape == other.shape and int(abs(image - other).max()) <= 1


def test_refiner_finishes_the_images_of_its_captions(
    adapted_model: Callable[[str], tuple[Model, TrainableLora]], rows: list[Row], tmp_path: Path
) -> None:
    model, trained = adapted_model("sdxl-refiner")
    images = drawn(model, trained, rows, tmp_path)
    expected = [
        Pipeline(model)(
            "a cat", seed=5, image=rows[0].path, num_inference_steps=4, width=64, height=64
        ),
        Pipeline(model)(
            "a dog", seed=6, image=rows[2].path, num_inference_steps=4, width=64, height=64
        ),
    ]
    assert len(images) == 2
    for image, (expected_image,) in zip(images, expected, strict=True):
        assert is_close(image, expected_image)


def test_inpainting_preview_repaints_the_masked_part(
    adapted_model: Callable[[str], tuple[Model, TrainableLora]], rows: list[Row], tmp_path: Path
) -> None:
    model, trained = adapted_model("sd1-inpainting")
    pipe = Pipeline(model)
    images = drawn(model, trained, rows, tmp_path / "captions")
    assert is_close(images[0], pipe("a cat", seed=5, num_inference_steps=4)[0])
    more = {
        "image": rows[2].path,
        "mask_image": rows[2].mask_path,
        "num_inference_steps": 4,
        "width": 64,
        "height": 64,
    }
    assert is_close(images[1], pipe("a dog", seed=6, **more)[0])
    # Prompts of the user are drawn on images with masks, if there are any.
    images = drawn(model, trained, rows, tmp_path / "prompts", prompts=["x", "y"], size="96x64")
    for k in range(2):
        more = {
            "image": rows[1 + k].path,
            "mask_image": rows[1 + k].mask_path,
            "num_inference_steps": 4,
            "width": 96,
            "height": 64,
        }
        assert is_close(images[k], pipe("xy"[k], seed=5 + k, **more)[0])


def test_too_few_steps_are_refused_before_any_work(tiny_of: Tiny) -> None:
    model = load_model(tiny_of("sdxl-refiner"))
    with pytest.raises(ConfigError, match=r"num_inference_steps: 3 times the strength 0\.3"):
        check_previews(ValidationConfig(num_inference_steps=3), model)
    check_previews(ValidationConfig(num_inference_steps=4), model)
