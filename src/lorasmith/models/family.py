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
class Tower:
    """A CLIP text tower."""

    title: str
    """Its name for people."""
    open_clip: bool
    """Whether it is OpenCLIP's, with other names in single files, GELU, and padding by ``!``."""
    width: int
    """Width of the hidden states."""
    layers: int
    """Transformer layers that are used; OpenCLIP ViT-H has one more, which SD 2.x leaves out."""
    heads: int
    """Attention heads."""
    projection: int
    """Width of the pooled embedding."""
    projected: bool = False
    """Whether the U-Net reads the pooled embedding."""


VIT_L = Tower("CLIP ViT-L/14", False, 768, 12, 12, 768)
VIT_H = Tower("OpenCLIP ViT-H/14", True, 1024, 23, 16, 512)
BIG_G = Tower("OpenCLIP ViT-bigG/14", True, 1280, 32, 20, 1280, projected=True)


@dataclass(frozen=True)
class UnetFacts:
    """The block layout of a family's U-Net, and what it is told."""

    channels: tuple[int, ...]
    """Width of each level, from the picture's size down."""
    depths: tuple[int, ...]
    """Transformer layers of each level's attention; 0 is a level without any."""
    context: int
    """Width of the text that cross-attention reads."""
    heads: int | None
    """Attention heads everywhere; None where each head is 64 wide."""
    linear: bool
    """Whether transformers are entered and left by linear layers instead of 1x1 convolutions."""
    time_ids: int = 0
    """Numbers about sizes and the like that it is told beside the pooled text; 0 is neither."""


HEAD_WIDTH = 64
"""Width of a head where their number follows from the level's width."""
TIME_ID_WIDTH = 256
"""Width of one time id's embedding."""
LATENT_CHANNELS = 4
INPAINTING_CHANNELS = 9
"""The noisy latent, the mask, and the latent of the picture without what is masked."""


@dataclass(frozen=True)
class FamilyFacts:
    """What programs need to know about a family."""

    title: str
    """Its name for people."""
    text_prefixes: tuple[str, ...]
    """What the names of text encoder layers start with in LoRA files, one per encoder."""
    sgm_names: bool
    """Whether LoRA files name U-Net layers as Stability AI's own code (sgm) does."""
    versions: tuple[str, str]
    """``ss_base_model_version`` of models that predict the noise, and of those that predict v."""
    architectures: tuple[str, str]
    """``modelspec.architecture`` likewise, without ``/lora``."""
    unet: UnetFacts
    """Its U-Net."""
    towers: Mapping[str, Tower]
    """Its text towers by the part they are."""
    predictions: tuple[PredictionType, ...]
    """What its published models predict. Where there are two, a single file does not tell."""
    sizes: tuple[int, int]
    """Native side of pictures in pixels: of models that predict the noise, and of v models."""
    scaling_factor: float
    """What latents are multiplied by."""
    vae_upcast: bool = False
    """Whether the VAE overflows in float16."""
    noise_levels: int | None = None
    """How many of the noise levels, from the lowest, its models know; None for all."""


_SDXL_TOWERS = {"text_encoder": VIT_L, "text_encoder_2": BIG_G}

