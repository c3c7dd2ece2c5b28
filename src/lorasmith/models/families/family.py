"""What a family of Stable Diffusion models is, and which family a model belongs to.

The families themselves are in `lorasmith.models.families.builtin`; other packages add theirs to
`lorasmith.registries.MODEL_FAMILIES`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from lorasmith.core.errors import WeightsError
from lorasmith.models.families.ldm_keys import SingleFileKeys
from lorasmith.registries import MODEL_FAMILIES

PredictionType = Literal["epsilon", "v_prediction", "sample"]
"""What a U-Net predicts: the noise, v (arXiv:2202.00512, eq. D.1), or the clean latents (x0)."""
PREDICTION_TYPES: tuple[PredictionType, ...] = get_args(PredictionType)
MODELSPEC_PREDICTIONS: Mapping[str, str] = {
    "epsilon": "epsilon",
    "v_prediction": "v",
    "sample": "sample",
}
"""``modelspec.prediction_type`` of each; the standard itself has no word for the last."""

DEFAULT_FAMILY = "sd1"
"""The family of LoRA files that say nothing about theirs."""
HEAD_WIDTH = 64
"""Width of an attention head where the number of heads follows from the level's width."""
TIME_ID_WIDTH = 256
"""Width of one time id's embedding."""
LATENT_CHANNELS = 4
INPAINTING_CHANNELS = 9
"""The noisy latent, the mask, and the latent of the image without what is masked."""


class Networks(Protocol):
    """The networks of a model that adapters can go into; on the meta device is enough."""

    @property
    def path(self) -> Path:
        """Where the model was read from."""

    @property
    def unet(self) -> Any:
        """The U-Net."""

    @property
    def text_encoder(self) -> Any:
        """The text encoder, or the first of two."""

    @property
    def text_encoder_2(self) -> Any | None:
        """SDXL's second text encoder."""


@dataclass(frozen=True)
class TextEncoderLayout:
    """A CLIP text encoder."""

    title: str
    """Its name for people."""
    is_open_clip: bool
    """OpenCLIP's have other names in single files, GELU, and padding by ``!``."""
    width: int
    """Width of the hidden states."""
    num_layers: int
    """Transformer layers that are used; OpenCLIP ViT-H has one more, which SD 2.x leaves out."""
    num_heads: int
    """Attention heads."""
    projection_dim: int
    """Width of the pooled embedding."""
    feeds_unet: bool = False
    """Whether the U-Net reads the pooled embedding."""


@dataclass(frozen=True)
class UnetLayout:
    """The block layout of a family's U-Net, and its conditioning."""

    channels: tuple[int, ...]
    """Width of each level, from the image's size down (``block_out_channels``)."""
    transformer_layers: tuple[int, ...]
    """Transformer layers of each level's attention; 0 is a level without any."""
    cross_attention_dim: int
    """Width of the text that cross-attention reads."""
    num_heads: int | None
    """Attention heads everywhere; None where each head is 64 wide."""
    use_linear_projection: bool
    """Whether transformers are entered and left by linear layers instead of 1x1 convolutions."""
    num_time_ids: int = 0
    """Sizes, crop and the like that it reads beside the pooled text; 0 where it reads neither."""


