"""What a model consists of: parameters by layer type, and what a LoRA on each would cost.

Everything is computed from the configs on torch's meta device: no weights are read, and models of
any size take no memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from lorasmith.core.errors import ConfigError
from lorasmith.models.families.family import ModelVariant
from lorasmith.models.files.open import open_source
from lorasmith.models.files.source import ModelSource, build_empty_part
from lorasmith.models.scheduler_config import ZERO_SNR
from lorasmith.models.unet_tree import UnetNode, build_unet_tree, count_parameters

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

LAYER_TYPES: Mapping[str, str] = {
    "attn1": "self-attention (attn1)",
    "attn2": "cross-attention (attn2)",
    "ff": "feed-forward (ff)",
    "proj": "transformer in and out, norms",
    "resnet": "resnet convolutions and norms",
    "time_emb_proj": "time into resnets (time_emb_proj)",
    "sampler": "down- and upsamplers",
    "time_embedding": "time embedding",
    "in_out": "first and last convolution",
}
"""Types of layers in a U-Net, by short name."""

LORA_SETS: Mapping[str, tuple[str, ...]] = {
    "attention": ("attn1", "attn2"),
    "transformers": ("attn1", "attn2", "ff", "proj"),
    "transformers, resnets and samplers": (
        *("attn1", "attn2", "ff", "proj"),
        *("resnet", "time_emb_proj", "sampler"),
    ),
}
"""Layer types that LoRAs are usually put on; the last two sets are those of sd-scripts."""


@dataclass(frozen=True)
class LayerTypeCount:
    """How much of the U-Net is of one layer type."""

    kind: str
    """A key of `LAYER_TYPES`."""
    layers: int
    """Linear layers and convolutions of this type."""
    parameters: int
    """Their parameters, norms included."""
    share: float
    """Share of the U-Net's parameters, 0 to 1."""


@dataclass(frozen=True)
class LoraCost:
    """The size of a LoRA on a set of layers."""

    name: str
    """A key of `LAYER_TYPES` or `LORA_SETS`, or ``text``."""
    layers: int
    """Adapted linear layers and convolutions."""
    weights: int
    """Parameters of the layers' weights."""
    lora: int
    """Parameters of the LoRA."""

    @property
    def reduction(self) -> float:
        """The layers' parameters over the LoRA's."""
        return self.weights / self.lora if self.lora else 0.0


@dataclass(frozen=True)
class ModelSummary:
    """The components of a model and their sizes."""

    folder: Path
    """The model's folder or file."""
    variant: ModelVariant
    """What it is."""
    unet: UnetNode
    """The U-Net's tree; its parameters are the total."""
    shares: tuple[LayerTypeCount, ...]
    """The U-Net by layer type, in the order of `LAYER_TYPES`."""
    vae: Mapping[str, Any]
    """The VAE in brief."""
    text: tuple[Mapping[str, Any], ...]
    """The text encoders in brief; SDXL has two."""
    scheduler: Mapping[str, Any]
    """Noise schedule and prediction type."""
    lora: tuple[LoraCost, ...] = ()
    """Costs of a LoRA by layer type, then by set; empty without a rank."""

    @property
    def parameters(self) -> int:
        """Parameters of all parts."""
        text = sum(int(part["parameters"]) for part in self.text)
        return self.unet.parameters + int(self.vae["parameters"]) + text


def summarize_model(name: str | Path | None = None, rank: int | None = None) -> ModelSummary:
    """Summarize a model from its configs.

    Args:
        name: see `lorasmith.models.files.open.resolve_model_path`; None is the embedded model.
        rank: also compute the costs of a LoRA of this rank.

    Raises:
        WeightsError: no such model, or a part's config is missing or damaged.
        ConfigError: the rank is not 1 or more.
    """
    if rank is not None and rank < 1:
        raise ConfigError(f"lora: rank {rank} is not possible; use a whole number, 1 or more")
    source = open_source(name)
    parts = {part: build_empty_part(source, part) for part in source.networks}
    unet, vae = parts.pop("unet"), parts.pop("vae")
    return ModelSummary(
        source.path,
        source.variant,
        build_unet_tree(unet),
        count_by_layer_type(unet),
        _describe_vae(vae),
        tuple(_describe_text_encoder(part, encoder) for part, encoder in parts.items()),
        _describe_scheduler(source),
        estimate_lora_costs(unet, list(parts.values()), rank) if rank else (),
    )


@dataclass(frozen=True)
class MetaNetworks:
    """A model's U-Net and text encoders without their weights, on the meta device."""

    path: Path
    """The folder or the single file that it was read from."""
    unet: Any
    """The U-Net."""
    text_encoder: Any
    """The text encoder, or the first of two."""
    text_encoder_2: Any | None
    """SDXL's second."""


