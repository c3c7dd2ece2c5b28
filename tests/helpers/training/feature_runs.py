"""Images and settings of runs of two features."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lorasmith.core.device import make_generator

QUICK = {
    "steps": 4,
    "batch_size": 2,
    "device": '"cpu"',
    "log_every_n_steps": 1,
    "checkpoint_every_n_steps": 2,
    "learning_rate": 0.01,
    "lr_warmup_steps": 0,
}
PLACES = ("park", "sea", "sofa", "car", "hut")


def write_pictures(folder: Path, tag: str, seed: int, count: int = 5) -> Path:
    """Write noise, each image with a caption that has the tag and the class word."""
    folder.mkdir()
    for number in range(count):
        noise = torch.randint(256, (64, 64, 3), generator=make_generator(seed, number))
        Image.fromarray(noise.to(torch.uint8).numpy()).save(folder / f"{number}.png")
        caption = f"a {tag} person, {PLACES[number % len(PLACES)]}"
        (folder / f"{number}.txt").write_text(caption)
    return folder


def two_features(
    root: Path,
    model: Path,
    mode: str = "staged",
    tags: tuple[str, str] = ("curlyqx", "cookqz"),
    name: str = "both",
    more: str = "",
    **train: Any,
) -> Path:
    """Write the settings of two features, and their images where there are none yet."""
    for number, folder in enumerate(("curly", "cook")):
        if not (root / folder).is_dir():
            write_pictures(root / folder, tags[number], number)
    settings = "\n".join(f"{key} = {value}" for key, value in {**QUICK, **train}.items())
    file = root / f"{name}.toml"
    file.write_text(
        f"""
[[feature]]
tag = "{tags[0]}"
class_word = "person"
data = "{root / "curly"}"

[[feature]]
tag = "{tags[1]}"
class_word = "person"
data = "{root / "cook"}"
rank = 2

[output]
name = "{root / "loras" / name}"
[model]
path = "{model}"
[lora]
rank = 4
[track]
tensorboard = false
[validation]
every_n_steps = 0
{more}
[train]
mode = "{mode}"
{settings}
""",
        encoding="utf-8",
    )
    return file
