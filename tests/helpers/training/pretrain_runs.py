"""What the tests of pretraining share: small data, small settings, and running the commands."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from helpers.paths import MERGES_FILE
from lorasmith.cli import run
from lorasmith.loops.checkpoint import load_checkpoint

VAE_FILE = "vae/diffusion_pytorch_model.safetensors"
UNET_FILE = "unet/diffusion_pytorch_model.safetensors"
KINDS = ("clip", "vae", "unet")
SHAPES = ("circle", "square")
COLOURS = ("red", "green", "blue", "black", "orange", "purple")

LOOP = """
[train]
output_dir = "{out}"
steps = 4
batch_size = 8
learning_rate = 1e-3
lr_warmup_steps = 1
log_every_n_steps = 2
ema_decay = 0.9
device = "cpu"
tensorboard = false
"""

CLIP = """
merges_file = "{merges}"
num_merges = 300
projection_dim = 8
resolution = 32
data = {{ path = "{data}", filters = [{{ column = "role", value = "base" }}], flip_aug = true }}
text_encoder.hidden_size = 16
text_encoder.num_hidden_layers = 1
text_encoder.num_attention_heads = 2
text_encoder.intermediate_size = 32
image_encoder = {{ block_out_channels = [8, 16], layers_per_block = [1, 1] }}
"""

VAE = """
resolution = 32
data = {{ path = "{data}", filters = [{{ column = "role", value = "base" }}], flip_aug = true }}
architecture = {{ block_out_channels = [8, 8, 8, 8], norm_num_groups = 4, latent_channels = 4 }}

[loss]
perceptual_weight = 0.1
perceptual_encoder = "{clip}"
adversarial_weight = 0.1
adversarial_start_step = 1
discriminator_channels = 4
"""

UNET = """
vae = "{vae}"
text_encoder = "{clip}"
data = {{ path = "{data}", filters = [{{ column = "role", value = "base" }}], flip_aug = true }}
architecture.block_out_channels = [8, 8, 16, 16]
architecture.layers_per_block = 1
architecture.attention_head_dim = 2
architecture.norm_num_groups = 4

[[stages]]
resolution = 64
steps = 2

[[stages]]
resolution = 128
steps = 2
filters = [{{ column = "size", op = ">=", value = 100 }}]
"""


@dataclass(frozen=True)
class PretrainRuns:
    """A folder with the data and one finished run of each kind."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def clip(self) -> Path:
        return self.root / "clip"

    @property
    def vae(self) -> Path:
        return self.root / "vae"

    @property
    def unet(self) -> Path:
        return self.root / "unet"

    def config(self, kind: str) -> Path:
        """Write the settings of one kind of run and return their file."""
        text = {"clip": CLIP, "vae": VAE, "unet": UNET}[kind] + LOOP
        names = {"data": self.data, "clip": self.clip, "vae": self.vae, "merges": MERGES_FILE}
        path = self.root / f"{kind}.toml"
        path.write_text(text.format(out=self.root / kind, **names), encoding="utf-8")
        return path

    def pretrain(self, kind: str, out: Path, *sets: str, options: tuple[str, ...] = ()) -> int:
        """Run one command in this process and return its exit code."""
        overrides = [x for text in (f"train.output_dir={out}", *sets) for x in ("--set", text)]
        return run(["pretrain", kind, str(self.config(kind)), *overrides, *options])


def make_data(folder: Path) -> None:
    """Write twenty-four captioned images, four of which are held out."""
    folder.mkdir(parents=True)
    lines = []
    for number in range(24):
        shape, colour = SHAPES[number % 2], COLOURS[number % 6]
        size = 96 if number % 4 == 0 else 128
        picture = Image.new("RGB", (size, size), "white")
        draw = ImageDraw.Draw(picture)
        corner = random.Random(number).randrange(8, 30)
        corners = (corner, corner, corner + 50, corner + 50)
        (draw.ellipse if shape == "circle" else draw.rectangle)(corners, fill=colour)
        picture.save(folder / f"{number:02}.png")
        caption = f"a {colour} {shape}, plain style"
        lines.append(
            {
                "file_name": f"{number:02}.png",
                "captions": [caption, f"{colour} {shape}"],
                "role": "holdout" if number >= 20 else "base",
                "size": size,
            }
        )
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")


def final_state(out: Path, step: int = 4) -> dict[str, torch.Tensor]:
    """Everything in a run's last checkpoint: weights, averages and optimizers."""
    return load_checkpoint(out / "checkpoints" / f"step-{step:08}").tensors


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Return the names of the tensors that differ."""
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def several_runs(
    pretrain_runs: PretrainRuns, out: Path, sets: Mapping[str, tuple[str, ...]], *more: str
) -> int:
    """Run each kind of pretraining; return the highest exit code."""
    return max(
        pretrain_runs.pretrain(kind, out / kind, *settings, *more)
        for kind, settings in sets.items()
    )


def last_error(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a failed command printed."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]
