"""Which file is which network, LPIPS heads, layer weights, and what is refused."""

import json
from pathlib import Path

import pytest
import torch

from helpers.backbones import (
    lpips_heads,
    random_images,
    resnet_18,
    vgg_16,
    vit,
    write_weights,
)
from lorasmith.config.pretrain import VaeLossConfig
from lorasmith.core.errors import ConfigError, WeightsError
from lorasmith.core.safetensors_io import Tensors
from lorasmith.models.vision.conv_encoder import ConvImageEncoder
from lorasmith.pretraining.perceptual.load import load_perceptual_loss
from lorasmith.pretraining.perceptual.loss import PerceptualLoss
from lorasmith.pretraining.perceptual.resnet import ResnetFeatures
from lorasmith.pretraining.perceptual.vgg import VggFeatures, recognize_vgg
from lorasmith.pretraining.perceptual.vit import VitFeatures


def load(path: Path, **settings: object) -> PerceptualLoss:
    return load_perceptual_loss(VaeLossConfig(perceptual_encoder=path, **settings))


def lpips_reference(
    loss: PerceptualLoss, heads: list[torch.Tensor], images: torch.Tensor, others: torch.Tensor
) -> list[float]:
    """Each layer's distance as lpips computes it: 1x1 convolutions of squared differences."""
    distances = []
    maps = (loss.encoder.feature_maps(images), loss.encoder.feature_maps(others))
    for u, v, head in zip(*maps, heads, strict=True):
        u, v = (x / ((x**2).sum(1, keepdim=True).sqrt() + 1e-10) for x in (u, v))
        distances.append(float(torch.nn.functional.conv2d((u - v) ** 2, head).mean()))
    return distances


def test_embedded_image_encoder_is_the_default() -> None:
    loss = load_perceptual_loss(VaeLossConfig())
    assert isinstance(loss.encoder, ConvImageEncoder)
    assert loss.weights == dict.fromkeys(range(4), 0.25)


@pytest.mark.parametrize("rename", [False, True])
def test_lpips_is_its_formula(tmp_path: Path, rename: bool) -> None:
    tensors, heads = vgg_16(), lpips_heads()
    if rename:  # as the state of lpips.LPIPS has them
        tensors = {key.replace("features.", "net.slice1."): v for key, v in tensors.items()}
        tensors |= {"scaling_layer.shift": torch.zeros(1, 3, 1, 1)}
    loss = load(write_weights(tmp_path / "lpips.safetensors", {**tensors, **heads}))
    assert isinstance(loss.encoder, VggFeatures)
    images, others = random_images(0), random_images(1)
    expected = lpips_reference(loss, list(heads.values()), images, others)
    assert float(loss(images, others)) == pytest.approx(sum(expected), rel=1e-4)


def test_heads_of_another_file_and_layer_weights_are_applied(tmp_path: Path) -> None:
    heads = lpips_heads()
    loss = load(
        write_weights(tmp_path / "vgg.safetensors", vgg_16()),
        perceptual_lpips_heads=write_weights(tmp_path / "heads.safetensors", heads),
        perceptual_layer_weights={"relu3_3": 0.5, "relu1_2": 2.0, "relu5_3": 0.0},
    )
    images, others = random_images(0), random_images(1)
    first, _, third, *_ = lpips_reference(loss, list(heads.values()), images, others)
    assert float(loss(images, others)) == pytest.approx(2 * first + 0.5 * third, rel=1e-4)
    assert loss.weights == {0: 2.0, 2: 0.5}


def test_layer_weights_work_with_the_embedded_encoder() -> None:
    weights = {"stages.1": 1.0}
    loss = load_perceptual_loss(VaeLossConfig(perceptual_layer_weights=weights))
    images, others = random_images(0), random_images(1)
    pair = [torch.nn.functional.normalize(loss.encoder.feature_maps(x)[1], dim=1)
            for x in (images, others)]  # fmt: skip
    expected = (pair[0] - pair[1]).square().sum(1).mean()
    torch.testing.assert_close(loss(images, others), expected)


def test_loss_is_differentiable_where_features_are_zero(tmp_path: Path) -> None:
    tensors = {key: torch.zeros_like(value) for key, value in resnet_18().items()}
    loss = load(write_weights(tmp_path / "w.safetensors", tensors))
    others = random_images(1).requires_grad_()
    loss(random_images(0), others).backward()
    assert torch.isfinite(others.grad).all()


@pytest.mark.parametrize("network", [vit, resnet_18])
def test_loss_compiles_without_graph_breaks(tmp_path: Path, network: object) -> None:
    """Python that depends on values of tensors would break the graph, and a CUDA graph too."""
    loss = load(write_weights(tmp_path / "w.safetensors", network()))  # type: ignore[operator]
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    images, others = random_images(0), random_images(1)
    torch.testing.assert_close(compiled(images, others), loss(images, others))


@pytest.mark.gpu
@pytest.mark.parametrize("network", [vit, resnet_18, vgg_16])
def test_loss_and_gradients_are_captured_as_a_cuda_graph(tmp_path: Path, network: object) -> None:
    loss = load(write_weights(tmp_path / "w.safetensors", network())).cuda()  # type: ignore[operator]
    images, others = random_images(0).cuda(), random_images(1).cuda().requires_grad_()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            (eager,) = torch.autograd.grad(loss(images, others), others)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        (captured,) = torch.autograd.grad(loss(images, others), others)
    captured.zero_()
    graph.replay()
    torch.testing.assert_close(captured, eager, rtol=1e-3, atol=1e-6)


