"""Metadata of LoRA files that are made from others: what is kept, changed and added."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from lorasmith.adapters.files.lora_family import detect_prediction_type
from lorasmith.adapters.files.lora_file import LoraFile
from lorasmith.adapters.files.peft_config import METADATA_KEY
from lorasmith.adapters.gating.gate_metadata import TRIGGER_PHRASE, GateMetadata, read_gate
from lorasmith.adapters.kinds.base import AdapterLayer
from lorasmith.adapters.kinds.lora import as_lora
from lorasmith.core.errors import WeightsError
from lorasmith.core.text.json_text import parse_json
from lorasmith.models.families.family import MODELSPEC_PREDICTIONS, get_family

_FORMAT_KEYS = (METADATA_KEY, "format")
"""Entries about a file's key format, which are wrong in another one."""
_SINGLE_FILE_PREFIXES = (
    "lorasmith.", "ss_tag_frequency", "modelspec.hash_", "sshs_", "modelspec.thumbnail",
)  # fmt: skip
"""Entries that are true of one file only, not of a sum of files."""


def update_metadata(
    file: LoraFile, layers: Mapping[str, AdapterLayer], family: str | None, name: str
) -> dict[str, str]:
    """Return the metadata of a file whose layers were rewritten; all its entries are kept.

    Entries that other programs need and that are missing are added: rank and alpha, the family if
    it is known, a name.

    Args:
        file: the original file.
        layers: the new layers.
        family: the family of models that it is for.
        name: its name, if it has none.
    """
    kept = {key: value for key, value in file.metadata.items() if key not in _FORMAT_KEYS}
    return {**_base_metadata(file, family, name), **kept, **_rank_metadata(layers)}


def merge_metadata(
    files: Sequence[LoraFile],
    layers: Mapping[str, AdapterLayer],
    family: str | None,
    name: str,
) -> dict[str, str]:
    """Return the metadata of a sum of LoRA files.

    If all files have the same gate, the sum has it too; otherwise the sum is always active and has
    all tags, separated by commas.

    Raises:
        WeightsError: the files are for different prediction types, or one has an impossible gate.
    """
    common_prediction_type(files)
    first = files[0]
    prefixes = (*_SINGLE_FILE_PREFIXES, *_FORMAT_KEYS)
    kept = {key: text for key, text in first.metadata.items() if not key.startswith(prefixes)}
    gate = _merge_gates([read_gate(file) for file in files])
    names = [file.metadata.get("modelspec.title") or file.path.stem for file in files]
    merged = {
        "ss_output_name": name,
        "modelspec.title": name,
        "modelspec.date": datetime.now(UTC).isoformat(timespec="seconds"),
        "modelspec.merged_from": ", ".join(names),
        "ss_tag_frequency": json.dumps(_merge_tag_frequencies(files), ensure_ascii=False),
        **({TRIGGER_PHRASE: gate.tag} if gate.tag else {}),
        **gate.to_metadata(),
    }
    return {**_base_metadata(first, family, name), **kept, **merged, **_rank_metadata(layers)}


def common_prediction_type(files: Sequence[LoraFile]) -> str | None:
    """Return the prediction type that the files are for; None if no file has one.

    Raises:
        WeightsError: they are for different ones; the message names two files.
    """
    known = [(file, kind) for file in files if (kind := detect_prediction_type(file))]
    for file, prediction_type in known[1:]:
        if prediction_type != known[0][1]:
            raise WeightsError(
                f"{file.path} is for models that predict {prediction_type} and {known[0][0].path} "
                f"for {known[0][1]}; LoRAs of different kinds cannot be combined"
            )
    return known[0][1] if known else None


def _merge_gates(gates: Sequence[GateMetadata]) -> GateMetadata:
    tags = ", ".join(dict.fromkeys(gate.tag for gate in gates if gate.tag))
    if len({(gate.kind, gate.tag) for gate in gates}) == 1:
        return GateMetadata(gates[0].kind, tags, gates[0].class_word)
    return GateMetadata("none", tags)


def _base_metadata(file: LoraFile, family: str | None, name: str) -> dict[str, str]:
    """Return the entries about the base model, as far as it is known."""
    entries = {
        "ss_output_name": name,
        "modelspec.title": name,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.implementation": "diffusers",
    }
    if family is None:
        return entries
    facts, prediction_type = get_family(family), detect_prediction_type(file)
    entries["ss_v2"] = str(facts.is_kohya_v2)
    if prediction_type is None and len(facts.prediction_types) > 1:
        return entries  # SD 2.x of either kind
    is_v = prediction_type == "v_prediction"
    return entries | {
        "ss_base_model_version": facts.kohya_versions[is_v],
        "modelspec.architecture": f"{facts.modelspec_architectures[is_v]}/lora",
        "modelspec.prediction_type": MODELSPEC_PREDICTIONS[prediction_type or "epsilon"],
    }


def _rank_metadata(layers: Mapping[str, AdapterLayer]) -> dict[str, str]:
    """Return rank and alpha of most layers; there is room for one pair."""
    ((rank, alpha), _), *others = Counter(
        (layer.rank, layer.alpha) for layer in layers.values()
    ).most_common()
    is_plain_lora = all(as_lora(layer.direction) is not None for layer in layers.values())
    args = {"ss_network_args": json.dumps({"other_ranks": len(others)})} if others else {}
    return {
        "ss_network_module": "networks.lora" if is_plain_lora else "lycoris.kohya",
        "ss_network_dim": str(rank),
        "ss_network_alpha": f"{alpha:g}",
        **args,
    }


def _merge_tag_frequencies(files: Sequence[LoraFile]) -> dict[str, object]:
    """Return how often tags occur, by dataset; damaged entries are left out."""
    merged: dict[str, object] = {}
    for file in files:
        try:
            frequencies = parse_json(file.metadata.get("ss_tag_frequency", "{}"))
        except ValueError:
            continue
        merged |= frequencies if isinstance(frequencies, dict) else {}
    return merged
