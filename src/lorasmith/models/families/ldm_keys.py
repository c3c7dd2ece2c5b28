"""Key tables of single files: diffusers' names and those of the original code (LDM, sgm).

The tables are pairs of prefixes, diffusers' on the left. The longest matching prefix translates a
name; each table is one to one, so it works in both directions. The original code numbers blocks
consecutively and diffusers groups them by resolution, so their pairs follow from the number of
levels and of layers in each.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

Pairs = tuple[tuple[str, str], ...]

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."

UNET_OUTSIDE: Pairs = (
    ("conv_in", "input_blocks.0.0"),
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("add_embedding.linear_1", "label_emb.0.0"),
    ("add_embedding.linear_2", "label_emb.0.2"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
)
UNET_RESNET: Pairs = (
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
)
VAE_OUTSIDE: Pairs = (
    ("encoder.conv_in", "encoder.conv_in"),
    ("encoder.conv_norm_out", "encoder.norm_out"),
    ("encoder.conv_out", "encoder.conv_out"),
    ("decoder.conv_in", "decoder.conv_in"),
    ("decoder.conv_norm_out", "decoder.norm_out"),
    ("decoder.conv_out", "decoder.conv_out"),
    ("quant_conv", "quant_conv"),
    ("post_quant_conv", "post_quant_conv"),
)
VAE_RESNET: Pairs = (
    ("norm1", "norm1"),
    ("conv1", "conv1"),
    ("norm2", "norm2"),
    ("conv2", "conv2"),
    ("conv_shortcut", "nin_shortcut"),
)
VAE_ATTENTION: Pairs = (
    ("group_norm", "norm"),
    ("to_q", "q"),
    ("to_k", "k"),
    ("to_v", "v"),
    ("to_out.0", "proj_out"),
)
"""In the original code these projections are 1x1 convolutions."""
OPEN_CLIP_OUTSIDE: Pairs = (
    ("embeddings.token_embedding.weight", "token_embedding.weight"),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("final_layer_norm", "ln_final"),
    ("text_projection.weight", "text_projection"),
)
OPEN_CLIP_LAYER: Pairs = (
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("self_attn.out_proj", "attn.out_proj"),
)
PROJECTION = "text_projection.weight"
"""diffusers' name of the layer behind a text encoder's pooled embedding."""
STACKED = ("q_proj", "k_proj", "v_proj")
"""OpenCLIP stacks these in one tensor, ``attn.in_proj_weight`` and ``_bias``, in this order."""


class TensorForm(Enum):
    """How a tensor is stored in a single file, compared with diffusers."""

    SAME = "as it is"
    CONVOLUTION = "with two more dimensions of size 1"
    TRANSPOSED = "transposed"
    STACKED = "several, concatenated"


@dataclass(frozen=True)
class TensorEntry:
    """A tensor of a single file, and its counterpart in a folder."""

    key: str
    """Its name in the file."""
    part: str
    """The network that it belongs to: ``unet``, ``vae``, ``text_encoder``, ``text_encoder_2``."""
    names: tuple[str, ...]
    """Its names in diffusers; several where the file stacks them."""
    form: TensorForm = TensorForm.SAME


class KeyTable:
    """Translation of the prefixes of diffusers' names into those of the original code."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._pairs = dict(pairs)

    def to_ldm(self, name: str) -> str | None:
        """Return diffusers' name in the original naming, or None if it has none."""
        return _translate_prefix(self._pairs, name)


def _translate_prefix(pairs: Mapping[str, str], name: str) -> str | None:
    cut = len(name)
    while cut > 0:
        other = pairs.get(name[:cut])
        if other is not None:
            return other + name[cut:]
        cut = name.rfind(".", 0, cut)
    return None


def unet_table(config: Mapping[str, Any]) -> KeyTable:
    """Return the table of a U-Net with this diffusers config."""
    levels, layers = len(config["block_out_channels"]), int(config.get("layers_per_block", 2))
    attended = [kind.startswith("CrossAttn") for kind in config["up_block_types"]]
    return KeyTable((*UNET_OUTSIDE, *_unet_block_pairs(levels, layers, attended)))


