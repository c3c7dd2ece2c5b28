"""The ViT image tower: saved, read again, and checked before anything is built."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lorasmith.core.errors import WeightsError
from lorasmith.evaluation.feature_extractor import load_feature_extractor
from lorasmith.models.image_encoder import (
    ClipModel,
    embed_images,
    load_clip,
    load_image_encoder,
    save_clip,
)
from lorasmith.models.load import load_text_encoder, load_tokenizer
from lorasmith.models.vision.vision_transformer import VitSizes
from lorasmith.models.vision.vit_encoder import VitImageEncoder
from lorasmith.pretraining.perceptual.loss import PerceptualLoss

SIZES = VitSizes(
    image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=24,
)  # fmt: skip


@pytest.fixture
def saved(tiny_model: Path, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    pair = ClipModel(load_text_encoder(tiny_model), VitImageEncoder(SIZES, 12))
    save_clip(pair, load_tokenizer(tiny_model), tmp_path / "clip")
    return tmp_path / "clip"


def test_config_names_the_kind(saved: Path) -> None:
    config = json.loads((saved / "image_tower" / "config.json").read_text(encoding="utf-8"))
    assert config["kind"] == "vit"
    assert config["hidden_size"] == 16
    assert config["embedding"] == 12


def test_saved_tower_loads_again(saved: Path) -> None:
    encoder, pair = load_image_encoder(saved), load_clip(saved)
    assert isinstance(encoder, VitImageEncoder)
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    embedded = embed_images(encoder, images)
    assert embedded.shape == (3, 12)
    assert torch.equal(embedded, embed_images(pair.image, images))
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(3))


def test_embedding_is_that_of_the_class_token(saved: Path) -> None:
    encoder = load_image_encoder(saved)
    assert isinstance(encoder, VitImageEncoder)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    tokens = encoder.transformer.block_outputs(images)[0][-1]
    token = encoder.transformer.norm(tokens)[:, 0]
    torch.testing.assert_close(encoder(images), F.normalize(encoder.projection(token), dim=1))


@pytest.mark.parametrize("size", [(32, 32), (64, 48), (20, 36)])
def test_images_of_other_sizes_are_embedded_and_compared(
    saved: Path, size: tuple[int, int]
) -> None:
    encoder = load_image_encoder(saved)
    images = torch.rand(2, 3, *size) * 2 - 1
    assert encoder(images).shape == (2, 12)
    loss = PerceptualLoss(encoder)
    assert float(loss(images, images.clone())) == pytest.approx(0.0, abs=1e-10)
    assert float(loss(images, -images)) > 0


def test_evaluation_reads_the_tower_at_its_own_size(saved: Path) -> None:
    from PIL import Image

    extractor = load_feature_extractor(saved)
    image = Image.linear_gradient("L").convert("RGB")
    features = extractor.image_features([image])
    from lorasmith.evaluation.base_model import pil_to_tensor

    expected = embed_images(load_image_encoder(saved), pil_to_tensor([image], 32))
    assert torch.equal(features, expected)
    assert extractor.logit_scale == pytest.approx(1 / 0.07, rel=1e-5)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"kind": "mlp"}, "kind is conv or vit, not 'mlp'"),
        ({"kind": ["vit"]}, "kind is conv or vit"),
        ({"kind": "conv"}, "channels are up to"),
        ({"hidden_size": 10**9}, "hidden_size is a number from 1 to 2048"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is a number from 1 to 48"),
        ({"patch_size": None}, "patch_size is a number"),
        ({"num_attention_heads": 3}, "hidden_size is a multiple of"),
        ({"image_size": 33}, "image_size of patch_size"),
        ({"embedding": "12"}, "embedding"),
    ],
)
def test_impossible_configs_are_refused(
    saved: Path, entries: dict[str, object], message: str
) -> None:
    file = saved / "image_tower" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries), encoding="utf-8")
    with pytest.raises(WeightsError, match=f"not an image encoder's config.*{message}"):
        load_image_encoder(saved)


def test_weights_of_another_shape_are_refused(saved: Path) -> None:
    file = saved / "image_tower" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"intermediate_size": 32}))
    for load in (load_clip, load_image_encoder):
        with pytest.raises(WeightsError, match=r"weights do not fit config\.json"):
            load(saved)
