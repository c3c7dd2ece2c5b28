import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from helpers.published_files import file_shapes, write_sparse
from lorasmith.models.files.part_sizes import PartSize, add_sizes, measure_tensors
from lorasmith.models.files.stored_tensors import find_part_tensors
from lorasmith.models.files.summary import read_model_info

WEIGHTS = "diffusion_pytorch_model.safetensors"


def test_whole_numbers_take_the_same_bytes_in_any_precision(tmp_path: Path) -> None:
    tensors = {
        "half": torch.zeros(3, 5, dtype=torch.float16),
        "full": torch.zeros(7),
        "brain": torch.zeros(2, dtype=torch.bfloat16),
        "position_ids": torch.arange(4),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    size = measure_tensors(find_part_tensors(tmp_path, "safety_checker").values())
    assert size == PartSize(30 + 28 + 4 + 32, 24, 2 * 24 + 32, 4 * 24 + 32)


def test_parts_of_a_folder_add_up_to_its_files(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    half = {name: value.half() for name, value in load_file(folder / "unet" / WEIGHTS).items()}
    save_file(half, folder / "unet" / WEIGHTS)
    (folder / "image_tower").mkdir()
    save_file({"weight": torch.zeros(10, 10)}, folder / "image_tower" / "model.safetensors")
    sizes = read_model_info(folder).sizes
    assert list(sizes) == ["unet", "vae", "text_encoder", "image_tower"]
    parameters = sum(value.numel() for value in half.values())
    assert sizes["unet"] == PartSize(2 * parameters, parameters, 2 * parameters, 4 * parameters)
    assert sizes["vae"].stored == sizes["vae"].fp32
    assert sizes["image_tower"] == PartSize(400, 100, 200, 400)
    files = list(folder.rglob("*.safetensors"))
    headers = 200_000  # at most
    total = add_sizes(sizes)
    assert 0 < sum(path.stat().st_size for path in files) - total.stored < headers
    assert total.fp32 == 2 * total.fp16 == 4 * total.parameters


def test_pickled_safety_checker_counts_as_its_file_alone(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "config.json").write_text("{}")
    assert "safety_checker" not in read_model_info(folder).sizes
    (folder / "safety_checker" / "pytorch_model.bin").write_bytes(b"PK" + bytes(998))
    assert read_model_info(folder).sizes["safety_checker"] == PartSize(1000, None, None, None)


def test_single_file_has_the_sizes_of_the_published_model(tmp_path: Path) -> None:
    sizes = read_model_info(write_sparse(tmp_path / "a.safetensors", file_shapes("sd1"))).sizes
    assert sizes["unet"].parameters == 859_520_964
    assert sizes["unet"].fp16 == 2 * 859_520_964
    assert sizes["vae"].parameters == 83_653_863
    assert sizes["text_encoder"].parameters == 123_060_480
