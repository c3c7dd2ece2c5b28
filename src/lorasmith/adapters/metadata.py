"""What a LoRA file says about itself, in the keys that other programs read.

``ss_*`` are those of sd-scripts, by which user interfaces tell the model family; ``modelspec.*``
follow Stability AI's model metadata standard 1.0.1. All values are strings.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from lorasmith.core.errors import WeightsError

if TYPE_CHECKING:
    from lorasmith.models.load import Model

Family = Literal["sd1", "sd2"]


@dataclass(frozen=True)
class Facts:
    """What there is to say about a trained LoRA."""

    name: str
    """Its name, which user interfaces show."""
    tag: str
    """The words that call it."""
    family: Family
    """The family of the model that it was trained on."""
    prediction_type: str
    """``epsilon`` or ``v_prediction``."""
    rank: int
    """Rank of its layers."""
    alpha: float
    """Alpha of its layers."""
    resolution: int
    """Side of the training pictures in pixels."""
    tag_frequency: Mapping[str, int]
    """How often each part of the captions occurs."""
    dataset: str
    """The dataset's own name, without folders."""


def family_of(model: "Model") -> Family:
    """Return the family of a model by its U-Net: SD 2.x projects with linear layers.

    Raises:
        WeightsError: SDXL and later, whose LoRA files have other names.
    """
    config = model.unet.config
    if config.addition_embed_type is not None:
        raise WeightsError(
            f"model {model.folder}: SDXL is not supported yet; use an SD 1.x or 2.x model"
        )
    return "sd2" if config.use_linear_projection else "sd1"


def metadata_of(facts: Facts, date: datetime | None = None) -> dict[str, str]:
    """Return the metadata block of a LoRA file; ``date`` is now unless given."""
    date = date or datetime.now(UTC)
    v2, v = facts.family == "sd2", facts.prediction_type == "v_prediction"
    frequency = {facts.dataset: dict(facts.tag_frequency)}
    return {
        "ss_v2": str(v2),
        "ss_base_model_version": "sd_v1" if not v2 else "sd_v2_v" if v else "sd_v2",
        "ss_output_name": facts.name,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(facts.rank),
        "ss_network_alpha": f"{facts.alpha:g}",
        "ss_network_args": "{}",
        "ss_resolution": f"({facts.resolution}, {facts.resolution})",
        "ss_tag_frequency": json.dumps(frequency, ensure_ascii=False),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": _architecture(v2, v),
        "modelspec.implementation": "diffusers",
        "modelspec.title": facts.name,
        "modelspec.resolution": f"{facts.resolution}x{facts.resolution}",
        "modelspec.date": date.astimezone(UTC).isoformat(timespec="seconds"),
        "modelspec.prediction_type": "v" if v else "epsilon",
        "modelspec.trigger_phrase": facts.tag,
    }


def _architecture(v2: bool, v: bool) -> str:
    if not v2:
        return "stable-diffusion-v1/lora"
    return "stable-diffusion-v2-768-v/lora" if v else "stable-diffusion-v2-512/lora"
