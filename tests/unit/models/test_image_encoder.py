import json
from pathlib import Path

import pytest
import torch

from lorasmith.core.errors import WeightsError
from lorasmith.core.safetensors_io import load_tensors, save_tensors
from lorasmith.models.image_encoder import (
    ClipModel,
    embed_images,
    embed_texts,
    load_clip,
    load_image_encoder,
    save_clip,
)
from lorasmith.models.load import load_text_encoder, load_tokenizer
from lorasmith.models.vision.conv_encoder import ConvImageEncoder


@pytest.fixture
def pair(tiny_model: Path) -> ClipModel:
    torch.manual_seed(0)
    return ClipModel(load_text_encoder(tiny_model), ConvImageEncoder((8, 16), (1, 2), 12))


@pytest.fixture
def saved(pair: ClipModel, tiny_model: Path, tmp_path: Path) -> Path:
    save_clip(pair, load_tokenizer(tiny_model), tmp_path / "clip")
    return tmp_path / "clip"


def test_outputs_have_their_shapes(pair: ClipModel) -> None:
    images = torch.randn(3, 3, 32, 24)
    maps = pair.image.feature_maps(images)
    assert [tuple(m.shape) for m in maps] == [(3, 8, 16, 12), (3, 16, 8, 6)]
    image, text, scale = pair(images, torch.zeros(3, 77, dtype=torch.int64))
    assert image.shape == text.shape == (3, 12)
    for embedding in (image, text):
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(3))
    assert float(scale.detach()) == pytest.approx(1 / 0.07, rel=1e-5)


def test_temperature_is_bounded(pair: ClipModel) -> None:
    with torch.no_grad():
        pair.log_scale.fill_(9.0)
    scale = pair(torch.randn(1, 3, 8, 8), torch.zeros(1, 77, dtype=torch.int64))[2]
    assert float(scale.detach()) == pytest.approx(100.0, rel=1e-4)


def test_saved_clip_loads_again(pair: ClipModel, saved: Path) -> None:
    loaded = load_clip(saved)
    assert loaded.state_dict().keys() == pair.state_dict().keys()
    for name, value in pair.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    assert not any(p.requires_grad for p in loaded.parameters())
    encoder = load_image_encoder(saved)
    images = torch.randn(5, 3, 16, 16)
    assert torch.equal(embed_images(encoder, images), embed_images(loaded.image, images))
    torch.testing.assert_close(
        embed_images(encoder, images, batch_size=2), embed_images(encoder, images)
    )
    tokenizer = load_tokenizer(saved)
    texts = ["a red apple", "", "a pear"]
    embedded = embed_texts(loaded, tokenizer, texts, batch_size=2)
    torch.testing.assert_close(embedded, embed_texts(loaded, tokenizer, texts))
    assert embedded.shape == (3, 12)


def test_missing_image_encoder_is_named(tmp_path: Path) -> None:
    for load in (load_clip, load_image_encoder):
        with pytest.raises(WeightsError, match="has no image_tower; `lorasmith pretrain clip`"):
            load(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"channels": [8]}', '{"width": 8}'])
def test_damaged_config_is_named(saved: Path, content: str) -> None:
    (saved / "image_tower" / "config.json").write_text(content, encoding="utf-8")
    for load in (load_clip, load_image_encoder):
        with pytest.raises(WeightsError, match=r"image_tower/config\.json.*(not|cannot) "):
            load(saved)


@pytest.mark.parametrize(
    "entries",
    [
        {"channels": [10**9]},
        {"channels": [8] * 1000},
        {"blocks": [10**9]},
        {"embedding": 10**9},
        {"embedding": 1e400},
        {"blocks": [1, 1, 1, 1, 1]},
    ],
)
def test_impossible_sizes_are_refused_before_anything_is_built(
    saved: Path, entries: dict[str, object]
) -> None:
    file = saved / "image_tower" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries), encoding="utf-8")
    with pytest.raises(WeightsError, match="not an image encoder's config"):
        load_image_encoder(saved)


def test_weights_of_another_shape_are_refused(saved: Path) -> None:
    config = {"channels": [8, 24], "blocks": [1, 2], "embedding": 12}
    (saved / "image_tower" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for load in (load_clip, load_image_encoder):
        with pytest.raises(WeightsError, match=r"weights do not fit config\.json"):
            load(saved)


def test_missing_and_unexpected_tensors_are_counted(saved: Path) -> None:
    path = saved / "image_tower" / "model.safetensors"
    tensors = load_tensors(path)
    tensors["image.other"] = tensors.pop("image.norm.weight")
    tensors.pop("log_scale")
    save_tensors(path, tensors, {})
    with pytest.raises(WeightsError, match="image_tower: 2 tensors missing, 1 unexpected"):
        load_clip(saved)
