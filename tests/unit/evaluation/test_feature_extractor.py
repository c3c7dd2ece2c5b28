"""Feature extractors from folders: CLIP and Inception with random weights of the real layout."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from lorasmith.core.errors import WeightsError
from lorasmith.core.safetensors_io import save_tensors
from lorasmith.evaluation.feature_extractor import load_feature_extractor, normalize
from lorasmith.evaluation.metrics.inception import InceptionV3


def make_images() -> list[Image.Image]:
    noise = torch.randint(0, 256, (3, 48, 40, 3), generator=torch.Generator().manual_seed(0))
    return [Image.fromarray(pixels.numpy().astype("uint8")) for pixels in noise]


@pytest.fixture(scope="module")
def clip_folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("clip") / "tiny-clip"
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
             "num_attention_heads": 2}  # fmt: skip
    shutil.copytree(tiny_model / "tokenizer", folder)
    vocabulary = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    text = {**small, "vocab_size": vocabulary, "eos_token_id": vocabulary - 1,
            "bos_token_id": vocabulary - 2}  # fmt: skip
    torch.manual_seed(0)
    vision = {**small, "image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    CLIPModel(config).save_pretrained(folder)
    return folder


def test_clip_folder_gives_transformers_features(clip_folder: Path) -> None:
    from transformers import CLIPModel, CLIPTokenizer

    extractor = load_feature_extractor(clip_folder)
    features, texts = (
        extractor.image_features(make_images()),
        extractor.text_features(["a red cat", "a boat"]),
    )
    assert extractor.name == "tiny-clip"
    assert features.shape == (3, 12)
    assert texts is not None
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3))
    model = CLIPModel.from_pretrained(clip_folder).eval()
    tokens = CLIPTokenizer.from_pretrained(clip_folder)(
        ["a red cat", "a boat"], padding="max_length", return_tensors="pt"
    )
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    from lorasmith.evaluation.base_model import pil_to_tensor

    shown = (pil_to_tensor(make_images(), 32) / 2 + 0.5 - mean) / deviation
    with torch.no_grad():
        output = model(pixel_values=shown, **tokens)
    torch.testing.assert_close(features, output.image_embeds)
    torch.testing.assert_close(texts, output.text_embeds)
    logits = extractor.logit_scale * features @ texts.T
    torch.testing.assert_close(logits, output.logits_per_image)


def test_inception_loads_public_weights_by_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = InceptionV3()
    # Published: 23,834,568 numbers with the classifier of 1,000 classes (2,049,000).
    assert sum(p.numel() for p in network.parameters()) == 23_834_568 - 2_049_000
    state = {k: v for k, v in network.state_dict().items() if "num_batches" not in k}
    assert "Mixed_7c.branch3x3dbl_3b.conv.weight" in state
    save_tensors(tmp_path / "model.safetensors", {**state, "fc.bias": torch.zeros(1000)}, {})
    (tmp_path / "config.json").write_text('{"architecture": "inception_v3"}')
    extractor = load_feature_extractor(tmp_path)
    features = extractor.image_features(make_images())
    assert features.shape == (3, 2048)
    assert extractor.text_features(["a cat"]) is None
    torch.testing.assert_close(normalize(features).norm(dim=1), torch.ones(3))
    assert not torch.equal(features[0], features[1])

    del state["Mixed_6b.branch_pool.bn.weight"]
    save_tensors(tmp_path / "model.safetensors", state, {})
    with pytest.raises(WeightsError, match=r"1 of the .* missing, first Mixed_6b.branch_pool"):
        load_feature_extractor(tmp_path)


def test_average_pools_do_not_count_the_padding() -> None:
    from lorasmith.evaluation.metrics.inception import BranchSpec, ConvSpec, InceptionBlock

    block = InceptionBlock(1, [BranchSpec((ConvSpec("one", 1),))], pooled=1).eval()
    ones = torch.ones(1, 1, 4, 4)
    pooled = block._pool(ones)
    assert torch.equal(pooled, pooled[0, 0, 1, 1].expand_as(pooled))


def test_folder_without_a_feature_extractor_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not a feature extractor"):
        load_feature_extractor(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(WeightsError, match="this is bert"):
        load_feature_extractor(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"config\.json cannot be read"):
        load_feature_extractor(tmp_path)
