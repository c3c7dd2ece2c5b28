"""Numbers of a dataset and of settings that are too large: read sensibly, or one line."""

import json
import os
import tracemalloc
import unicodedata
from pathlib import Path

import pytest
import torch

from helpers.dataset_files import scene, write_image
from lorasmith.config.reading.load import load_config
from lorasmith.config.train_config import DataConfig, TrainConfig
from lorasmith.core.errors import ConfigError, DataError
from lorasmith.data.batch_sampler import BucketBatchSampler
from lorasmith.data.reading.problems import Problem
from lorasmith.data.reading.repeats import MAX_REPEATS
from lorasmith.data.scan.scan import ScanResult, read_usable_rows, scan_dataset
from lorasmith.inference.loras.find import find_lora

NEEDED = ["data.path=pictures", "data.tag=inkmono", "output.name=x"]


def scanned(folder: Path, *names: str, caption: str = "inkq") -> ScanResult:
    for index, name in enumerate(names):
        write_image(folder / name, scene(index), caption)
    return scan_dataset(folder)


def problems(result: ScanResult) -> list[Problem]:
    return sorted(result.problems, key=lambda problem: problem.file)


@pytest.mark.parametrize(
    ("name", "repeats"),
    [
        ("10_dog", 10),
        ("007_dog", 7),
        (f"{MAX_REPEATS}_dog", MAX_REPEATS),
        ("1000_dog", 1),
        ("2023_summer", 1),
        ("20230801_holiday", 1),
        ("20230801123000123456_x", 1),
        ("1" * 200 + "_x", 1),
        ("dog_10", 1),
        ("10_", 1),
    ],
)
def test_number_of_a_folder_is_repeats_up_to_a_bound(
    tmp_path: Path, name: str, repeats: int
) -> None:
    result = scanned(tmp_path, f"{name}/a.png")
    assert [row.repeats for row in result.rows] == [repeats]
    is_number = name[0].isdigit() and name != "10_"
    warned = is_number and repeats in (1, MAX_REPEATS)
    assert [(p.kind, p.severity) for p in result.problems] == [("many-repeats", "warning")] * warned


def test_repeats_take_no_memory_of_their_own() -> None:
    tracemalloc.start()
    sampler = BucketBatchSampler([0, 1], [20_000_000, 1], 8, seed=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20
    assert sampler.steps_per_epoch == 2_500_001


def test_batches_of_many_repeats_are_those_of_the_rounds_one_by_one() -> None:
    sampler = BucketBatchSampler([0, 0, 0], [500, 500, 1], 2, seed=0)
    batches = [sampler.get_batch(step) for step in range(sampler.steps_per_epoch)]
    assert torch.cat(batches).bincount().tolist() == [500, 500, 1]


@pytest.mark.filterwarnings("ignore:.*come 999 times")
def test_epoch_that_is_too_long_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    scanned(tmp_path, *(f"999_dog/{index}.png" for index in range(2)))
    data = DataConfig(path=tmp_path, tag="inkq", num_repeats=10_000)
    with pytest.raises(DataError, match="come 19,980,000 times in an epoch, and 10,000,000 is"):
        read_usable_rows(data)


@pytest.mark.parametrize(
    "override",
    [
        "train.steps=10000000000", "train.batch_size=10000000000", "data.num_repeats=10001",
        "train.gradient_accumulation_steps=1000000", "data.resolution=100000",
        "lora.rank=10000000000", "data.bucket_reso_steps=100000",
    ],
)  # fmt: skip
def test_settings_that_are_too_large_are_refused_in_a_line(override: str) -> None:
    with pytest.raises(ConfigError, match=override.partition("=")[0]) as caught:
        load_config(TrainConfig, None, [*NEEDED, override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a:b", "x>y", "x<y", "ends ", "a..b", "some/folder/a:b", r"a\b"])
@pytest.mark.skipif(os.name == "nt", reason="a backslash separates folders on Windows")
def test_name_that_no_prompt_can_say_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="prompts load a LoRA as <lora:NAME:WEIGHT>"):
        load_config(TrainConfig, None, [*NEEDED[:2], f"output.name='{name}'"])


# --- folders of kohya's trainers, and names that differ in their form -----------------------------


def test_folder_above_img_and_reg_is_refused_with_the_right_folders(tmp_path: Path) -> None:
    result = scanned(tmp_path, "img/10_inkq dog/a.png", "reg/1_dog/b.png")
    img, reg = problems(result)
    assert (img.kind, img.severity) == ("misplaced-repeats", "warning")
    assert img.detail.endswith(f"give {tmp_path / 'img'} as the data folder")
    assert (reg.kind, reg.severity) == ("misplaced-repeats", "error")
    assert f"give {tmp_path / 'img'} as the data folder" in reg.detail
    assert f"{tmp_path / 'reg'} as data.reg_data_dir" in reg.detail
    assert scan_dataset(tmp_path / "img").problems == []


def test_repeats_of_the_data_folder_itself_are_reported(tmp_path: Path) -> None:
    (problem,) = problems(scanned(tmp_path / "10_inkq dog", "a.png"))
    assert (problem.kind, problem.severity) == ("misplaced-repeats", "warning")
    assert f"count in {tmp_path} only" in problem.detail


@pytest.mark.parametrize(("picture_form", "caption_form"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_in_two_unicode_forms_belong_together(
    tmp_path: Path, picture_form: str, caption_form: str
) -> None:
    write_image(tmp_path / unicodedata.normalize(picture_form, "café.png"), scene(0), None)
    for suffix in (".txt", ".mask.png"):
        path = tmp_path / unicodedata.normalize(caption_form, f"café{suffix}")
        if suffix == ".txt":
            path.write_text("inkq café")
        else:
            write_image(path, scene(0).convert("L"), None)
    result = scan_dataset(tmp_path)
    assert result.problems == []
    assert [(row.caption, row.mask_path is not None) for row in result.rows] == [
        ("inkq café", True)
    ]


def test_line_of_a_manifest_finds_a_name_in_another_form(tmp_path: Path) -> None:
    write_image(tmp_path / unicodedata.normalize("NFD", "café.png"), scene(0), None)
    line = {"file_name": unicodedata.normalize("NFC", "café.png"), "text": "inkq"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line))
    result = scan_dataset(tmp_path)
    assert (len(result.rows), list(result.problems)) == (1, [])


def test_caption_of_two_images_is_reported(tmp_path: Path) -> None:
    (problem,) = problems(scanned(tmp_path, "a.png", "a.jpg"))
    assert (problem.file, problem.kind, problem.severity) == ("a.txt", "shared-caption", "warning")
    assert "is the caption of a.jpg and a.png" in problem.detail


@pytest.mark.parametrize(("file_form", "name_form"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_lora_is_found_by_its_name_in_another_unicode_form(
    tmp_path: Path, file_form: str, name_form: str
) -> None:
    file = tmp_path / unicodedata.normalize(file_form, "café.safetensors")
    file.touch()
    assert find_lora(unicodedata.normalize(name_form, "café"), tmp_path) == file
