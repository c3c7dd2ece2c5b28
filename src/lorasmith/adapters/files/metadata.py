"""The metadata block of a LoRA file, in the keys that other programs read.

``ss_*`` are the keys of sd-scripts, from which user interfaces learn the model family;
``modelspec.*`` follow Stability AI's model metadata standard 1.0.1; ``lorasmith.*`` say what
activates the LoRA (`lorasmith.adapters.gating.gate_metadata`) and have hashes of what it was made
from. All values are strings.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from lorasmith.adapters.gating.gate_metadata import TRIGGER_PHRASE, GateMetadata
from lorasmith.config.lora import GateKind
from lorasmith.models.families.family import MODELSPEC_PREDICTIONS, get_family


@dataclass(frozen=True)
class PartSummary:
    """The adapters of one part of a LoRA."""

    rank: int
    """Their rank in the file."""
    alpha: float
    """Their alpha: alpha / rank is the scale that they were trained with."""
    layers: int
    """Number of adapters."""


@dataclass(frozen=True)
class LoraMetadata:
    """Facts about a trained LoRA."""

    name: str
    """Its name, which user interfaces show."""
    tag: str
    """Its trigger word (tag)."""
    family: str
    """The family of the model that it was trained on."""
    prediction_type: str
    """What its base model predicts, a key of `MODELSPEC_PREDICTIONS`."""
    parts: Mapping[str, PartSummary]
    """Its parts by name; the first is the main one."""
    resolution: int
    """Side of the training images in pixels."""
    tag_frequency: Mapping[str, int]
    """How often each caption tag occurs."""
    dataset: str
    """The dataset's own name, without folders."""
    gate: GateKind = "prompt"
    """What activates it in lorasmith; see `GateMetadata`. Without a tag nothing can."""
    class_word: str = ""
    """What the subject is called without its tag."""
    run_id: str = ""
    """Identity of the run, shared by its files."""
    step: int | None = None
    """Number of optimizer steps that it is the result of."""
    base_hash: str = ""
    """Hash of the base model's U-Net, as `lorasmith model info` shows it."""
    dataset_hash: str = ""
    """Hash of the names and captions of the images."""


def build_metadata(facts: LoraMetadata, date: datetime | None = None) -> dict[str, str]:
    """Return the metadata block of a LoRA file; ``date`` is now unless given.

    If ranks differ, ``ss_network_dim`` and ``ss_network_alpha`` are those of the main part, and
    ``ss_network_args`` has those of every part.
    """
    date = date or datetime.now(UTC)
    family, is_v = get_family(facts.family), facts.prediction_type == "v_prediction"
    frequency = {facts.dataset: dict(facts.tag_frequency)}
    main = next(iter(facts.parts.values()))
    is_uniform = len({(part.rank, part.alpha) for part in facts.parts.values()}) == 1
    parts = {name: asdict(part) for name, part in facts.parts.items()}
    args = {} if is_uniform else {"parts": parts}
    return {
        "ss_v2": str(family.is_kohya_v2),
        "ss_base_model_version": family.kohya_versions[is_v],
        "ss_output_name": facts.name,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(main.rank),
        "ss_network_alpha": f"{main.alpha:g}",
        "ss_network_args": json.dumps(args),
        "ss_resolution": f"({facts.resolution}, {facts.resolution})",
        "ss_tag_frequency": json.dumps(frequency, ensure_ascii=False),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{family.modelspec_architectures[is_v]}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": facts.name,
        "modelspec.resolution": f"{facts.resolution}x{facts.resolution}",
        "modelspec.date": date.astimezone(UTC).isoformat(timespec="seconds"),
        "modelspec.prediction_type": MODELSPEC_PREDICTIONS[facts.prediction_type],
        TRIGGER_PHRASE: facts.tag,
        "lorasmith.base": facts.base_hash,
        "lorasmith.pictures": facts.dataset_hash,
        **GateMetadata(
            facts.gate, facts.tag, facts.class_word, facts.run_id, facts.step
        ).to_metadata(),
    }