FAMILIES: dict[Family, FamilyFacts] = {
    "sd1": FamilyFacts(
        "SD 1.x",
        ("lora_te_",),
        False,
        ("sd_v1", "sd_v1"),
        ("stable-diffusion-v1", "stable-diffusion-v1"),
        UnetFacts((320, 640, 1280, 1280), (1, 1, 1, 0), 768, heads=8, linear=False),
        {"text_encoder": VIT_L},
        ("epsilon",),
        (512, 512),
        0.18215,
    ),
    "sd2": FamilyFacts(
        "SD 2.x",
        ("lora_te_",),
        False,
        ("sd_v2", "sd_v2_v"),
        ("stable-diffusion-v2-512", "stable-diffusion-v2-768-v"),
        UnetFacts((320, 640, 1280, 1280), (1, 1, 1, 0), 1024, heads=None, linear=True),
        {"text_encoder": VIT_H},
        ("epsilon", "v_prediction"),
        (512, 768),
        0.18215,
    ),
    "sdxl": FamilyFacts(
        "SDXL",
        ("lora_te1_", "lora_te2_"),
        True,
        ("sdxl_base_v1-0", "sdxl_base_v1-0"),
        ("stable-diffusion-xl-v1-base", "stable-diffusion-xl-v1-base"),
        UnetFacts((320, 640, 1280), (0, 2, 10), 2048, heads=None, linear=True, time_ids=6),
        _SDXL_TOWERS,
        ("epsilon",),
        (1024, 1024),
        0.13025,
        vae_upcast=True,
    ),
    "sdxl-refiner": FamilyFacts(
        "SDXL refiner",
        ("lora_te1_", "lora_te2_"),
        True,
        ("sdxl_refiner_v1-0", "sdxl_refiner_v1-0"),
        ("stable-diffusion-xl-v1-refiner", "stable-diffusion-xl-v1-refiner"),
        UnetFacts((384, 768, 1536, 1536), (0, 4, 4, 0), 1280, heads=None, linear=True, time_ids=5),
        {"text_encoder_2": BIG_G},
        ("epsilon",),
        (1024, 1024),
        0.13025,
        vae_upcast=True,
        noise_levels=200,  # arXiv:2307.01952, section 2.5
    ),
}


MINIATURE = replace(
    FAMILIES["sd1"],
    title="miniature SD 1.x",
    unet=UnetFacts((64, 96, 128, 160), (1, 1, 1, 0), 256, heads=8, linear=False),
    towers={"text_encoder": Tower("miniature CLIP", False, 256, 4, 4, 256)},
    sizes=(128, 128),
    scaling_factor=0.86028,
)
"""The model that ships with the package: of the family SD 1.x, and like it in all but its sizes."""


@dataclass(frozen=True)
class Variant:
    """What a model is: its family, and what it is for."""

    family: Family
    """Its family, which says what LoRAs fit."""
    inpainting: bool = False
    """Whether it also reads a mask and the masked picture (9 input channels)."""
    prediction: PredictionType | None = None
    """What it predicts; None where nothing says so."""

    @property
    def facts(self) -> FamilyFacts:
        """The family's facts."""
        return FAMILIES[self.family]

    @property
    def title(self) -> str:
        """Its name for people: ``SD 1.x inpainting``, ``SD 2.x 768-v``, ``SD 2.x base``."""
        kind = "inpainting" if self.inpainting else ""
        if len(self.facts.predictions) > 1 and not self.inpainting:
            kind = {"epsilon": "base", "v_prediction": "768-v", None: ""}[self.prediction]
        return f"{self.facts.title} {kind}".rstrip()

    @property
    def architecture(self) -> str:
        """Its name in ``modelspec.architecture``."""
        name = self.facts.architectures[self.prediction == "v_prediction"]
        return f"{name}-inpainting" if self.inpainting else name

    @property
    def size(self) -> int:
        """Native side of its pictures in pixels: the larger where nothing says what it predicts."""
        return self.facts.sizes[self.prediction != "epsilon"]


def family_of(model: Networks) -> Family:
    """Return the family of a model by its U-Net's config; see `family_of_unet`.

    Raises:
        WeightsError: the U-Net wants other extra inputs (image embeddings and the like).
    """
    return family_of_unet(model.unet.config, f"model {model.folder}")


def family_of_unet(config: Any, where: str) -> Family:
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
        ids = FAMILIES["sdxl-refiner"].unet.time_ids * config.addition_time_embed_dim
        return "sdxl-refiner" if told == ids + config.cross_attention_dim else "sdxl"
    return "sd2" if config.use_linear_projection else "sd1"