def build_meta_networks(name: str | Path | None = None) -> MetaNetworks:
    """Build a model's U-Net and text encoders from their configs.

    Raises:
        WeightsError: no such model, or a part's config is missing or damaged.
    """
    source = open_source(name)
    parts = {part: build_empty_part(source, part) for part in source.networks if part != "vae"}
    first, second = parts.get("text_encoder"), parts.get("text_encoder_2")
    return MetaNetworks(source.path, parts["unet"], first, second)


def layer_type(name: str) -> str:
    """Return the type (a key of `LAYER_TYPES`) of a U-Net module or parameter by its path."""
    parts = name.split(".")
    for kind in ("attn1", "attn2", "ff", "time_emb_proj"):
        if kind in parts:
            return kind
    if "attentions" in parts:
        return "proj"
    if "resnets" in parts:
        return "resnet"
    if "downsamplers" in parts or "upsamplers" in parts:
        return "sampler"
    return "time_embedding" if "embedding" in parts[0] else "in_out"


def count_by_layer_type(unet: "UNet2DConditionModel") -> tuple[LayerTypeCount, ...]:
    """Return the U-Net's layers and parameters by layer type; they add up to all of it."""
    parameters = dict.fromkeys(LAYER_TYPES, 0)
    for name, tensor in unet.named_parameters():
        parameters[layer_type(name)] += tensor.numel()
    layers = dict.fromkeys(LAYER_TYPES, 0)
    for name, _ in iter_adaptable_layers(unet):
        layers[layer_type(name)] += 1
    num_total = sum(parameters.values())
    return tuple(
        LayerTypeCount(kind, layers[kind], parameters[kind], parameters[kind] / num_total)
        for kind in LAYER_TYPES
    )


def iter_adaptable_layers(module: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """Yield the paths and layers that a LoRA can be put on."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            yield name, layer


def count_lora_parameters(layer: nn.Linear | nn.Conv2d, rank: int) -> int:
    """Return the number of parameters of a LoRA on one layer (arXiv:2106.09685, section 4.1).

    Linear: down ``[r, in]`` and up ``[out, r]``; convolution: ``[r, in, k, k]`` and
    ``[out, r, 1, 1]``.
    """
    if isinstance(layer, nn.Linear):
        return rank * (layer.in_features + layer.out_features)
    area = layer.kernel_size[0] * layer.kernel_size[1]
    return rank * (layer.in_channels * area + layer.out_channels)


def estimate_lora_costs(
    unet: "UNet2DConditionModel", text_encoders: Sequence[nn.Module], rank: int
) -> tuple[LoraCost, ...]:
    """Return the costs of a LoRA on each layer type, the usual sets, and the text encoders."""
    by_kind: dict[str, list[nn.Linear | nn.Conv2d]] = {kind: [] for kind in LAYER_TYPES}
    for name, layer in iter_adaptable_layers(unet):
        by_kind[layer_type(name)].append(layer)
    costs = [_cost(kind, layers, rank) for kind, layers in by_kind.items()]
    for name, kinds in LORA_SETS.items():
        costs.append(_cost(name, [layer for kind in kinds for layer in by_kind[kind]], rank))
    # The projection behind SDXL's second encoder never gets an adapter.
    text_layers = [
        layer
        for encoder in text_encoders
        for name, layer in iter_adaptable_layers(encoder)
        if "encoder.layers" in name and isinstance(layer, nn.Linear)
    ]
    return (*costs, _cost("text", text_layers, rank))


def _cost(name: str, layers: Sequence[nn.Linear | nn.Conv2d], rank: int) -> LoraCost:
    weights = sum(layer.weight.numel() for layer in layers)
    return LoraCost(
        name, len(layers), weights, sum(count_lora_parameters(layer, rank) for layer in layers)
    )


def _describe_vae(vae: Any) -> dict[str, Any]:
    channels = list(vae.config.block_out_channels)
    return {
        "class": type(vae).__name__,
        "parameters": count_parameters(vae),
        "encoder": count_parameters(vae.encoder),
        "decoder": count_parameters(vae.decoder),
        "channels": channels,
        "downscale": 2 ** (len(channels) - 1),
        "latent_channels": vae.config.latent_channels,
        "scaling_factor": vae.config.scaling_factor,
    }


def _describe_text_encoder(part: str, encoder: Any) -> dict[str, Any]:
    config = encoder.config
    return {
        "part": part,
        "class": type(encoder).__name__,
        "parameters": count_parameters(encoder),
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "heads": config.num_attention_heads,
        "tokens": config.max_position_embeddings,
        "vocabulary": config.vocab_size,
    }


def _describe_scheduler(source: ModelSource) -> dict[str, Any]:
    config = source.config("scheduler")
    return {
        "class": config.get("_class_name", "unknown"),
        "prediction_type": source.variant.prediction_type,  # None where a single file does not say
        "timesteps": config.get("num_train_timesteps", 1000),
        "beta_schedule": config.get("beta_schedule", "linear"),
        "beta_start": config.get("beta_start", 0.0001),
        "beta_end": config.get("beta_end", 0.02),
        "zero_terminal_snr": bool(config.get(ZERO_SNR)),
    }
