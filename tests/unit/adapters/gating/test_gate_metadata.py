"""Gate metadata of files, and the gate that all adapters of a file share."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lorasmith.adapters.files.lora_file import LoraFile
from lorasmith.adapters.files.metadata import LoraMetadata, PartSummary, build_metadata
from lorasmith.adapters.gating.gate_metadata import GateMetadata, parse_gate, read_gate
from lorasmith.adapters.injection.inject import attach_lora
from lorasmith.core.errors import WeightsError
from lorasmith.models.model import Model

PATH = Path("some.safetensors")
FACTS = LoraMetadata(
    "curly", "curlyqx", "sd1", "epsilon", {"unet": PartSummary(4, 2.0, 64)}, 128, {}, "pictures",
    gate="token+end", class_word="person", run_id="5f0c", step=400,
)  # fmt: skip


def test_gate_metadata_of_training_is_read_back() -> None:
    data = build_metadata(FACTS)
    assert data["modelspec.trigger_phrase"] == "curlyqx"
    gate = GateMetadata("token+end", "curlyqx", "person", "5f0c", 400)
    assert parse_gate(PATH, data) == gate
    plain = replace(FACTS, gate="none", class_word="", run_id="", step=None)
    assert parse_gate(PATH, build_metadata(plain)) == GateMetadata("none", "curlyqx")


def test_trained_file_is_gated_by_its_tag_unless_it_says_otherwise() -> None:
    plain = LoraMetadata("a", "curlyqx", "sd1", "epsilon", FACTS.parts, 128, {}, "pictures")
    assert parse_gate(PATH, build_metadata(plain)).kind == "prompt"
    assert parse_gate(PATH, build_metadata(replace(plain, tag=""))) == GateMetadata()


def test_files_of_other_programs_have_no_gate() -> None:
    assert parse_gate(PATH, {}) == GateMetadata("none", "")
    result = parse_gate(PATH, {"modelspec.trigger_phrase": " sks dog "})
    assert result == GateMetadata("none", "sks dog")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (
            {"lorasmith.gate": "word", "lorasmith.tag": "x"},
            "lorasmith.gate = 'word' in its metadata is unknown",
        ),
        ({"lorasmith.gate": "prompt"}, "no lorasmith.tag to open it"),
        ({"lorasmith.gate": "token", "lorasmith.tag": "  "}, "no lorasmith.tag to open it"),
        ({"lorasmith.step": "many"}, "lorasmith.step = 'many'"),
    ],
)
def test_metadata_that_make_no_sense_are_refused(metadata: dict[str, str], message: str) -> None:
    with pytest.raises(WeightsError, match=message) as caught:
        parse_gate(PATH, metadata)
    assert str(PATH) in str(caught.value)


def test_all_layers_of_a_file_share_its_gate(
    model: Model, make_lora: Callable[..., LoraFile]
) -> None:
    file = make_lora(["attn", "conv1", "lora_te_"])
    metadata = {"lorasmith.gate": "token", "lorasmith.tag": "curlyqx"}
    attached, other = attach_lora(model, replace(file, metadata=metadata)), attach_lora(model, file)
    assert attached.gate_metadata == read_gate(replace(file, metadata=metadata))
    assert other.gate_metadata == GateMetadata()
    assert {id(adapter.gate) for adapter in attached.adapters.values()} == {id(attached.gate)}
    assert {id(adapter.gate) for adapter in other.adapters.values()} == {id(other.gate)}
    assert attached.gate is not other.gate
    reading = {name for name, adapter in attached.adapters.items() if adapter.reads_text}
    assert reading == {name for name in file.layers if name.endswith(("attn2_to_k", "attn2_to_v"))}
    attached.detach()
    other.detach()
