"""Metadata of LoRA files that are made from others: what stays, what changes, what is added."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from lorasmith.adapters.files.layer_kinds import DoraLayer, Layer, LoraLayer
from lorasmith.adapters.files.lora_family import detect_prediction_type
from lorasmith.adapters.files.lora_file import LoraFile
from lorasmith.adapters.files.peft_config import METADATA_KEY
from lorasmith.adapters.gating.gate_metadata import TRIGGER_PHRASE, GateMetadata, read_gate
from lorasmith.core.errors import WeightsError
from lorasmith.registries import MODEL_FAMILIES

_OF_OTHERS = (METADATA_KEY, "format")
"""Entries about the spelling of a file, which another spelling does not have."""
_OF_ONE = ("lorasmith.", "ss_tag_frequency", "modelspec.hash_", "sshs_", "modelspec.thumbnail")
"""What is true of one file only, not of a sum of several."""


def update_metadata(
    file: LoraFile, layers: Mapping[str, Layer], family: str | None, name: str
) -> dict[str, str]:
    """Return the metadata of a file whose layers were written anew; nothing that it says is lost.

    What other programs need and it does not say is added: rank and alpha, the family where it is
    known, a name.

    Args:
        file: the file before.
        layers: its layers now.
        family: the family of models that it is for.
        name: its name, where it says none.
    """
    kept = {key: value for key, value in file.metadata.items() if key not in _OF_OTHERS}
    return {**_facts(file, family, name), **kept, **_sizes(layers)}


def merge_metadata(
    files: Sequence[LoraFile], layers: Mapping[str, Layer], family: str | None, name: str
) -> dict[str, str]:
    """Return the metadata of a sum of LoRA files.

    Its gate is that of the files if they all have the same one; otherwise it is always on, and the
    tags stand one behind the other.

    Raises:
        WeightsError: the files' bases predict different things, or one says something impossible
            about its gate.
    """
    common_prediction_type(files)
    first = files[0]
    kept = {k: v for k, v in first.metadata.items() if not k.startswith((*_OF_ONE, *_OF_OTHERS))}
    gates = [read_gate(file) for file in files]
    same = len({(gate.kind, gate.tag) for gate in gates}) == 1
    tags = ", ".join(dict.fromkeys(gate.tag for gate in gates if gate.tag))
    gate = (
        GateMetadata(gates[0].kind, tags, gates[0].class_word)
        if same
        else GateMetadata("none", tags)
    )
    names = [file.metadata.get("modelspec.title") or file.path.stem for file in files]
    told = {
        "ss_output_name": name,
        "modelspec.title": name,
        "modelspec.date": datetime.now(UTC).isoformat(timespec="seconds"),
        "modelspec.merged_from": ", ".join(names),
        "ss_tag_frequency": json.dumps(_frequencies(files), ensure_ascii=False),
        **({TRIGGER_PHRASE: tags} if tags else {}),
        **gate.to_metadata(),
    }
    return {**_facts(first, family, name), **kept, **told, **_sizes(layers)}


def common_prediction_type(files: Sequence[LoraFile]) -> str | None:
    """Return what the files' bases predict; None where none of them tells.

    Raises:
        WeightsError: they predict different things; both files are named.
    """
    told = [(file, kind) for file in files if (kind := detect_prediction_type(file))]
    for file, kind in told[1:]:
        if kind != told[0][1]:
            raise WeightsError(
                f"{file.path} is for models that predict {kind} and {told[0][0].path} for "
                f"{told[0][1]}; LoRAs of different kinds cannot be combined"
            )
    return told[0][1] if told else None


def _facts(file: LoraFile, family: str | None, name: str) -> dict[str, str]:
    """Return what other programs need to know about the base, as far as it is known."""
    told = {"ss_output_name": name, "modelspec.title": name, "modelspec.sai_model_spec": "1.0.1",
            "modelspec.implementation": "diffusers"}  # fmt: skip
    if family is None:
        return told
    facts, prediction = MODEL_FAMILIES.get(family), detect_prediction_type(file)
    told["ss_v2"] = str(facts.is_kohya_v2)
    if prediction is None and len(facts.prediction_types) > 1:
        return told  # SD 2.x of either kind
    v = prediction == "v_prediction"
    return told | {
        "ss_base_model_version": facts.kohya_versions[v],
        "modelspec.architecture": f"{facts.modelspec_architectures[v]}/lora",
        "modelspec.prediction_type": "v" if v else "epsilon",
    }


def _sizes(layers: Mapping[str, Layer]) -> dict[str, str]:
    """Return rank and alpha: of most layers, as there is room for one."""
    ((rank, alpha), _), *others = Counter(
        (layer.rank, layer.alpha) for layer in layers.values()
    ).most_common()
    inner = [one.inner if isinstance(one, DoraLayer) else one for one in layers.values()]
    plain = all(isinstance(one, LoraLayer) for one in inner)
    args = {"ss_network_args": json.dumps({"other_ranks": len(others)})} if others else {}
    return {
        "ss_network_module": "networks.lora" if plain else "lycoris.kohya",
        "ss_network_dim": str(rank),
        "ss_network_alpha": f"{alpha:g}",
        **args,
    }


def _frequencies(files: Sequence[LoraFile]) -> dict[str, object]:
    """Return how often tags occur, by the datasets of all files; what is damaged is left out."""
    found: dict[str, object] = {}
    for file in files:
        try:
            told = json.loads(file.metadata.get("ss_tag_frequency", "{}"))
        except ValueError:
            continue
        found |= told if isinstance(told, dict) else {}
    return found