def test_normalisation_follows_the_config_of_timm(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "model.safetensors", vit())
    pixels = torch.full((1, 3, 1, 1), 0.5)
    network = load(path).encoder
    assert isinstance(network, VitFeatures)
    torch.testing.assert_close(network.normalize(pixels), torch.full((1, 3, 1, 1), 0.5))
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.25, 1.0]
    config = {"architecture": "vit", "pretrained_cfg": {"mean": mean, "std": std}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    network = load(path).encoder
    expected = [(0.75 - m) / s for m, s in zip(mean, std, strict=True)]
    torch.testing.assert_close(network.normalize(pixels).flatten(), torch.tensor(expected))
    config["pretrained_cfg"] = {"mean": mean, "std": [0, 1, 1]}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(WeightsError, match=r"config\.json: mean and std"):
        load(path)


def test_vgg_19_is_recognised_by_its_places() -> None:
    places = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)
    assert recognize_vgg({f"features.{place}.weight" for place in places}) == "VGG-19"
    assert recognize_vgg({f"features.{place}.weight" for place in (*places, 36)}) is None


def test_resnet_is_recognised(tmp_path: Path) -> None:
    loss = load(write_weights(tmp_path / "w.safetensors", resnet_18()))
    assert isinstance(loss.encoder, ResnetFeatures)


def without(tensors: Tensors, *keys: str) -> Tensors:
    return {key: value for key, value in tensors.items() if key not in keys}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"features.0.weight": torch.zeros(64, 3, 11, 11)}, "a perceptual encoder is VGG-16 or"),
        ({"weight": torch.zeros(1)}, "a perceptual encoder is VGG-16 or .*; here is weight"),
        (
            without(resnet_18(), "bn1.running_var"),
            "1 of the 100 tensors of ResNet-18 are missing, first bn1.running_var",
        ),
        (
            {**resnet_18(), "conv1.weight": torch.zeros(32, 3, 7, 7)},
            r"conv1.weight is \[32, 3, 7, 7\], in ResNet-18 it is \[64, 3, 7, 7\]",
        ),
        (
            {**vit(), "blocks.0.ls1.gamma": torch.zeros(128)},
            "1 tensors are not part of timm's plain ViT, first blocks.0.ls1.gamma",
        ),
        ({**vit(), "pos_embed": torch.zeros(1, 0, 128)}, "here is"),
        ({**vit(), "pos_embed": torch.zeros(1, 16, 128)}, r"pos_embed is \[1, 16, 128\], in a ViT"),
        (
            {**vit(), "patch_embed.proj.weight": torch.zeros(2**46, 0, 8, 8)},
            "ViT of impossible sizes",
        ),
        ({**vit(), f"blocks.{'9' * 5000}.attn.qkv.weight": torch.zeros(1)}, "not part of timm's"),
        (
            {**vit(), **lpips_heads()},
            r"LPIPS heads are for layers of \[64, 128, 256, 512, 512\] channels; the perceptual "
            r"encoder's have \[128, 128, 128\]",
        ),
    ],
)
def test_other_files_are_refused(tmp_path: Path, tensors: Tensors, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        load(write_weights(tmp_path / "w.safetensors", tensors))


def test_pickles_are_refused_with_a_hint(tmp_path: Path) -> None:
    torch.save(vit(), tmp_path / "vit.pth")
    with pytest.raises(WeightsError, match=r"pickled file.*convert it to safetensors"):
        load(tmp_path / "vit.pth")
    path = write_weights(tmp_path / "vit.safetensors", vit())
    with pytest.raises(WeightsError, match="pickled file"):
        load(path, perceptual_lpips_heads=tmp_path / "vit.pth")


def test_settings_that_fit_no_layer_are_refused(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "w.safetensors", vit())
    with pytest.raises(ConfigError, match=r"no layer 'block\.1'; did you mean blocks\.1"):
        load(path, perceptual_layer_weights={"block.1": 1.0})
    with pytest.raises(ConfigError, match="all layers have weight 0"):
        load(path, perceptual_layer_weights={"blocks.1": 0.0})
    with pytest.raises(WeightsError, match="has no LPIPS heads"):
        load(path, perceptual_lpips_heads=path)
    with pytest.raises(ConfigError, match="perceptual_layer_weights"):
        VaeLossConfig(perceptual_layer_weights={"blocks.1": -1.0})
    with pytest.raises(WeightsError, match="no such weights file"):
        load(tmp_path / "absent.safetensors")


def test_layer_without_a_head_is_refused(tmp_path: Path) -> None:
    heads = lpips_heads((128,) * 4)
    path = write_weights(tmp_path / "w.safetensors", {**vit(depth=8), **heads})
    assert load(path).weights == dict.fromkeys((1, 3, 5, 7), 1.0)
    with pytest.raises(ConfigError, match=r"no LPIPS head for blocks\.2; heads are for blocks\.1,"):
        load(path, perceptual_layer_weights={"blocks.2": 1.0})
