"""The command ``generate`` under the option names of kohya's scripts, diffusers and A1111."""

from typing import Any

import typer.core

from lorasmith.config.reading.foreign_names import precision
from lorasmith.core.errors import ConfigError

_SAME = {
    "--num-images-per-prompt": "--num-images",
    "--images-per-prompt": "--num-images",
    "--pretrained-model-name-or-path": "--model",
    "--ckpt": "--model",
    "--output-dir": "--out",
    "--outdir": "--out",
    "--init-image": "--image",
    "--denoising-strength": "--strength",
    "--mask-image": "--mask",
    "--scale": "--guidance-scale",
    "--mixed-precision": "--precision",
    "--dtype": "--precision",
    "--network-weights": "--lora",
    "--lora-weights": "--lora",
    "--lora-path": "--lora",
}
"""Options of the same meaning."""
_SIZE = "give --size WIDTHxHEIGHT, such as --size 512x768"
_WEIGHT = "the weight follows the name: --lora NAME:0.8"
_COUNT = "--num-images is how many images there are; --batch-size is how many are made at once"
_LEAVE_OUT = "leave it out: the package decides it"
_ANSWERS = {
    "--prompt": 'the prompt stands without an option: lorasmith generate "a red apple"',
    "--from-file": "a command takes one prompt",
    "--width": _SIZE,
    "--height": _SIZE,
    "--resolution": _SIZE,
    "--scheduler": "it is part of the sampler's name: --sampler dpmpp_2m_karras",
    "--network-mul": _WEIGHT,
    "--lora-scale": _WEIGHT,
    "--n-iter": _COUNT,
    "--batch-count": _COUNT,
    "--fp16": "give --precision fp16",
    "--half": "give --precision fp16",
    "--bf16": "give --precision bf16",
    "--eta": "it belongs to the sampler: ddim adds no noise, ddpm and euler_a do",
    "--vae": "leave it out: the autoencoder is the model's own",
    "--xformers": "leave it out: attention is always memory-efficient",
    "--no-half-vae": _LEAVE_OUT,
    "--cpu-offload": _LEAVE_OUT,
}
"""What to do instead of other options."""


class GenerateCommand(typer.core.TyperCommand):
    """Takes options under other programs' names where they mean the same."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Replace names and values of other programs.

        Raises:
            ConfigError: an option has another meaning here; the message has the answer.
        """
        ours: list[str] = []
        for argument in args:
            name, equals, value = argument.partition("=")
            if name in _ANSWERS:
                raise ConfigError(
                    f"{name.replace('-', '_').replace('__', '--', 1)}: {_ANSWERS[name]}"
                )
            name = _SAME.get(name, name)
            if name == "--precision":
                value = precision(value)
            elif ours and ours[-1] == "--precision":
                name = precision(name)
            ours.append(f"{name}{equals}{value}")
        return super().parse_args(ctx, ours)
