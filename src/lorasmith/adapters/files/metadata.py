"""What a LoRA file says about itself, in the keys that other programs read.

``ss_*`` are those of sd-scripts, by which user interfaces tell the model family; ``modelspec.*``
follow Stability AI's model metadata standard 1.0.1; ``lorasmith.*`` say what switches the LoRA on
(`lorasmith.adapters.gating.gate_metadata`), and by hashes what it was made from. All values are
strings.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from lorasmith.adapters.gating.gate_metadata import TRIGGER_PHRASE, GateMetadata
from lorasmith.config.lora import GateKind
from lorasmith.registries import MODEL_FAMILIES


@dataclass(frozen=True)
class PartSummary:
    """The adapters of one part of a LoRA."""

    rank: int
    """Their rank in the file."""
    alpha: float
    """Their alpha: alpha / rank is the scale that they were trained with."""
    layers: int
    """How many there are."""


@dataclass(frozen=True)
class LoraMetadata:
    """What there is to say about a trained LoRA."""

    name: str
    """Its name, which user interfaces show."""
    tag: str
    """The words that call it."""
    family: str
    """The family of the model that it was trained on."""
    prediction_type: str
    """``epsilon`` or ``v_prediction``."""
    parts: Mapping[str, PartSummary]
    """Its parts by name; the first is the main one."""
    resolution: int
    """Side of the training pictures in pixels."""
    tag_frequency: Mapping[str, int]
    """How often each part of the captions occurs."""
    dataset: str
    """The dataset's own name, without folders."""
    gate: GateKind = "prompt"
    """What switches it on in lorasmith; see `GateFacts`. Without a tag nothing can."""
    class_word: str = ""
    """What the tagged thing is without its tag."""
    run_id: str = ""
    """Identity of the run, shared by its files."""
    step: int | None = None
    """Optimizer steps that it is the result of."""
    base_hash: str = ""
    """Hash of the base model's U-Net, as `lorasmith model info` shows it."""
    dataset_hash: str = ""
    """Hash of the names and captions of the pictures."""


def build_metadata(facts: LoraMetadata, date: datetime | None = None) -> dict[str, str]:
    """Return the metadata block of a LoRA file; ``date`` is now unless given.

    Where ranks differ, ``ss_network_dim`` and ``ss_network_alpha`` are those of the main part, and
    ``ss_network_args`` says what the others have.
    """
    date = date or datetime.now(UTC)
    family, v = MODEL_FAMILIES.get(facts.family), facts.prediction_type == "v_prediction"
    frequency = {facts.dataset: dict(facts.tag_frequency)}
    main = next(iter(facts.parts.values()))
    uneven = {(part.rank, part.alpha) for part in facts.parts.values()} != {(main.rank, main.alpha)}
    args = {"parts": {name: asdict(part) for name, part in facts.parts.items()}} if uneven else {}
    return {
        "ss_v2": str(family.is_kohya_v2),
        "ss_base_model_version": family.kohya_versions[v],
        "ss_output_name": facts.name,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(main.rank),
        "ss_network_alpha": f"{main.alpha:g}",
        "ss_network_args": json.dumps(args),
        "ss_resolution": f"({facts.resolution}, {facts.resolution})",
        "ss_tag_frequency": json.dumps(frequency, ensure_ascii=False),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{family.modelspec_architectures[v]}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": facts.name,
        "modelspec.resolution": f"{facts.resolution}x{facts.resolution}",
        "modelspec.date": date.astimezone(UTC).isoformat(timespec="seconds"),
        "modelspec.prediction_type": "v" if v else "epsilon",
        TRIGGER_PHRASE: facts.tag,
        "lorasmith.base": facts.base_hash,
        "lorasmith.pictures": facts.dataset_hash,
        **GateMetadata(
            facts.gate, facts.tag, facts.class_word, facts.run_id, facts.step
        ).to_metadata(),
    }
