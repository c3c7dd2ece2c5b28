"""Opening the network of the perceptual loss: an image encoder's folder, or a safetensors file."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from lorasmith.config.pretrain import VaeLossConfig
from lorasmith.core.errors import WeightsError
from lorasmith.core.safetensors_header import PICKLE_SUFFIXES
from lorasmith.core.safetensors_io import SafetensorsFile
from lorasmith.models.image_encoder import load_image_encoder
from lorasmith.models.vision.base import FeatureNetwork
from lorasmith.pretraining.perceptual.loss import PerceptualLoss
from lorasmith.pretraining.perceptual.normalize import IMAGENET, INCEPTION, read_normalization
from lorasmith.pretraining.perceptual.resnet import ResnetFeatures, recognize_resnet
from lorasmith.pretraining.perceptual.vgg import VggFeatures, recognize_vgg
from lorasmith.pretraining.perceptual.vit import VitFeatures, recognize_vit

_LPIPS_SLICE = re.compile(r"net\.slice\d+\.(\d+\.(?:weight|bias))")
"""How the VGG inside a saved `lpips.LPIPS` is called."""
_LPIPS_HEAD = re.compile(r"lin(\d{1,3})\.model\.1\.weight")
_LARGEST_BLOCK = 100
_SUFFIXES = PICKLE_SUFFIXES | {".safetensors"}
_KNOWN = (
    "VGG-16 or VGG-19 (without batch normalisation), ResNet-18, ResNet-34 or ResNet-50 in "
    "torchvision's names (features.0.weight, layer1.0.conv1.weight), or a ViT in timm's "
    "(blocks.0.attn.qkv.weight)"
)


def load_perceptual_loss(settings: VaeLossConfig) -> PerceptualLoss:
    """Load the perceptual loss that settings describe, on the CPU in float32.

    Raises:
        WeightsError: a file is missing, a pickle, damaged, or none of the known networks.
        ConfigError: the layer weights do not fit the network.
    """
    path, heads_file = settings.perceptual_encoder, settings.perceptual_lpips_heads
    heads: list[torch.Tensor] = []
    if path is None or not (path.is_file() or path.suffix.lower() in _SUFFIXES):
        encoder: FeatureNetwork = load_image_encoder(path)
    else:
        file = SafetensorsFile(path)
        encoder = load_backbone(file)
        heads = _read_heads(file, encoder)
    if heads_file is not None:
        file = SafetensorsFile(heads_file)
        heads = _read_heads(file, encoder)
        if not heads:
            raise WeightsError(f"{heads_file}: has no LPIPS heads (lin0.model.1.weight, ...)")
    return PerceptualLoss(encoder, settings.perceptual_layer_weights, heads)


def load_backbone(file: SafetensorsFile) -> FeatureNetwork:
    """Load the network in a safetensors file, which its keys tell.

    Raises:
        WeightsError: it is none of the known ones, or tensors are missing or of other shapes.
    """
    shapes = {key: info.shape for key, info in file.header.tensors.items()}
    names = {_torchvision_name(key): key for key in shapes}
    by_name = {name: shapes[key] for name, key in names.items()}
    normalization = read_normalization(file.path, IMAGENET)
    vgg, resnet = recognize_vgg(by_name), recognize_resnet(by_name)
    if vgg is not None:
        return _build(file, vgg, names, lambda: VggFeatures(vgg, normalization))
    if resnet is not None:
        return _build(file, resnet, names, lambda: ResnetFeatures(resnet, normalization))
    sizes = recognize_vit(by_name)
    if sizes is None or sizes.num_hidden_layers > _LARGEST_BLOCK:
        first = next(iter(shapes), "nothing")
        raise WeightsError(f"{file.path}: a perceptual encoder is {_KNOWN}; here is {first}")
    _refuse_variants(file.path, by_name)
    normalization = read_normalization(file.path, INCEPTION)
    names = {f"transformer.{name}": key for name, key in names.items()}
    return _build(file, "a ViT", names, lambda: VitFeatures(sizes, normalization))


def _torchvision_name(key: str) -> str:
    match = _LPIPS_SLICE.fullmatch(key)
    return f"features.{match[1]}" if match else key


def _build(
    file: SafetensorsFile, kind: str, names: Mapping[str, str], create: Callable[[], FeatureNetwork]
) -> FeatureNetwork:
    """Create a network and load its tensors, after their shapes were checked.

    Args:
        file: where they are.
        kind: the network's name in errors.
        names: the file's keys by the network's.
        create: creates the network.
    """
    try:
        with torch.device("meta"):
            expected = create().state_dict()
    except RuntimeError as error:  # sizes that no tensor has
        raise WeightsError(f"{file.path}: {kind} of impossible sizes ({error})") from error
    needed = [key for key in expected if not key.endswith("num_batches_tracked")]
    missing = [key for key in needed if key not in names]
    if missing:
        raise WeightsError(
            f"{file.path}: {len(missing)} of the {len(needed)} tensors of {kind} are missing, "
            f"first {missing[0]}"
        )
    for key in needed:
        shape, wanted = file.header.tensors[names[key]].shape, tuple(expected[key].shape)
        if shape != wanted:
            raise WeightsError(
                f"{file.path}: {names[key]} is {list(shape)}, in {kind} it is {list(wanted)}"
            )
    network = create()
    tensors = {key: file.read_tensor(names[key]).float() for key in needed}
    network.load_state_dict(tensors, strict=False)
    return network


def _refuse_variants(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse ViTs whose blocks hold more than the plain ones', which would be left out."""
    known = re.compile(r"blocks\.\d{1,3}\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12])\.(weight|bias)")
    odd = [key for key in shapes if key.startswith("blocks.") and not known.fullmatch(key)]
    odd += [key for key in shapes if key in ("reg_token", "dist_token", "norm_pre.weight")]
    if odd:
        raise WeightsError(
            f"{path}: {len(odd)} tensors are not part of timm's plain ViT, first {odd[0]}; use "
            "such as vit_small_patch16_224 or vit_base_patch16_224"
        )


def _read_heads(file: SafetensorsFile, encoder: FeatureNetwork) -> list[torch.Tensor]:
    """Return the LPIPS heads ``[C]`` of a file in order; none if it has none.

    Raises:
        WeightsError: they do not fit the encoder's layers.
    """
    keys = {
        int(match[1]): key for key in file.header.tensors if (match := _LPIPS_HEAD.fullmatch(key))
    }
    if not keys:
        return []
    channels, layers = encoder.layer_channels, encoder.default_layers
    widths = {k: file.header.tensors[key].shape for k, key in keys.items()}
    if widths != {k: (1, channels[name], 1, 1) for k, name in enumerate(layers)}:
        in_file = [shape[1] if len(shape) > 1 else shape for _, shape in sorted(widths.items())]
        raise WeightsError(
            f"{file.path}: the LPIPS heads are for layers of {in_file} channels; the perceptual "
            f"encoder's have {[channels[name] for name in layers]}"
        )
    return [file.read_tensor(keys[k]).flatten() for k in range(len(layers))]
