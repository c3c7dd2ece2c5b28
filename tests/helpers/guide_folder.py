"""The folder that the guides assume: images, a model, LoRAs, settings."""

import re
from pathlib import Path

from PIL import Image, ImageDraw

FENCE = r"^```{kind}\n(.*?)^```$"


def fences(page: Path, kind: str) -> list[str]:
    """The code fences of one kind in a page, in order."""
    pattern = re.compile(FENCE.format(kind=kind), re.MULTILINE | re.DOTALL)
    return pattern.findall(page.read_text(encoding="utf-8"))


def commands(page: Path) -> list[str]:
    """The commands in the ``sh`` fences of a page, in order."""
    lines = [line for text in fences(page, "sh") for line in text.splitlines()]
    return [line for line in lines if line.startswith("lorasmith ")]


def set_up(folder: Path, model: Path, page: Path) -> None:
    """Write the files that a page assumes.

    Args:
        folder: an empty one.
        model: a diffusers folder, which is ``path/to/model``.
        page: its settings for `train` become ``run.toml``.
    """
    (folder / "pictures").mkdir()
    for number, subject in enumerate(("cat face", "owl", "boat", "tree", "key", "bell")):
        picture = Image.new("RGB", (96, 96 + 16 * (number % 2)), "white")
        ImageDraw.Draw(picture).ellipse((8 * number, 8, 90, 40 + 8 * number), fill="black")
        picture.save(folder / "pictures" / f"{number}.png")
        caption = f"a {subject}, inkmono style"
        (folder / "pictures" / f"{number}.txt").write_text(caption, encoding="utf-8")
    _add_photo(folder)
    (folder / "path" / "to").mkdir(parents=True)
    (folder / "path" / "to" / "model").symlink_to(model)
    for text in fences(page, "toml"):
        if text.startswith("# lorasmith train\n"):
            (folder / "run.toml").write_text(text, encoding="utf-8")
        if text.startswith("# lorasmith sweep\n"):
            (folder / "sweep.toml").write_text(text, encoding="utf-8")
        if text.startswith("# lorasmith train with features\n"):
            (folder / "features.toml").write_text(text, encoding="utf-8")
            _add_features(folder / "data")


def _add_photo(folder: Path) -> None:
    """Write an image to draw on, its mask, and the mask of a training image."""
    photo = Image.new("RGB", (64, 64), "navy")
    ImageDraw.Draw(photo).ellipse((12, 12, 50, 44), fill="orange")
    photo.save(folder / "photo.png")
    mask = Image.new("L", (64, 64), 0)
    ImageDraw.Draw(mask).rectangle((10, 10, 52, 46), fill=255)
    mask.save(folder / "mask.png")


def _add_features(folder: Path) -> None:
    """Write the images of two features."""
    for name, tag in (("curly", "curlyqx"), ("cook", "cookqz")):
        (folder / name).mkdir(parents=True)
        for number, location in enumerate(("park", "kitchen", "car")):
            picture = Image.new("RGB", (64, 64), "white")
            ImageDraw.Draw(picture).ellipse((8 * number, 8, 40, 20 + 8 * number), fill="black")
            picture.save(folder / name / f"{number}.png")
            caption = f"a {tag} person in a {location}"
            (folder / name / f"{number}.txt").write_text(caption, encoding="utf-8")


def add_loras(folder: Path) -> None:
    """Write ``inkmono``, ``inkmono-best`` and ``rank4`` as runs do, and two LoRAs with gates.

    ``people/curly`` waits for the tag ``curlyqx``, ``people/cook`` for ``cookqz``.
    """
    import torch

    from lorasmith.core.safetensors_io import save_tensors

    name = "lora_unet_up_blocks_3_attentions_0_transformer_blocks_0_attn2_to_v"
    random = torch.Generator().manual_seed(0)
    tags = {
        "loras/inkmono": "", "loras/rank4": "", "loras/inkmono/inkmono-best": "",
        "people/curly": "curlyqx", "people/cook": "cookqz",
    }  # fmt: skip
    for file, tag in tags.items():
        path = folder / f"{file}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        factors = {
            f"{name}.lora_down.weight": torch.randn(4, 16, generator=random),
            f"{name}.lora_up.weight": torch.randn(8, 4, generator=random),
        }
        gate = {"lorasmith.gate": "prompt", "lorasmith.tag": tag} if tag else {}
        save_tensors(path, factors, {"ss_base_model_version": "sd_v1", **gate})
