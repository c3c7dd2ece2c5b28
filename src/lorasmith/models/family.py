"""The families of Stable Diffusion models, and what differs between them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from lorasmith.core.errors import WeightsError

if TYPE_CHECKING:
    from pathlib import Path

Family = Literal["sd1", "sd2", "sdxl", "sdxl-refiner"]
PredictionType = Literal["epsilon", "v_prediction"]


class Networks(Protocol):
    """The networks of a model that adapters can go into; on the meta device is enough."""

    @property
    def folder(self) -> "Path":
        """Where the model was read."""

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
    """A CLIP text tower."""

    title: str
    """Its name for people."""
    is_open_clip: bool
    """Whether it is OpenCLIP's, with other names in single files, GELU, and padding by ``!``."""
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


VIT_L = TextEncoderLayout("CLIP ViT-L/14", False, 768, 12, 12, 768)
VIT_H = TextEncoderLayout("OpenCLIP ViT-H/14", True, 1024, 23, 16, 512)
BIG_G = TextEncoderLayout("OpenCLIP ViT-bigG/14", True, 1280, 32, 20, 1280, feeds_unet=True)


@dataclass(frozen=True)
class UnetLayout:
    """The block layout of a family's U-Net, and what it is told."""

    channels: tuple[int, ...]
    """Width of each level, from the picture's size down."""
    transformer_layers: tuple[int, ...]
    """Transformer layers of each level's attention; 0 is a level without any."""
    cross_attention_dim: int
    """Width of the text that cross-attention reads."""
    num_heads: int | None
    """Attention heads everywhere; None where each head is 64 wide."""
    use_linear_projection: bool
    """Whether transformers are entered and left by linear layers instead of 1x1 convolutions."""
    num_time_ids: int = 0
    """Numbers about sizes and the like that it is told beside the pooled text; 0 is neither."""


HEAD_WIDTH = 64
"""Width of a head where their number follows from the level's width."""
TIME_ID_WIDTH = 256
"""Width of one time id's embedding."""
LATENT_CHANNELS = 4
INPAINTING_CHANNELS = 9
"""The noisy latent, the mask, and the latent of the picture without what is masked."""


@dataclass(frozen=True)
class ModelFamily:
    """What programs need to know about a family."""

    title: str
    """Its name for people."""
    lora_text_prefixes: tuple[str, ...]
    """What the names of text encoder layers start with in LoRA files, one per encoder."""
    uses_sgm_names: bool
    """Whether LoRA files name U-Net layers as Stability AI's own code (sgm) does."""
    kohya_versions: tuple[str, str]
    """``ss_base_model_version`` of models that predict the noise, and of those that predict v."""
    modelspec_architectures: tuple[str, str]
    """``modelspec.architecture`` likewise, without ``/lora``."""
    unet: UnetLayout
    """Its U-Net."""
    text_encoders: Mapping[str, TextEncoderLayout]
    """Its text towers by the part they are."""
    prediction_types: tuple[PredictionType, ...]
    """What its published models predict. Where there are two, a single file does not tell."""
    native_sizes: tuple[int, int]
    """Native side of pictures in pixels: of models that predict the noise, and of v models."""
    scaling_factor: float
    """What latents are multiplied by."""
    vae_force_upcast: bool = False
    """Whether the VAE overflows in float16."""
    num_timesteps: int | None = None
    """How many of the noise levels, from the lowest, its models know; None for all."""


_SDXL_TOWERS = {"text_encoder": VIT_L, "text_encoder_2": BIG_G}