def _unet_block_pairs(levels: int, layers: int, attended: list[bool]) -> Iterator[tuple[str, str]]:
    """Yield the pairs of the blocks; ``attended`` says which up levels have attention.

    A down level has ``layers`` resnets and a downsampler. An up level has one more resnet, and its
    upsampler is in the last block, behind the attention if there is any.
    """
    per_level = layers + 1
    for level in range(levels):
        block = f"down_blocks.{level}"
        for layer in range(layers):
            ldm_block = f"input_blocks.{level * per_level + layer + 1}"
            yield from _nested_pairs(f"{block}.resnets.{layer}", f"{ldm_block}.0", UNET_RESNET)
            yield f"{block}.attentions.{layer}", f"{ldm_block}.1"
        sampler = f"input_blocks.{(level + 1) * per_level}.0.op"
        yield f"{block}.downsamplers.0.conv", sampler
    for i, block in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        pairs = UNET_RESNET if block.startswith("resnets") else (("", ""),)
        yield from _nested_pairs(f"mid_block.{block}", f"middle_block.{i}", pairs)
    for level in range(levels):
        block = f"up_blocks.{level}"
        for layer in range(per_level):
            ldm_block = f"output_blocks.{level * per_level + layer}"
            yield from _nested_pairs(f"{block}.resnets.{layer}", f"{ldm_block}.0", UNET_RESNET)
            yield f"{block}.attentions.{layer}", f"{ldm_block}.1"
        last = f"output_blocks.{level * per_level + layers}"
        yield f"{block}.upsamplers.0.conv", f"{last}.{2 if attended[level] else 1}.conv"


def _nested_pairs(ours: str, theirs: str, pairs: Pairs) -> Iterator[tuple[str, str]]:
    for inner, outer in pairs:
        yield f"{ours}.{inner}".rstrip("."), f"{theirs}.{outer}".rstrip(".")


def vae_table(config: Mapping[str, Any]) -> KeyTable:
    """Return the table of an autoencoder with this diffusers config."""
    levels, layers = len(config["block_out_channels"]), int(config.get("layers_per_block", 1))
    return KeyTable((*VAE_OUTSIDE, *_vae_block_pairs(levels, layers)))


def _vae_block_pairs(levels: int, layers: int) -> Iterator[tuple[str, str]]:
    """Yield the pairs of the blocks. The original code numbers the decoder's levels backwards."""
    for level in range(levels):
        for layer in range(layers):
            block, ldm_block = f"down_blocks.{level}.resnets.{layer}", f"down.{level}.block.{layer}"
            yield from _nested_pairs(f"encoder.{block}", f"encoder.{ldm_block}", VAE_RESNET)
        block, ldm_block = (
            f"down_blocks.{level}.downsamplers.0.conv",
            f"down.{level}.downsample.conv",
        )
        yield f"encoder.{block}", f"encoder.{ldm_block}"
        ldm_level = levels - 1 - level
        for layer in range(layers + 1):
            block, ldm_block = f"up_blocks.{level}.resnets.{layer}", f"up.{ldm_level}.block.{layer}"
            yield from _nested_pairs(f"decoder.{block}", f"decoder.{ldm_block}", VAE_RESNET)
        block, ldm_block = f"up_blocks.{level}.upsamplers.0.conv", f"up.{ldm_level}.upsample.conv"
        yield f"decoder.{block}", f"decoder.{ldm_block}"
    for side in ("encoder", "decoder"):
        for i in (0, 1):
            block, ldm_block = f"mid_block.resnets.{i}", f"mid.block_{i + 1}"
            yield from _nested_pairs(f"{side}.{block}", f"{side}.{ldm_block}", VAE_RESNET)
        block, ldm_block = f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1"
        yield from _nested_pairs(block, ldm_block, VAE_ATTENTION)


def open_clip_table(layers: int) -> KeyTable:
    """Return the table of an OpenCLIP text encoder, but for what is stacked."""
    pairs = [
        (f"encoder.layers.{layer}.{ours}", f"transformer.resblocks.{layer}.{theirs}")
        for layer in range(layers)
        for ours, theirs in OPEN_CLIP_LAYER
    ]
    return KeyTable((*OPEN_CLIP_OUTSIDE, *pairs))


