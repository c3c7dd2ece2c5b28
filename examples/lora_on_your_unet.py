"""Put LoRA adapters on a U-Net of your own, train them in your own loop, and save a LoRA file.

    python examples/lora_on_your_unet.py adapters.safetensors

Nothing of lorasmith but the adapters is used: the network is diffusers', the loop and the optimizer
are plain torch. The data here are random latents, so that the example runs anywhere.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel

import lorasmith


def make_unet() -> UNet2DConditionModel:
    """Return a narrow Stable Diffusion 1.x U-Net; in real use, ``from_pretrained`` does."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=16, block_out_channels=(16, 16, 32, 32), cross_attention_dim=32,
        attention_head_dim=2, norm_num_groups=8,
    ).requires_grad_(False)  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train adapters on a U-Net of your own.")
    parser.add_argument("out", type=Path, help="The LoRA file.")
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args(arguments)

    unet, scheduler = make_unet(), DDPMScheduler(beta_schedule="scaled_linear")
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(4, 4, 16, 16, generator=generator)
    texts = torch.randn(4, 77, 32, generator=generator)

    adapters = lorasmith.inject(unet, rank=4, targets=["attn1", "attn2"])
    optimizer = torch.optim.AdamW(adapters.parameters(), lr=1e-3)
    for step in range(options.steps):
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(1000, (4,), generator=generator)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        loss = F.mse_loss(unet(noisy, timesteps, texts).sample, noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            print(f"step {step}: loss {loss.item():.4f}")

    lorasmith.save_lora(adapters, options.out)
    adapters.remove()  # the U-Net is again what it was
    total = lorasmith.lora_info(options.out).total
    print(f"{options.out}: {total.layers} layers, {total.parameters:,} parameters")


if __name__ == "__main__":
    main()