FAMILIES: dict[Family, ModelFamily] = {
    "sd1": ModelFamily(
        "SD 1.x",
        ("lora_te_",),
        False,
        ("sd_v1", "sd_v1"),
        ("stable-diffusion-v1", "stable-diffusion-v1"),
        UnetLayout(
            (320, 640, 1280, 1280), (1, 1, 1, 0), 768, num_heads=8, use_linear_projection=False
        ),
        {"text_encoder": VIT_L},
        ("epsilon",),
        (512, 512),
        0.18215,
    ),
    "sd2": ModelFamily(
        "SD 2.x",
        ("lora_te_",),
        False,
        ("sd_v2", "sd_v2_v"),
        ("stable-diffusion-v2-512", "stable-diffusion-v2-768-v"),
        UnetLayout(
            (320, 640, 1280, 1280), (1, 1, 1, 0), 1024, num_heads=None, use_linear_projection=True
        ),
        {"text_encoder": VIT_H},
        ("epsilon", "v_prediction"),
        (512, 768),
        0.18215,
    ),
    "sdxl": ModelFamily(
        "SDXL",
        ("lora_te1_", "lora_te2_"),
        True,
        ("sdxl_base_v1-0", "sdxl_base_v1-0"),
        ("stable-diffusion-xl-v1-base", "stable-diffusion-xl-v1-base"),
        UnetLayout(
            (320, 640, 1280),
            (0, 2, 10),
            2048,
            num_heads=None,
            use_linear_projection=True,
            num_time_ids=6,
        ),
        _SDXL_TOWERS,
        ("epsilon",),
        (1024, 1024),
        0.13025,
        vae_force_upcast=True,
    ),
    "sdxl-refiner": ModelFamily(
        "SDXL refiner",
        ("lora_te1_", "lora_te2_"),
        True,
        ("sdxl_refiner_v1-0", "sdxl_refiner_v1-0"),
        ("stable-diffusion-xl-v1-refiner", "stable-diffusion-xl-v1-refiner"),
        UnetLayout(
            (384, 768, 1536, 1536),
            (0, 4, 4, 0),
            1280,
            num_heads=None,
            use_linear_projection=True,
            num_time_ids=5,
        ),
        {"text_encoder_2": BIG_G},
        ("epsilon",),
        (1024, 1024),
        0.13025,
        vae_force_upcast=True,
        num_timesteps=200,  # arXiv:2307.01952, section 2.5
    ),
}


MINIATURE = replace(
    FAMILIES["sd1"],
    title="miniature SD 1.x",
    unet=UnetLayout(
        (64, 96, 128, 160), (1, 1, 1, 0), 256, num_heads=8, use_linear_projection=False
    ),
    text_encoders={"text_encoder": TextEncoderLayout("miniature CLIP", False, 256, 4, 4, 256)},
    native_sizes=(128, 128),
    scaling_factor=0.86028,
)
"""The model that ships with the package: of the family SD 1.x, and like it in all but its sizes."""


@dataclass(frozen=True)
class ModelVariant:
    """What a model is: its family, and what it is for."""

    family: Family
    """Its family, which says what LoRAs fit."""
    is_inpainting: bool = False
    """Whether it also reads a mask and the masked picture (9 input channels)."""
    prediction_type: PredictionType | None = None
    """What it predicts; None where nothing says so."""

    @property
    def facts(self) -> ModelFamily:
        """The family's facts."""
        return FAMILIES[self.family]

    @property
    def title(self) -> str:
        """Its name for people: ``SD 1.x inpainting``, ``SD 2.x 768-v``, ``SD 2.x base``."""
        kind = "inpainting" if self.is_inpainting else ""
        if len(self.facts.prediction_types) > 1 and not self.is_inpainting:
            kind = {"epsilon": "base", "v_prediction": "768-v", None: ""}[self.prediction_type]
        return f"{self.facts.title} {kind}".rstrip()

    @property
    def architecture(self) -> str:
        """Its name in ``modelspec.architecture``."""
        name = self.facts.modelspec_architectures[self.prediction_type == "v_prediction"]
        return f"{name}-inpainting" if self.is_inpainting else name

    @property
    def native_size(self) -> int:
        """Native side of its pictures in pixels: the larger where nothing says what it predicts."""
        return self.facts.native_sizes[self.prediction_type != "epsilon"]


def detect_family(model: Networks) -> Family:
    """Return the family of a model by its U-Net's config; see `detect_unet_family`.

    Raises:
        WeightsError: the U-Net wants other extra inputs (image embeddings and the like).
    """
    return detect_unet_family(model.unet.config, f"model {model.folder}")


def detect_unet_family(config: Any, where: str) -> Family:
    """Return the family of a U-Net's diffusers config (an object with its entries as fields).

    SDXL's is told picture sizes and a pooled text; the refiner's is told five numbers and reads
    text as wide as the pooled one. That of SD 2.x projects with linear layers.

    Raises:
        WeightsError: the U-Net wants other extra inputs.
    """
    extra = config.addition_embed_type
    if extra not in (None, "text_time"):
        raise WeightsError(
            f"{where}: its U-Net wants {extra} inputs; use an SD 1.x, SD 2.x or SDXL model"
        )
    if extra:
        told = config.projection_class_embeddings_input_dim
        ids = FAMILIES["sdxl-refiner"].unet.num_time_ids * config.addition_time_embed_dim
        return "sdxl-refiner" if told == ids + config.cross_attention_dim else "sdxl"
    return "sd2" if config.use_linear_projection else "sd1"
