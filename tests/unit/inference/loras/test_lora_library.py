"""A folder of LoRAs that wake on their own tags, and what is done where that is not clear."""

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
class Shelf:
    """A pipeline and a folder of LoRAs for it."""

    pipe: Pipeline
    folder: Path

    def add(self, name: str, **told: Any) -> Path:
        path = self.folder / f"{name}.safetensors"
        return make_lora(self.pipe.model, path, SMALL, 0.5, **{"tag": name, **told})

    def awake(self, prompt: str) -> list[str]:
        """Return the names of the LoRAs that were at work for a prompt."""
        told = (
            self.pipe(prompt, num_inference_steps=1, guidance_scale=1.0)[0]
            .info[PARAMETERS_KEY]
            .splitlines()[0]
        )
        return [part.split(":")[1] for part in told.split(" <lora:")[1:] for part in [f"x:{part}"]]


@pytest.fixture
def shelf(model: Model, tmp_path: Path) -> Iterator[Shelf]:
    before = [name for name, _ in model.unet.named_modules()]
    shelf = Shelf(Pipeline(model, tmp_path), tmp_path)
    yield shelf
    shelf.pipe.unload_lora()
    shelf.pipe.unload_library()
    assert [name for name, _ in model.unet.named_modules()] == before


def test_each_lora_is_activated_by_its_tag(shelf: Shelf) -> None:
    shelf.add("curlyqx")
    shelf.add("cookqz")
    (shelf.folder / "run").mkdir()
    make_lora(shelf.pipe.model, shelf.folder / "run" / "deep.safetensors", SMALL, 1.0, tag="deep")
    (shelf.folder / "notes.txt").touch()
    assert shelf.pipe.load_library(shelf.folder) == ("cookqz", "curlyqx")
    assert shelf.pipe.library_tags == ("cookqz", "curlyqx")
    assert not any("adapters" in name for name, _ in shelf.pipe.model.unet.named_modules())
    assert shelf.awake("a person") == []
    assert shelf.awake("a curlyqx person") == ["curlyqx"]
    assert sorted(shelf.awake("a curlyqx cookqz, deep")) == ["cookqz", "curlyqx"]
    assert shelf.pipe.find_library_tags("a COOKQZ") == ("cookqz",)
    shelf.pipe.unload_library()
    assert shelf.pipe.library_tags == shelf.pipe.find_library_tags("a cookqz") == ()
    assert shelf.awake("a curlyqx person") == []


def test_tag_within_a_longer_tag_does_not_count(shelf: Shelf) -> None:
    shelf.add("ink")
    shelf.add("style", tag="ink style")
    shelf.pipe.load_library(shelf.folder)
    assert shelf.awake("a dog, ink style") == ["style"]
    assert shelf.awake("a dog, ink") == ["ink"]
    assert sorted(shelf.awake("ink, ink style")) == ["ink", "style"]


def test_requested_lora_replaces_the_library_lora(shelf: Shelf) -> None:
    shelf.add("curlyqx")
    shelf.pipe.load_library(shelf.folder)
    parameters = shelf.pipe("a curlyqx <lora:curlyqx:0.5>", num_inference_steps=1)[0].info[
        PARAMETERS_KEY
    ]
    assert parameters.count("<lora:") == 1
    assert shelf.awake("a curlyqx <lora:curlyqx:0>") == ["curlyqx"]  # as written; it is off
    with_zero = shelf.pipe("a curlyqx <lora:curlyqx:0>", num_inference_steps=1)[0]
    shelf.pipe.unload_library()
    assert with_zero.tobytes() == shelf.pipe("a curlyqx", num_inference_steps=1)[0].tobytes()


def test_two_files_with_one_tag_are_refused(shelf: Shelf) -> None:
    paths = [shelf.add("one", tag="curlyqx"), shelf.add("two", tag="CurlyQX", run_id="b2")]
    shelf.pipe.load_library(shelf.folder)
    assert shelf.awake("a person") == []  # nobody asks for it
    with pytest.raises(WeightsError, match="both claim the tag 'curlyqx'") as caught:
        shelf.awake("a curlyqx person")
    assert all(str(path) in str(caught.value) for path in paths)
    shelf.pipe.load_lora("two")  # says which one is meant
    assert shelf.awake("a curlyqx person") == ["two"]


