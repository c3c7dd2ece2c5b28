"""Diversity of images: the measure, its reference, and uniform and varied images."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from lorasmith.core.files import sha256_file
from lorasmith.data.reading.reader import read_rows
from lorasmith.data.reading.row import Row
from lorasmith.evaluation.metrics import diversity
from lorasmith.evaluation.metrics.diversity import (
    REFERENCE,
    diversity_threshold,
    mean_cosine_distance,
    measure_diversity,
)
from lorasmith.models.files.open import EMBEDDED
from lorasmith.models.image_encoder import FOLDER

DEMO = EMBEDDED.parent / "demo_data"
WHITE = (255, 255, 255)


@given(st.integers(2, 12), st.integers(0, 99))
def test_mean_cosine_distance_is_the_mean_over_all_pairs(count: int, seed: int) -> None:
    vectors = torch.randn(count, 5, generator=torch.Generator().manual_seed(seed))
    vectors = torch.nn.functional.normalize(vectors.double(), dim=-1)
    pairs = [1 - float(a @ b) for n, a in enumerate(vectors) for b in vectors[n + 1 :]]
    assert mean_cosine_distance(vectors) == pytest.approx(sum(pairs) / len(pairs), abs=1e-9)


def test_reference_is_of_the_embedded_encoder() -> None:
    table = json.loads(REFERENCE.read_text())
    encoder_hash = sha256_file(EMBEDDED / FOLDER / "model.safetensors")
    assert table["tower"] == encoder_hash, f"the image encoder changed; run: {table['command']}"
    assert table["side"] == diversity.IMAGE_SIDE
    assert [int(k) for k in table["thresholds"]] == [
        *range(diversity.MIN_IMAGES, diversity.MAX_REFERENCE_IMAGES + 1)
    ]


def test_larger_sets_have_higher_thresholds_up_to_the_largest() -> None:
    assert (
        0.05
        < diversity_threshold(4)
        < diversity_threshold(8)
        < diversity_threshold(16)
        < diversity_threshold(24)
        < 0.3
    )
    assert diversity_threshold(500) == diversity_threshold(24)


def test_demo_images_of_one_style_are_varied() -> None:
    measured = measure_diversity(read_rows(DEMO), WHITE)
    assert measured is not None
    assert measured.images == 24
    assert not measured.is_uniform


def variations(folder: Path, count: int) -> list[Row]:
    """Return images of one ball on a meadow, slightly moved."""
    rows = []
    for number in range(count):
        image = Image.new("RGB", (96, 96), (90, 160, 60))
        left = 20 + number % 4
        ImageDraw.Draw(image).ellipse((left, 24, left + 50, 74), fill=(200, 30, 30))
        file = folder / f"{number}.png"
        image.save(file)
        rows.append(Row(file.name, (f"ball {number}",), {}, file))
    return rows


def test_variations_of_one_image_are_uniform(tmp_path: Path) -> None:
    measured = measure_diversity(variations(tmp_path, 12), WHITE)
    assert measured is not None
    assert measured.is_uniform
    assert measured.distance < 0.1


def test_very_few_images_are_not_measured(tmp_path: Path) -> None:
    rows = variations(tmp_path, 4)
    assert measure_diversity(rows[:3], WHITE) is None
    assert measure_diversity(rows, WHITE) is not None


def test_large_sets_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diversity, "_MAX_COMPARED", 10)
    measured = measure_diversity(read_rows(DEMO), WHITE)
    assert measured is not None
    assert measured.images == 8
