"""A diffusion model in 100 lines: shapes in pixel space, one class each, no autoencoder, no text.

    python examples/toy_diffusion.py shapes.png

It has what Stable Diffusion has: a noise schedule, a network that predicts the noise,
classifier-free guidance and a sampler. A class takes the place of the prompt.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from PIL import Image

from lorasmith.inference.outputs.grid import make_labelled_grid
from lorasmith.inference.samplers import make_scheduler
from lorasmith.loops.ema import Ema
from lorasmith.loops.optimization.lr_schedule import lr_factor
from lorasmith.models.noise_schedule import NoiseSchedule

SIZE, CLASSES = 16, ("disc", "square", "cross", "ring")
NO_CLASS = len(CLASSES)  # what the network sees where the class is dropped, for guidance
SCHEDULER = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "clip_sample": False}


def draw_shapes(labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return a shape for each label at a random place and size, ``[B, 1, 16, 16]`` in -1..1."""
    centre = 5.5 + 4 * torch.rand(len(labels), 2, 1, 1, generator=generator)
    radius = 3.5 + 2 * torch.rand(len(labels), 1, 1, generator=generator)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    dy, dx = (y - centre[:, 0]).abs(), (x - centre[:, 1]).abs()
    disc, square = (dy**2 + dx**2).sqrt() - radius, torch.maximum(dy, dx) - radius
    cross = torch.minimum(torch.maximum(dy - 1, dx - radius), torch.maximum(dx - 1, dy - radius))
    distance = torch.stack([disc, square, cross, disc.add(1).abs() - 1])  # below 0 is inside
    chosen = distance[labels, torch.arange(len(labels))]
    return (-2 * chosen).clamp(-1, 1).unsqueeze(1)


def make_network() -> UNet2DModel:
    """Return a small U-Net that predicts the noise in ``[B, 1, 16, 16]``, given t and a class."""
    return UNet2DModel(
        sample_size=SIZE, in_channels=1, out_channels=1, layers_per_block=1,
        block_out_channels=(32, 64, 64), norm_num_groups=8, attention_head_dim=8,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        num_class_embeds=len(CLASSES) + 1,
    )  # fmt: skip


def train(network: UNet2DModel, schedule: NoiseSchedule, steps: int) -> tuple[Ema, list[float]]:
    """Train on freshly drawn shapes; return the average of the weights, and all losses."""
    generator, losses = torch.Generator().manual_seed(0), []
    optimizer, ema = torch.optim.AdamW(network.parameters(), lr=2e-3), Ema(network, 0.995)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * lr_factor(step, steps, 50, 0.05)
        labels = torch.randint(len(CLASSES), (32,), generator=generator)
        clean = draw_shapes(labels, generator)
        noise = torch.randn(clean.shape, generator=generator)
        t = torch.randint(schedule.num_timesteps, (32,), generator=generator)
        labels[torch.rand(32, generator=generator) < 0.1] = NO_CLASS
        prediction = network(schedule.add_noise(clean, noise, t), t, labels).sample
        loss = F.mse_loss(prediction, schedule.training_target(clean, noise, t))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update()
        losses.append(loss.item())
    return ema, losses


@torch.no_grad()
def sample(network: UNet2DModel, labels: torch.Tensor, guidance_scale: float = 2.0) -> torch.Tensor:
    """Draw an image for each label from pure noise, under classifier-free guidance."""
    scheduler = make_scheduler("ddim", SCHEDULER, 30, torch.device("cpu"))
    images = torch.randn(len(labels), 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    for t in scheduler.timesteps:
        times = t.expand(len(labels))
        without = network(images, times, torch.full_like(labels, NO_CLASS)).sample
        noise = without + guidance_scale * (network(images, times, labels).sample - without)
        images = scheduler.step(noise, t, images).prev_sample
    return images


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train a toy diffusion model and draw with it.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=1500)
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    network = make_network()
    schedule = NoiseSchedule.from_scheduler(SCHEDULER, torch.device("cpu"))
    ema, losses = train(network, schedule, options.steps)
    with ema.average_parameters():
        images = sample(network, torch.arange(len(CLASSES)).repeat_interleave(6))
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).byte().numpy()[:, 0]
    tiles = [Image.fromarray(tile).resize((64, 64), Image.Resampling.NEAREST) for tile in pixels]
    rows = [tiles[i : i + 6] for i in range(0, len(tiles), 6)]
    make_labelled_grid(rows, row_labels=CLASSES).save(options.out)
    last = losses[-50:]
    print(f"{options.out}: loss {losses[0]:.3f} at first, {sum(last) / len(last):.3f} at last")


if __name__ == "__main__":
    main()
