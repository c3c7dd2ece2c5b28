"""Draw an image and look at it on the way: a callback decodes the latents every few steps.

python examples/draw_with_callback.py "a red apple, noto style" steps.png
"""

import argparse
from pathlib import Path

import torch
from PIL import Image

import lorasmith
from lorasmith.inference.outputs.grid import make_labelled_grid


@torch.no_grad()
def decode(pipe: lorasmith.Pipeline, latents: torch.Tensor) -> Image.Image:
    """Return the first image of a batch of latents."""
    vae = pipe.model.vae
    pixels = vae.decode(latents[:1] / vae.config.scaling_factor).sample[0]
    return Image.fromarray(
        ((pixels.clamp(-1, 1) + 1) * 127.5).byte().permute(1, 2, 0).cpu().numpy()
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw an image, and its latents on the way.")
    parser.add_argument("prompt")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    stages: list[Image.Image] = []
    labels: list[str] = []

    def show(pipe: lorasmith.Pipeline, step: int, timestep: int, tensors: dict) -> dict:
        if step % max(1, options.steps // 5) == 0:
            stages.append(decode(pipe, tensors["latents"]))
            labels.append(f"step {step}")
        return tensors  # changed latents, if you return some, are what goes on

    pipe = lorasmith.load_pipeline()
    images = pipe(
        options.prompt,
        seed=options.seed,
        num_inference_steps=options.steps,
        callback_on_step_end=show,
    )
    row = [*stages, images[0]]
    make_labelled_grid([row], column_labels=[*labels, "image"]).save(options.out)
    print(f"{options.out}: {len(stages)} stages and the image")


if __name__ == "__main__":
    main()
