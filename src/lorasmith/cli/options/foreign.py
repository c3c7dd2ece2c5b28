"""Options of other programs: taken where they mean the same, otherwise answered.

The names are those of kohya's scripts, diffusers' and A1111's. The commands that take settings have
a table of their own, `lorasmith.config.reading.foreign_names`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import typer.core

from lorasmith.config.reading.foreign_values import precision
from lorasmith.core.errors import ConfigError


class ForeignOptionsCommand(typer.core.TyperCommand):
    """Takes options under other programs' names where they mean the same."""

    same: ClassVar[Mapping[str, str]] = {}
    """Options of the same meaning, and what they are called here."""
    answers: ClassVar[Mapping[str, str]] = {}
    """What to do instead of other options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Replace names and values of other programs.

        Raises:
            ConfigError: an option has another meaning here; the message has the answer.
        """
        ours: list[str] = []
        for argument in args:
            name, equals, value = argument.partition("=")
            if name in self.answers:
                shown = name.replace("-", "_").replace("__", "--", 1)
                raise ConfigError(f"{shown}: {self.answers[name]}")
            name = self.same.get(name, name)
            if name == "--precision":
                value = precision(value)
            elif ours and ours[-1] == "--precision":
                name = precision(name)
            ours.append(f"{name}{equals}{value}")
        return super().parse_args(ctx, ours)


_MODEL_AND_OUT = {
    "--pretrained-model-name-or-path": "--model",
    "--ckpt": "--model",
    "--output-dir": "--out",
    "--outdir": "--out",
    "--scale": "--guidance-scale",
    "--mixed-precision": "--precision",
    "--dtype": "--precision",
}
_FILE_OUT = {
    "--save-to": "--out",
    "--output": "--out",
    "--save-precision": "--precision",
    "--new-rank": "--rank",
    "--dim": "--rank",
    "--network-dim": "--rank",
}
_SIZE = "give --size WIDTHxHEIGHT, such as --size 512x768"
_HALF = {
    "--fp16": "give --precision fp16",
    "--half": "give --precision fp16",
    "--bf16": "give --precision bf16",
}
_WEIGHT = "the weight follows the name: --lora NAME:0.8"
_COUNT = "--num-images is how many images there are; --batch-size is how many are made at once"
_LEAVE_OUT = "leave it out: the package decides it"
_KIND = "leave it out: the family is read from the file"
_MERGE = (
    "files stand without an option, each with its weight: lorasmith lora merge "
    "first.safetensors:0.7 second.safetensors:0.3 --out sum.safetensors"
)
_FUSE = (
    "the model and the files stand without an option: lorasmith lora fuse model.safetensors "
    "first.safetensors:0.7 --out folder"
)
_RESIZE = "the file stands without an option: lorasmith lora resize FILE --rank 8 --out NEW"
_ENERGY = "give --energy, the share of the squared norm to keep: sv_fro 0.9 is --energy 0.81"
_EXTRACT = (
    "the models stand without an option, the tuned one first: lorasmith lora extract TUNED BASE "
    "--rank 8 --out NEW"
)
_CONV_RANK = "--rank is that of all layers, convolutions too"


class GenerateCommand(ForeignOptionsCommand):
    """``generate`` under the option names of kohya's scripts, diffusers and A1111."""

    same: ClassVar[Mapping[str, str]] = {
        **_MODEL_AND_OUT,
        "--num-images-per-prompt": "--num-images",
        "--images-per-prompt": "--num-images",
        "--init-image": "--image",
        "--denoising-strength": "--strength",
        "--mask-image": "--mask",
        "--network-weights": "--lora",
        "--lora-weights": "--lora",
        "--lora-path": "--lora",
    }
    answers: ClassVar[Mapping[str, str]] = {
        **_HALF,
        "--prompt": 'the prompt stands without an option: lorasmith generate "a red apple"',
        "--from-file": "a command takes one prompt",
        "--width": _SIZE,
        "--height": _SIZE,
        "--resolution": _SIZE,
        "--scheduler": "it is part of the sampler's name: --sampler dpmpp_2m_karras",
        "--network-mul": _WEIGHT,
        "--lora-scale": _WEIGHT,
        "--n-iter": _COUNT,
        "--n-samples": _COUNT,
        "--batch-count": _COUNT,
        "--eta": "it belongs to the sampler: ddim adds no noise, ddpm and euler_a do",
        "--vae": "leave it out: the autoencoder is the model's own",
        "--xformers": "leave it out: attention is always memory-efficient",
        "--no-half-vae": _LEAVE_OUT,
        "--cpu-offload": _LEAVE_OUT,
    }


class EvaluateCommand(ForeignOptionsCommand):
    """``evaluate`` under the option names of kohya's scripts and diffusers."""

    same: ClassVar[Mapping[str, str]] = {
        **_MODEL_AND_OUT,
        "--num-seeds": "--seeds",
        "--num-images": "--seeds",
        "--num-images-per-prompt": "--seeds",
        "--class-word": "--class",
        "--class-prompt": "--class",
        "--train-data-dir": "--data",
        "--instance-data-dir": "--data",
    }
    _TARGETS = "it stands without an option: lorasmith evaluate loras/inkmono.safetensors"
    answers: ClassVar[Mapping[str, str]] = {
        **_HALF,
        "--lora": _TARGETS,
        "--network-weights": _TARGETS,
        "--lora-path": _TARGETS,
        "--prompt": "prompts are the captions of the images: --data FOLDER",
        "--tag": "the trigger word is read from the LoRA file",
        "--width": _SIZE,
        "--height": _SIZE,
        "--resolution": _SIZE,
    }


class MergeCommand(ForeignOptionsCommand):
    """``lora merge`` under the option names of kohya's merge_lora.py."""

    same: ClassVar[Mapping[str, str]] = {**_FILE_OUT, "--sd-model": "--base"}
    answers: ClassVar[Mapping[str, str]] = {
        "--models": _MERGE,
        "--ratios": _MERGE,
        "--weights": _MERGE,
        "--new-conv-rank": _CONV_RANK,
        "--v2": _KIND,
        "--sdxl": _KIND,
    }


class FuseCommand(ForeignOptionsCommand):
    """``lora fuse`` under the option names of kohya's merge_lora.py."""

    same: ClassVar[Mapping[str, str]] = {
        "--save-to": "--out",
        "--output": "--out",
        "--save-precision": "--precision",
    }
    answers: ClassVar[Mapping[str, str]] = {
        "--sd-model": _FUSE,
        "--model": _FUSE,
        "--models": _FUSE,
        "--ratios": _FUSE,
        "--weights": _FUSE,
        "--v2": _KIND,
        "--sdxl": _KIND,
    }


class ResizeCommand(ForeignOptionsCommand):
    """``lora resize`` under the option names of kohya's resize_lora.py."""

    same: ClassVar[Mapping[str, str]] = _FILE_OUT
    answers: ClassVar[Mapping[str, str]] = {
        "--model": _RESIZE,
        "--dynamic-method": _ENERGY,
        "--dynamic-param": _ENERGY,
        "--new-conv-rank": _CONV_RANK,
    }


class ExtractCommand(ForeignOptionsCommand):
    """``lora extract`` under the option names of kohya's extract_lora_from_models.py."""

    same: ClassVar[Mapping[str, str]] = _FILE_OUT
    answers: ClassVar[Mapping[str, str]] = {
        "--model-org": _EXTRACT,
        "--model-tuned": _EXTRACT,
        "--conv-dim": _CONV_RANK,
        "--v2": _KIND,
        "--sdxl": _KIND,
    }