@dataclass(frozen=True)
class SingleFileKeys:
    """Where the parts of a family's models are in a single file."""

    mark: str
    """What the names of a text encoder's tensors begin with; it tells the family."""
    clip: Mapping[str, str] = field(default_factory=dict)
    """Prefixes of CLIP text encoders, which keep their names, by part."""
    open_clip: Mapping[str, str] = field(default_factory=dict)
    """Prefixes of OpenCLIP text encoders by part."""
    ignored: tuple[str, ...] = ()
    """Beginnings of further tensors in published files that no image depends on."""
    unet: str = UNET_PREFIX
    vae: str = VAE_PREFIX

    def entries(
        self, names: Mapping[str, Iterable[str]], configs: Mapping[str, Mapping[str, Any]]
    ) -> list[TensorEntry]:
        """Return the tensors of a file with these parts.

        Args:
            names: each part's tensors in diffusers' naming, text encoders' without ``text_model.``.
            configs: the configs of U-Net and autoencoder.

        Raises:
            KeyError: a tensor does not exist in single files of this family; it is named.
        """
        entries_found: list[TensorEntry] = []
        for part, part_names in names.items():
            if part == "unet":
                entries_found += _diffusers_entries(
                    part, part_names, self.unet, unet_table(configs[part])
                )
            elif part == "vae":
                entries_found += _diffusers_entries(
                    part, part_names, self.vae, vae_table(configs[part])
                )
            elif part in self.clip:
                entries_found += [
                    TensorEntry(self.clip[part] + name, part, (name,)) for name in part_names
                ]
            else:
                entries_found += _open_clip_entries(part, list(part_names), self.open_clip[part])
        return entries_found

    @property
    def prefixes(self) -> dict[str, str]:
        """Beginnings of names by the part that they are of."""
        return {"unet": self.unet, "vae": self.vae, **self.clip, **self.open_clip}


def _diffusers_entries(
    part: str, names: Iterable[str], prefix: str, table: KeyTable
) -> Iterator[TensorEntry]:
    for name in names:
        key = table.to_ldm(name)
        if key is None:
            raise KeyError(name)
        yield TensorEntry(prefix + key, part, (name,), _tensor_form(part, name))


def _tensor_form(part: str, name: str) -> TensorForm:
    """Return the form of a tensor: the VAE's attention projections became linear layers."""
    projection = part == "vae" and ".attentions." in name and ".group_norm." not in name
    return TensorForm.CONVOLUTION if projection and name.endswith(".weight") else TensorForm.SAME


def _open_clip_entries(part: str, names: list[str], prefix: str) -> Iterator[TensorEntry]:
    layers = 1 + max((int(n.split(".")[2]) for n in names if ".layers." in n), default=-1)
    table = open_clip_table(layers)
    for name in names:
        if any(f".{projection}." in name for projection in STACKED):
            continue
        key = table.to_ldm(name)
        if key is None:
            raise KeyError(name)
        is_transposed = name.startswith("text_projection")
        yield TensorEntry(
            prefix + key, part, (name,), TensorForm.TRANSPOSED if is_transposed else TensorForm.SAME
        )
    for layer in range(layers):
        attention = f"encoder.layers.{layer}.self_attn"
        for suffix in ("weight", "bias"):
            key = f"{prefix}transformer.resblocks.{layer}.attn.in_proj_{suffix}"
            stacked = tuple(f"{attention}.{projection}.{suffix}" for projection in STACKED)
            yield TensorEntry(key, part, stacked, TensorForm.STACKED)


IGNORED = (
    *("model_ema.", "first_stage_model.loss.", "lvlb_weights", "logvar", "scale_factor"),
    *("betas", "alphas_cumprod", "sqrt_", "log_one_minus_alphas_cumprod", "posterior_"),
    *("model.diffusion_model.betas", "global_step", "epoch", "num_timesteps"),
    "embedding_manager.",
)
"""Prefixes of tensors in files of any family that inference does not use: EMA weights, the noise
schedule, training state (also that of textual inversion)."""
V_MARKS = ("v_pred", "edm_vpred.sigma_max")
"""Empty tensors that mark models that predict v."""
ZERO_SNR_MARK = "ztsnr"
"""An empty tensor that marks models with zero terminal SNR."""
MARKS = (*V_MARKS, "edm_vpred.sigma_min", ZERO_SNR_MARK)