@dataclass(frozen=True)
class ModelFamily:
    """Everything that differs between families of models."""

    name: str
    """Its name in `MODEL_FAMILIES`, in settings and in files: ``sd1``."""
    title: str
    """Its name for people: ``SD 1.x``."""
    unet: UnetLayout
    text_encoders: Mapping[str, TextEncoderLayout]
    """By the part that each is: ``text_encoder``, ``text_encoder_2``."""
    prediction_types: tuple[PredictionType, ...]
    """What its published models predict. Where there are two, a single file does not tell."""
    native_sizes: tuple[int, int]
    """Native side of images in pixels: of models that predict the noise, and of v models."""
    scaling_factor: float
    """What latents are multiplied by."""
    pipelines: tuple[str, str]
    """diffusers' pipeline class, and that for inpainting models."""
    single_file: SingleFileKeys
    """Where its parts are in a single file."""
    lora_text_prefixes: tuple[str, ...]
    """What the names of text encoder layers start with in kohya's LoRA files, one per encoder."""
    kohya_versions: tuple[str, str]
    """``ss_base_model_version`` of models that predict the noise, and of v models."""
    modelspec_architectures: tuple[str, str]
    """``modelspec.architecture`` likewise, without ``/lora``."""
    kohya_version_prefix: str = ""
    """What every other ``ss_base_model_version`` of the family starts with, if anything."""
    lora_name_pattern: str = ""
    """A regular expression for layer names in LoRA files that other families seldom have."""
    lora_name_exclusion: str = ""
    """A regular expression for layer names that none of its models has."""
    uses_sgm_names: bool = False
    """Whether LoRA files name U-Net layers as Stability AI's own code (sgm) does."""
    is_kohya_v2: bool = False
    """Whether kohya's scripts train it with ``--v2``."""
    vae_force_upcast: bool = False
    """Whether the VAE overflows in float16."""
    upcasts_attention_for_v: bool = False
    """Whether the attention of its v models overflows in float16."""
    num_timesteps: int | None = None
    """How many of the noise levels, from the lowest, its models are for; None for all."""
    zeroes_empty_prompt: bool = False
    """Whether an empty negative prompt means zeros instead of the encoded empty text."""
    uses_aesthetic_score: bool = False
    """Whether the last time id is an aesthetic score."""
    requires_init_image: bool = False
    """Whether its models only finish images that are given."""
    matches_unet: Callable[[Any], bool] | None = None
    """Tells the family from a U-Net's diffusers config (an object with its entries as fields);
    None compares the widths of the blocks and of the text."""

    @property
    def uses_size_conditioning(self) -> bool:
        """Whether the U-Net reads image sizes and a pooled text embedding."""
        return self.unet.num_time_ids > 0

    def matches(self, unet_config: Any) -> bool:
        """Tell whether a U-Net with this diffusers config is of the family."""
        if self.matches_unet is not None:
            return self.matches_unet(unet_config)
        return (
            tuple(unet_config.block_out_channels) == self.unet.channels
            and unet_config.cross_attention_dim == self.unet.cross_attention_dim
        )


def get_family(name: str) -> ModelFamily:
    """Return a family by its name in `MODEL_FAMILIES`.

    Raises:
        ConfigError: there is none of this name; close names are suggested.
    """
    family: ModelFamily = MODEL_FAMILIES.get(name)
    return family


def load_families() -> dict[str, ModelFamily]:
    """Return all families by name: the built-in ones first, then what was added."""
    return MODEL_FAMILIES.load_all()


@dataclass(frozen=True)
class ModelVariant:
    """What a model is: its family, and what it is for."""

    family_name: str
    """Its family's name in `MODEL_FAMILIES`."""
    is_inpainting: bool = False
    """Whether it also reads a mask and the masked image (9 input channels)."""
    prediction_type: PredictionType | None = None
    """What it predicts; None where nothing says so."""

    @property
    def family(self) -> ModelFamily:
        """Its family, which says what LoRAs fit."""
        return get_family(self.family_name)

    @property
    def title(self) -> str:
        """Its name for people: ``SD 1.x inpainting``, ``SD 2.x 768-v``, ``SD 2.x base``."""
        suffix = "inpainting" if self.is_inpainting else ""
        if len(self.family.prediction_types) > 1 and not self.is_inpainting:
            names = {"epsilon": "base", "v_prediction": "768-v", "sample": "x0", None: ""}
            suffix = names[self.prediction_type]
        return f"{self.family.title} {suffix}".rstrip()

    @property
    def architecture(self) -> str:
        """Its name in ``modelspec.architecture``."""
        name = self.family.modelspec_architectures[self.prediction_type == "v_prediction"]
        return f"{name}-inpainting" if self.is_inpainting else name

    @property
    def native_size(self) -> int:
        """Native side of its images in pixels; the larger one where the prediction is unknown."""
        return self.family.native_sizes[self.prediction_type != "epsilon"]


def detect_family(model: Networks) -> ModelFamily:
    """Return the family of a model by its U-Net's config.

    Raises:
        WeightsError: no family matches.
    """
    return detect_unet_family(model.unet.config, f"model {model.path}")


def detect_unet_family(unet_config: Any, where: str) -> ModelFamily:
    """Return the family of a U-Net's diffusers config (an object with its entries as fields).

    Families that were added last are tried first, so that one can be more special than those that
    are built in.

    Raises:
        WeightsError: no family matches.
    """
    for family in reversed(load_families().values()):
        if family.matches(unet_config):
            return family
    added = unet_config.addition_embed_type
    raise WeightsError(
        f"{where}: its U-Net needs {added} inputs; use an SD 1.x, SD 2.x or SDXL model"
    )
