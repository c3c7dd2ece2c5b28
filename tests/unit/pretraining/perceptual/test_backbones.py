"""VGG, ResNet and ViT against the same written out with torch's functions, key by key."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.backbones import (
    VGG_16,
    random_images,
    resnet_18,
    vgg_16,
    vit,
    write_weights,
)
from lorasmith.core.safetensors_io import SafetensorsFile, Tensors
from lorasmith.models.vision.base import FeatureNetwork
from lorasmith.models.vision.vision_transformer import VitSizes
from lorasmith.pretraining.perceptual.load import load_backbone
from lorasmith.pretraining.perceptual.normalize import IMAGENET
from lorasmith.pretraining.perceptual.resnet import ResnetFeatures
from lorasmith.pretraining.perceptual.vgg import VggFeatures
from lorasmith.pretraining.perceptual.vit import VitFeatures

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


def imagenet_pixels(images: torch.Tensor) -> torch.Tensor:
    return ((images + 1) / 2 - MEAN) / STD


def opened(tmp_path: Path, tensors: Tensors) -> FeatureNetwork:
    return load_backbone(SafetensorsFile(write_weights(tmp_path / "w.safetensors", tensors)))


def assert_features(
    network: FeatureNetwork, images: torch.Tensor, expected: list[torch.Tensor]
) -> None:
    with torch.no_grad():
        maps = network.feature_maps(images)
    assert len(maps) == len(expected) == len(network.layer_channels)
    for ours, theirs, width in zip(maps, expected, network.layer_channels.values(), strict=True):
        assert ours.shape[1] == width
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def vgg_reference(tensors: Tensors, images: torch.Tensor) -> list[torch.Tensor]:
    x, place, maps = imagenet_pixels(images), 0, []
    for width in VGG_16:
        if width == "M":
            maps.append(x)
            x, place = F.max_pool2d(x, 2), place + 1
        else:
            name = f"features.{place}"
            x = F.conv2d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"], padding=1).relu()
            place += 2
    return maps


def resnet_reference(tensors: Tensors, images: torch.Tensor) -> list[torch.Tensor]:
    def layer(x: torch.Tensor, conv: str, norm: str, stride: int, padding: int) -> torch.Tensor:
        x = F.conv2d(x, tensors[f"{conv}.weight"], stride=stride, padding=padding)
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(tensors[f"{norm}.{name}"] for name in names))

    x = layer(imagenet_pixels(images), "conv1", "bn1", 2, 3).relu()
    maps = [x]
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            hidden = layer(x, f"{name}.conv1", f"{name}.bn1", stride, 1).relu()
            hidden = layer(hidden, f"{name}.conv2", f"{name}.bn2", 1, 1)
            if stride == 2:
                x = layer(x, f"{name}.downsample.0", f"{name}.downsample.1", 2, 0)
            x = (hidden + x).relu()
        maps.append(x)
    return maps


def vit_reference(
    tensors: Tensors, images: torch.Tensor, positions: torch.Tensor
) -> list[torch.Tensor]:
    """The images are already in -1..1, as timm's ViTs have them."""

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        spread = (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return centred / spread * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    kernel = tensors["patch_embed.proj.weight"]
    width, patch = kernel.shape[0], kernel.shape[-1]
    rows, columns = images.shape[-2] // patch, images.shape[-1] // patch
    cut = images.unfold(2, patch, patch).unfold(3, patch, patch)  # [B, 3, rows, columns, p, p]
    cut = cut.permute(0, 2, 3, 1, 4, 5).reshape(len(images), rows * columns, -1)
    x = cut @ kernel.reshape(width, -1).T + tensors["patch_embed.proj.bias"]
    x = torch.cat([tensors["cls_token"].expand(len(images), 1, width), x], dim=1) + positions
    maps = []
    for block in range(3):
        name = f"blocks.{block}"
        query, key, value = linear(norm(x, f"{name}.norm1"), f"{name}.attn.qkv").chunk(3, dim=-1)
        heads = []
        for head in range(width // 64):
            part = slice(64 * head, 64 * head + 64)
            scores = query[..., part] @ key[..., part].transpose(1, 2) / 64**0.5
            heads.append(scores.softmax(-1) @ value[..., part])
        x = x + linear(torch.cat(heads, dim=-1), f"{name}.attn.proj")
        hidden = F.gelu(linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1"))
        x = x + linear(hidden, f"{name}.mlp.fc2")
        maps.append(x[:, 1:].transpose(1, 2).reshape(len(images), width, rows, columns))
    return maps


def test_vgg_has_the_features_before_each_pooling(tmp_path: Path) -> None:
    tensors = vgg_16()
    network = opened(tmp_path, {**tensors, "classifier.0.bias": torch.zeros(10)})
    assert list(network.layer_channels) == [
        "relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3",
    ]  # fmt: skip
    images = random_images(0, 1, 3, 32, 48)
    assert_features(network, images, vgg_reference(tensors, images))


def test_resnet_has_the_features_of_its_stages(tmp_path: Path) -> None:
    tensors = resnet_18()
    network = opened(tmp_path, tensors)
    assert list(network.layer_channels) == ["relu1", "layer1", "layer2", "layer3", "layer4"]
    images = random_images(0, 2, 3, 64, 48)
    assert_features(network, images, resnet_reference(tensors, images))


def test_vit_has_the_features_of_its_blocks(tmp_path: Path) -> None:
    tensors = vit()
    network = opened(tmp_path, tensors)
    images = random_images(0, 2, 3, 32, 32)
    assert_features(network, images, vit_reference(tensors, images, tensors["pos_embed"]))


def test_vit_takes_other_sizes_with_interpolated_positions(tmp_path: Path) -> None:
    tensors = vit()
    network = opened(tmp_path, tensors)
    images = random_images(0, 1, 3, 16, 64)
    table = tensors["pos_embed"][:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    table = F.interpolate(table, (2, 8), mode="bicubic", antialias=True)
    table = table.permute(0, 2, 3, 1).reshape(1, 16, -1)
    positions = torch.cat([tensors["pos_embed"][:, :1], table], dim=1)
    assert_features(network, images, vit_reference(tensors, images, positions))


def test_vit_scales_sides_to_whole_patches(tmp_path: Path) -> None:
    network = opened(tmp_path, vit())
    images = random_images(0, 1, 3, 35, 30)
    scaled = F.interpolate(images, (32, 32), mode="bilinear")
    assert_features(network, images, [m.detach() for m in network.feature_maps(scaled)])


def test_fewer_layers_are_computed_on_request(tmp_path: Path) -> None:
    images = random_images(0, 1, 3, 32, 32)
    for tensors in (vit(), resnet_18()):
        network = opened(tmp_path, tensors)
        first, second = network.feature_maps(images, 2)
        assert torch.equal(first, network.feature_maps(images)[0])
        assert torch.equal(second, network.feature_maps(images)[1])


def test_default_layers_of_a_vit_are_four_with_the_last() -> None:
    with torch.device("meta"):
        small = VitFeatures(VitSizes(224, 16, 384, 12, 6, 1536), IMAGENET)
    assert small.default_layers == ("blocks.2", "blocks.5", "blocks.8", "blocks.11")


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # Published sizes less those of the classifiers.
        ("VGG-16", 14_714_688),
        ("VGG-19", 20_024_384),
        ("ResNet-18", 11_689_512 - 513_000),
        ("ResNet-34", 21_797_672 - 513_000),
        ("ResNet-50", 25_557_032 - 2_049_000),
        ("vit_small_patch16_224", 22_050_664 - 385_000),
        ("vit_base_patch16_224", 86_567_656 - 769_000),
    ],
)
def test_network_has_as_many_parameters_as_published(name: str, count: int) -> None:
    sizes = {
        "vit_small_patch16_224": VitSizes(224, 16, 384, 12, 6, 1536),
        "vit_base_patch16_224": VitSizes(224, 16, 768, 12, 12, 3072),
    }
    with torch.device("meta"):
        network: nn.Module
        if name in sizes:
            network = VitFeatures(sizes[name], IMAGENET)
        else:
            network = (VggFeatures if "VGG" in name else ResnetFeatures)(name, IMAGENET)
    assert sum(parameter.numel() for parameter in network.parameters()) == count
