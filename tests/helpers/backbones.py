"""Weights files of networks with the layer names of torchvision, timm and lpips, made at random."""

from pathlib import Path

import torch

from lorasmith.core.safetensors_io import Tensors, save_tensors

VGG_16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")
"""torchvision's configuration D; M is a pooling."""
VGG_WIDTHS = (64, 128, 256, 512, 512)


def write_weights(path: Path, tensors: Tensors) -> Path:
    save_tensors(path, tensors, {"format": "pt"})
    return path


def random_images(seed: int, *size: int) -> torch.Tensor:
    """Pixels in -1..1."""
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(*(size or (2, 3, 32, 32)), generator=rng) * 2 - 1


def vgg_16() -> Tensors:
    rng = torch.Generator().manual_seed(0)
    tensors: Tensors = {}
    place, before = 0, 3
    for width in VGG_16:
        if isinstance(width, str):
            place += 1
            continue
        weight = torch.randn(width, before, 3, 3, generator=rng) * (2 / (9 * before)) ** 0.5
        tensors[f"features.{place}.weight"] = weight
        tensors[f"features.{place}.bias"] = 0.1 * torch.randn(width, generator=rng)
        place, before = place + 2, width
    return tensors


def lpips_heads(widths: tuple[int, ...] = VGG_WIDTHS) -> Tensors:
    rng = torch.Generator().manual_seed(1)
    return {
        f"lin{k}.model.1.weight": torch.rand(1, width, 1, 1, generator=rng)
        for k, width in enumerate(widths)
    }


def resnet_18() -> Tensors:
    rng = torch.Generator().manual_seed(0)
    tensors: Tensors = {"fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}

    def add(conv: str, norm: str, width: int, inputs: int, kernel: int) -> None:
        shape = (width, inputs, kernel, kernel)
        scale = (2 / (inputs * kernel**2)) ** 0.5
        tensors[f"{conv}.weight"] = torch.randn(shape, generator=rng) * scale
        tensors[f"{norm}.weight"] = torch.rand(width, generator=rng) + 0.5
        tensors[f"{norm}.bias"] = 0.1 * torch.randn(width, generator=rng)
        tensors[f"{norm}.running_mean"] = 0.1 * torch.randn(width, generator=rng)
        tensors[f"{norm}.running_var"] = torch.rand(width, generator=rng) + 0.5

    add("conv1", "bn1", 64, 3, 7)
    for stage, width in enumerate((64, 128, 256, 512), start=1):
        for block in range(2):
            name = f"layer{stage}.{block}"
            inputs = width // 2 if stage > 1 and block == 0 else width
            add(f"{name}.conv1", f"{name}.bn1", width, inputs, 3)
            add(f"{name}.conv2", f"{name}.bn2", width, width, 3)
            if inputs != width:
                add(f"{name}.downsample.0", f"{name}.downsample.1", width, inputs, 1)
    return tensors


def vit(width: int = 128, depth: int = 3, patch: int = 8, grid: int = 4) -> Tensors:
    """A small ViT with heads of 64 channels, as timm's have."""
    rng = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + grid**2, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (10, width),
    }
    for block in range(depth):
        layers = {
            "norm1": (width,), "attn.qkv": (3 * width, width), "attn.proj": (width, width),
            "norm2": (width,), "mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width),
        }  # fmt: skip
        for layer, shape in layers.items():
            shapes[f"blocks.{block}.{layer}.weight"] = shape
            shapes[f"blocks.{block}.{layer}.bias"] = shape[:1]
    return {
        name: torch.randn(shape, generator=rng) * (0.5 if len(shape) == 1 else shape[-1] ** -0.5)
        for name, shape in shapes.items()
    }
