"""A folder of LoRAs that are activated by their tags, and ambiguous cases."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from helpers.lora_files import make_lora
from lorasmith.adapters.files.lora_file import load_lora_file, save_lora_file
from lorasmith.core.errors import LorasmithWarning, WeightsError
from lorasmith.inference.outputs.save import PARAMETERS_KEY
from lorasmith.inference.pipeline import Pipeline
from lorasmith.models.model import Model

SMALL = {"targets": "*.attn2.to_v@mid"}


@dataclass
class LoraFolder:
    """A pipeline and a folder of LoRAs for it."""

    pipe: Pipeline
    folder: Path

    def add(self, name: str, **metadata: Any) -> Path:
        path = self.folder / f"{name}.safetensors"
        return make_lora(self.pipe.model, path, SMALL, 0.5, **{"tag": name, **metadata})

    def awake(self, prompt: str) -> list[str]:
        """Return the names of the LoRAs that were active for a prompt."""
        message = (
            self.pipe(prompt, num_inference_steps=1, guidance_scale=1.0)[0]
            .info[PARAMETERS_KEY]
            .splitlines()[0]
        )
        return [
            part.split(":")[1] for part in message.split(" <lora:")[1:] for part in [f"x:{part}"]
        ]


@pytest.fixture
def lora_folder(model: Model, tmp_path: Path) -> Iterator[LoraFolder]:
    before = [name for name, _ in model.unet.named_modules()]
    lora_folder = LoraFolder(Pipeline(model, tmp_path), tmp_path)
    yield lora_folder
    lora_folder.pipe.unload_lora()
    lora_folder.pipe.unload_library()
    assert [name for name, _ in model.unet.named_modules()] == before


def test_each_lora_is_activated_by_its_tag(lora_folder: LoraFolder) -> None:
    lora_folder.add("curlyqx")
    lora_folder.add("cookqz")
    (lora_folder.folder / "run").mkdir()
    make_lora(
        lora_folder.pipe.model,
        lora_folder.folder / "run" / "deep.safetensors",
        SMALL,
        1.0,
        tag="deep",
    )
    (lora_folder.folder / "notes.txt").touch()
    assert lora_folder.pipe.load_library(lora_folder.folder) == ("cookqz", "curlyqx")
    assert lora_folder.pipe.library_tags == ("cookqz", "curlyqx")
    assert not any("adapters" in name for name, _ in lora_folder.pipe.model.unet.named_modules())
    assert lora_folder.awake("a person") == []
    assert lora_folder.awake("a curlyqx person") == ["curlyqx"]
    assert sorted(lora_folder.awake("a curlyqx cookqz, deep")) == ["cookqz", "curlyqx"]
    assert lora_folder.pipe.find_library_tags("a COOKQZ") == ("cookqz",)
    lora_folder.pipe.unload_library()
    assert lora_folder.pipe.library_tags == lora_folder.pipe.find_library_tags("a cookqz") == ()
    assert lora_folder.awake("a curlyqx person") == []


def test_tag_within_a_longer_tag_does_not_count(lora_folder: LoraFolder) -> None:
    lora_folder.add("ink")
    lora_folder.add("style", tag="ink style")
    lora_folder.pipe.load_library(lora_folder.folder)
    assert lora_folder.awake("a dog, ink style") == ["style"]
    assert lora_folder.awake("a dog, ink") == ["ink"]
    assert sorted(lora_folder.awake("ink, ink style")) == ["ink", "style"]


def test_requested_lora_replaces_the_library_lora(lora_folder: LoraFolder) -> None:
    lora_folder.add("curlyqx")
    lora_folder.pipe.load_library(lora_folder.folder)
    parameters = lora_folder.pipe("a curlyqx <lora:curlyqx:0.5>", num_inference_steps=1)[0].info[
        PARAMETERS_KEY
    ]
    assert parameters.count("<lora:") == 1
    assert lora_folder.awake("a curlyqx <lora:curlyqx:0>") == ["curlyqx"]  # as written; it is off
    with_zero = lora_folder.pipe("a curlyqx <lora:curlyqx:0>", num_inference_steps=1)[0]
    lora_folder.pipe.unload_library()
    assert with_zero.tobytes() == lora_folder.pipe("a curlyqx", num_inference_steps=1)[0].tobytes()


def test_two_files_with_one_tag_are_refused(lora_folder: LoraFolder) -> None:
    paths = [
        lora_folder.add("one", tag="curlyqx"),
        lora_folder.add("two", tag="CurlyQX", run_id="b2"),
    ]
    lora_folder.pipe.load_library(lora_folder.folder)
    assert lora_folder.awake("a person") == []  # no prompt activates it
    with pytest.raises(WeightsError, match="2 files have the tag 'curlyqx'") as caught:
        lora_folder.awake("a curlyqx person")
    assert all(str(path) in str(caught.value) for path in paths)
    lora_folder.pipe.load_lora("two")  # says which one is meant
    assert lora_folder.awake("a curlyqx person") == ["two"]


def test_latest_file_of_a_run_is_used_with_a_warning(lora_folder: LoraFolder) -> None:
    for name, step in (("early", 100), ("late", 400), ("best", 250)):
        lora_folder.add(name, tag="curlyqx", run_id="5f0c", step=step)
    lora_folder.pipe.load_library(lora_folder.folder)
    with pytest.warns(LorasmithWarning, match=r"3 files of one run .* late\.safetensors"):
        assert lora_folder.awake("a curlyqx person") == ["late"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lora_folder.awake("a curlyqx person") == ["late"]
    lora_folder.add("other", tag="curlyqx", run_id="77aa", step=9000)
    lora_folder.pipe.unload_library()
    lora_folder.pipe.load_library(lora_folder.folder)
    with pytest.raises(WeightsError, match=r"late\.safetensors, .*other\.safetensors"):
        lora_folder.awake("a curlyqx person")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"family": "sdxl"}, "made for SDXL"),
        ({"family": "sd2", "prediction_type": "v_prediction"}, "made for"),
        ({"prediction_type": "v_prediction"}, "made for models that predict v_prediction"),
        ({"prediction_type": "sample"}, "made for models that predict sample"),
    ],
)
def test_file_for_another_model_is_refused_once_activated(
    lora_folder: LoraFolder, metadata: dict[str, Any], message: str
) -> None:
    path = lora_folder.add("foreign", tag="curlyqx", **metadata)
    lora_folder.pipe.load_library(lora_folder.folder)
    assert lora_folder.awake("a person") == []
    with pytest.raises(WeightsError, match=message) as caught:
        lora_folder.awake("a curlyqx person")
    assert str(path) in str(caught.value)
    assert "its tag 'curlyqx' is in the prompt" in str(caught.value)
    lora_folder.add("own", tag="curlyqx")  # one that fits is what is meant
    lora_folder.pipe.unload_library()
    lora_folder.pipe.load_library(lora_folder.folder)
    assert lora_folder.awake("a curlyqx person") == ["own"]


def foreign(lora_folder: LoraFolder, name: str, metadata: dict[str, str]) -> Path:
    """A file of another program: no gate in its metadata."""
    file = load_lora_file(lora_folder.add("made"))
    file.path.unlink()
    save_lora_file(lora_folder.folder / f"{name}.safetensors", file.layers, metadata)
    return lora_folder.folder / f"{name}.safetensors"


def test_trigger_phrase_activates_files_of_other_programs(lora_folder: LoraFolder) -> None:
    phrase = foreign(lora_folder, "phrase", {"modelspec.trigger_phrase": "sks dog"})
    foreign(lora_folder, "mute", {"ss_output_name": "mute"})
    with pytest.warns(LorasmithWarning, match=r"1 of 2 LoRA files .* left out, first mute"):
        assert lora_folder.pipe.load_library(lora_folder.folder) == ("sks dog",)
    assert lora_folder.awake("a sks dog in a hat") == ["phrase"]
    assert lora_folder.awake("a dog in a hat") == []
    lora_folder.pipe.unload_library()
    lora_folder.pipe.load_lora(phrase)  # named, it is used as everywhere: always
    assert lora_folder.awake("a dog in a hat") == ["phrase"]


def test_folder_without_loras_is_refused(lora_folder: LoraFolder) -> None:
    load = lora_folder.pipe.load_library
    with pytest.raises(WeightsError, match="there is no such folder"):
        load(lora_folder.folder / "absent")
    (lora_folder.folder / "run").mkdir()
    (lora_folder.folder / ".lorasmith-tmp-1-x.safetensors").touch()
    with pytest.raises(WeightsError, match="has no LoRA files; its subfolders"):
        load(lora_folder.folder)
    foreign(lora_folder, "mute", {})
    with pytest.raises(WeightsError, match="none of its 1 LoRA files says which tag"):
        load(lora_folder.folder)
    (lora_folder.folder / "damaged.safetensors").write_bytes(b"not safetensors")
    (lora_folder.folder / "mute.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"none of its 1 .*damaged\.safetensors: not a"):
        load(lora_folder.folder)