def test_latest_file_of_a_run_is_used_with_a_warning(shelf: Shelf) -> None:
    for name, step in (("early", 100), ("late", 400), ("best", 250)):
        shelf.add(name, tag="curlyqx", run_id="5f0c", step=step)
    shelf.pipe.load_library(shelf.folder)
    with pytest.warns(LorasmithWarning, match=r"3 files of one run .* late\.safetensors"):
        assert shelf.awake("a curlyqx person") == ["late"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert shelf.awake("a curlyqx person") == ["late"]
    shelf.add("other", tag="curlyqx", run_id="77aa", step=9000)
    shelf.pipe.unload_library()
    shelf.pipe.load_library(shelf.folder)
    with pytest.raises(WeightsError, match=r"late\.safetensors and .*other\.safetensors"):
        shelf.awake("a curlyqx person")


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"family": "sdxl"}, "made for SDXL"),
        ({"family": "sd2", "prediction_type": "v_prediction"}, "made for"),
        ({"prediction_type": "v_prediction"}, "made for models that predict v_prediction"),
    ],
)
def test_file_for_another_model_is_refused_once_activated(
    shelf: Shelf, told: dict[str, Any], message: str
) -> None:
    path = shelf.add("foreign", tag="curlyqx", **told)
    shelf.pipe.load_library(shelf.folder)
    assert shelf.awake("a person") == []
    with pytest.raises(WeightsError, match=message) as caught:
        shelf.awake("a curlyqx person")
    assert str(path) in str(caught.value)
    assert "its tag 'curlyqx' is in the prompt" in str(caught.value)
    shelf.add("own", tag="curlyqx")  # one that fits is what is meant
    shelf.pipe.unload_library()
    shelf.pipe.load_library(shelf.folder)
    assert shelf.awake("a curlyqx person") == ["own"]


def foreign(shelf: Shelf, name: str, metadata: dict[str, str]) -> Path:
    """A file of another program: no gate in its metadata."""
    file = load_lora_file(shelf.add("made"))
    file.path.unlink()
    save_lora_file(shelf.folder / f"{name}.safetensors", file.layers, metadata)
    return shelf.folder / f"{name}.safetensors"


def test_trigger_phrase_activates_files_of_other_programs(shelf: Shelf) -> None:
    phrase = foreign(shelf, "phrase", {"modelspec.trigger_phrase": "sks dog"})
    foreign(shelf, "mute", {"ss_output_name": "mute"})
    with pytest.warns(LorasmithWarning, match=r"1 of 2 LoRA files .* left out, first mute"):
        assert shelf.pipe.load_library(shelf.folder) == ("sks dog",)
    assert shelf.awake("a sks dog in a hat") == ["phrase"]
    assert shelf.awake("a dog in a hat") == []
    shelf.pipe.unload_library()
    shelf.pipe.load_lora(phrase)  # named, it is used as everywhere: always
    assert shelf.awake("a dog in a hat") == ["phrase"]


def test_folder_without_loras_is_refused(shelf: Shelf) -> None:
    load = shelf.pipe.load_library
    with pytest.raises(WeightsError, match="there is no such folder"):
        load(shelf.folder / "absent")
    (shelf.folder / "run").mkdir()
    (shelf.folder / ".lorasmith-tmp-1-x.safetensors").touch()
    with pytest.raises(WeightsError, match="has no LoRA files; its subfolders"):
        load(shelf.folder)
    foreign(shelf, "mute", {})
    with pytest.raises(WeightsError, match="none of its 1 LoRA files says which tag"):
        load(shelf.folder)
    (shelf.folder / "damaged.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(WeightsError, match=r"damaged\.safetensors: not a readable"):
        load(shelf.folder)
