"""Assemble the three trained parts into the embedded model: fp16, sharded, size-checked.

    python recipes/embedded_base/package.py --unet work/unet --vae work/vae --clip work/clip \
        --out src/lorasmith/embedded
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

TOTAL_LIMIT = 48 * 2**20
FILE_LIMIT = 16 * 2**20
SHARD = "15MB"


def main() -> None:
    """Read the arguments, build the folder, print its sizes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for part in ("unet", "vae", "clip", "out"):
        parser.add_argument(f"--{part}", type=Path, required=True)
    arguments = parser.parse_args()
    assemble(arguments.unet, arguments.vae, arguments.clip, arguments.out)
    total = check_sizes(arguments.out)
    print(f"{arguments.out}: {total / 2**20:.1f} MiB")


def assemble(unet: Path, vae: Path, clip: Path, out: Path) -> None:
    """Write every part into ``out``; files of other kinds there (a model card) stay."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    from lorasmith.core.safetensors_io import load_metadata, load_tensors, save_tensors

    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "image_tower"):
        shutil.rmtree(out / part, ignore_errors=True)
    save_half(UNet2DConditionModel.from_pretrained(unet / "unet"), out / "unet")
    save_half(AutoencoderKL.from_pretrained(vae / "vae"), out / "vae")
    save_half(CLIPTextModel.from_pretrained(clip / "text_encoder"), out / "text_encoder")
    declare_float32(out / "text_encoder" / "config.json")
    shutil.copytree(clip / "tokenizer", out / "tokenizer")
    compact(out / "tokenizer" / "tokenizer.json")
    for name in ("scheduler", "model_index.json"):
        copy = shutil.copytree if (unet / name).is_dir() else shutil.copyfile
        copy(unet / name, out / name)
    tower = clip / "image_tower"
    halves = {k: half(v, k) for k, v in load_tensors(tower / "model.safetensors").items()}
    metadata = load_metadata(tower / "model.safetensors")
    save_tensors(out / "image_tower" / "model.safetensors", halves, metadata)
    (out / "image_tower" / "model.safetensors").chmod(0o644)
    shutil.copyfile(tower / "config.json", out / "image_tower" / "config.json")


def half(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """Return a tensor in fp16, refusing values that overflow."""
    if not tensor.is_floating_point():
        return tensor
    result = tensor.half()
    if not torch.isfinite(result).all():
        sys.exit(f"error: {name} does not fit into fp16")
    return result


def save_half(module: Any, folder: Path) -> None:
    """Save a network in fp16 in shards below the size limit."""
    for name, tensor in module.state_dict().items():
        half(tensor, name)
    module.half().save_pretrained(folder, max_shard_size=SHARD)
    config = folder / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings.pop("_name_or_path", None)  # where it was trained is nobody's business
    config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    for path in folder.iterdir():
        path.chmod(0o644)


def declare_float32(config: Path) -> None:
    """Make transformers load the text encoder as float32, as diffusers does with its parts."""
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings["dtype"] = "float32"
    config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def compact(path: Path) -> None:
    """Rewrite a JSON file without its white space."""
    value = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


def check_sizes(folder: Path) -> int:
    """Return the folder's size in bytes, refusing one that breaks a limit."""
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    large = [path for path, size in sizes.items() if size > FILE_LIMIT]
    if large or sum(sizes.values()) > TOTAL_LIMIT:
        sys.exit(f"error: {folder} is {sum(sizes.values())} bytes; too large: {large or 'in all'}")
    return sum(sizes.values())


if __name__ == "__main__":
    main()
