"""The families of Stable Diffusion models, and what differs between them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from lorasmith.core.errors import WeightsError

if TYPE_CHECKING:
    from pathlib import Path

Family = Literal["sd1", "sd2", "sdxl"]


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


FAMILIES: dict[Family, FamilyFacts] = {
    "sd1": FamilyFacts(
        "SD 1.x",
        ("lora_te_",),
        False,
        ("sd_v1", "sd_v1"),
        ("stable-diffusion-v1", "stable-diffusion-v1"),
    ),
    "sd2": FamilyFacts(
        "SD 2.x",
        ("lora_te_",),
        False,
        ("sd_v2", "sd_v2_v"),
        ("stable-diffusion-v2-512", "stable-diffusion-v2-768-v"),
    ),
    "sdxl": FamilyFacts(
        "SDXL",
        ("lora_te1_", "lora_te2_"),
        True,
        ("sdxl_base_v1-0", "sdxl_base_v1-0"),
        ("stable-diffusion-xl-v1-base", "stable-diffusion-xl-v1-base"),
    ),
}


def family_of(model: Networks) -> Family:
    """Return the family of a model by its U-Net's config.

    SDXL's is told picture sizes and a pooled text; that of SD 2.x projects with linear layers.

    Raises:
        WeightsError: the U-Net wants other extra inputs (image embeddings and the like).
    """
    config = model.unet.config
    extra = config.addition_embed_type
    if extra not in (None, "text_time"):
        raise WeightsError(
            f"model {model.folder}: its U-Net wants {extra} inputs; use an SD 1.x, SD 2.x or "
            "SDXL model"
        )
    if extra:
        return "sdxl"
    return "sd2" if config.use_linear_projection else "sd1"
