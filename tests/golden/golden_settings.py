"""Settings of the golden runs and images: every setting that their results depend on.

Nothing is left to a default, so that other defaults change no result. Names of settings stand here
and nowhere else in this folder.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

TAG, OTHER_TAG, CLASS = "curlyqx", "cookqz", "person"

SETTINGS: Mapping[str, Any] = {
    "data": {
        "path": "pictures",
        "tag": TAG,
        "class_word": CLASS,
        "bad_images": "stop",
        "resolution": 64,
        "buckets": True,
        "bucket_reso_steps": 32,
        "max_aspect_ratio": 2.0,
        "crop": "center",
        "flip_aug": False,
        "color_jitter": 0.0,
        "inpaint_masks": "file",
        "num_random_masks": 2,
        "aesthetic_score": 6.0,
        "background_color": "#ffffff",
        "shuffle_caption": False,
        "keep_tokens": 1,
        "caption_dropout_rate": 0.0,
        "max_token_length": 225,
        "num_repeats": 1,
        "validation_split": 0.0,
        "cache": True,
    },
    "output": {"name": "loras/golden"},
    "model": {"path": "model"},
    "lora": {
        "rank": 2,
        "alpha": 2.0,
        "rslora": False,
        "dropout": 0.0,
        "targets": ["attention@mid", "all-linear@up.1", "conv@down.1"],
        "overrides": [],
        "init": "gaussian",
        "gate": "prompt",
    },
    "train": {
        "steps": 3,
        "batch_size": 2,
        "gradient_accumulation_steps": 1,
        "optimizer": "adamw",
        # Large, so that the rounding error of a zero gradient moves no weight.
        "optimizer_args": {"betas": [0.9, 0.99], "eps": 1e-4},
        "learning_rate": 0.02,
        "text_encoder_lr": 0.01,
        "loraplus_lr_ratio": 1.0,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "lr_scheduler_min_lr_ratio": 0.1,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "ema_decay": 0.0,
        "mixed_precision": "fp32",
        "gradient_checkpointing": False,
        "fp8": False,
        "compile": "off",
        "device": "cpu",
        "seed": 3,
        "log_every_n_steps": 1,
        "checkpoint_every_n_steps": 100,
        "keep_checkpoints": 2,
        "loss": {
            "min_snr_gamma": 5.0,
            "noise_offset": 0.0,
            "zero_terminal_snr": False,
            "masked": False,
        },
    },
    "preserve": {"strength": 0.0, "every_n_steps": 4, "earlier_features_strength": 0.0},
    "validation": {"every_n_steps": 0, "prompts": []},
    "track": {"tensorboard": False, "wandb": False},
}
"""The settings of a run that is told nothing else."""

LOOKS: Mapping[str, Any] = {
    "every_n_steps": 2,
    "prompts": [f"a {TAG} person, sea"],
    "negative_prompt": "blurry",
    "num_inference_steps": 2,
    "guidance_scale": 4.0,
    "seed": 5,
    "size": "64x64",
    "loss_timesteps": 2,
    "loss_seed": 7,
}
"""``[validation]`` of runs that validate. How previews are sampled besides has no settings: their
sampler and clip skip are those that `generate` has by default."""

FEATURES: list[Mapping[str, Any]] = [
    {"tag": TAG, "class_word": CLASS, "data": "pictures"},
    {
        "tag": OTHER_TAG,
        "class_word": CLASS,
        "data": "others",
        "rank": 1,
        "alpha": 0.5,
        "learning_rate": 0.01,
        "targets": ["cross-attention@mid", "all-linear@up.1"],
    },
]
"""Two features; what is not said here is as in `SETTINGS`."""
NOT_OF_FEATURES = ("path", "tag", "class_word")
"""Keys of ``[data]`` that a run of several features has in its feature tables."""

CLASS_PICTURES: Mapping[str, Any] = {
    "reg_data_dir": "class",
    "reg_caption": "a person",
    "prior_loss_weight": 0.5,
}

ALL_SETTINGS: Mapping[str, Any] = {
    "data": {
        "path": "shapes", "validation_split": 0.3, "flip_aug": True, "color_jitter": 0.2,
        "crop": "random",
        "caption_dropout_rate": 0.2, "shuffle_caption": True, **CLASS_PICTURES,
    },
    "lora": {"dropout": 0.2},
    "train": {
        "steps": 4, "batch_size": 2, "gradient_accumulation_steps": 2,
        "loraplus_lr_ratio": 2.0, "lr_scheduler": "linear",
        "lr_warmup_steps": 1, "lr_scheduler_min_lr_ratio": 0.2, "max_grad_norm": 0.5,
        "ema_decay": 0.8, "checkpoint_every_n_steps": 2,
        "loss": {"min_snr_gamma": 3.0, "noise_offset": 0.1},
    },
    "preserve": {"strength": 0.5, "every_n_steps": 2},
    "validation": LOOKS,
}  # fmt: skip
"""All that could differ after a resume."""

Kind = Literal["train", "features", "sweep"]


@dataclass(frozen=True)
class Run:
    """One training: a kind of run, a family of tiny models, and settings other than `SETTINGS`."""

    family: str = "sd1"
    """As in `make_tiny`; empty for the model that ships with lorasmith."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    kind: Kind = "train"
    needs: str = ""
    """A package that it does not go without."""


def lora(**changes: Any) -> Mapping[str, Any]:
    return {"lora": changes}


def training(**changes: Any) -> Mapping[str, Any]:
    return {"train": changes}


RUNS: Mapping[str, Run] = {
    # Families
    "sd1": Run("sd1"),
    "sd2": Run("sd2"),
    "sdxl": Run("sdxl"),
    "sdxl-refiner": Run("sdxl-refiner"),
    "sd1-inpainting": Run("sd1-inpainting"),
    "sdxl-inpainting": Run(
        "sdxl-inpainting", {"data": {"inpaint_masks": "random", "num_random_masks": 0}}
    ),
    "embedded": Run("", {
        "data": {"resolution": 128, "bucket_reso_steps": 64},
        "model": {"path": None},
        "lora": {"rank": 1, "alpha": 1.0, "targets": "cross-attention@mid"},
        "train": {"steps": 2, "batch_size": 1},
    }),
    # Adapters
    "all-layers": Run(changes=lora(targets="all-linear+conv", rank=1, alpha=1.0)),
    "compensated": Run(changes=lora(init="compensated")),
    "pissa": Run(changes=lora(init="pissa")),
    "kaiming-rslora-dropout": Run(changes=lora(init="kaiming", rslora=True, dropout=0.2)),
    "parts": Run(changes={
        "lora": {"targets": "attention@mid", "overrides": [
            {"targets": "cross-attention@up.1", "rank": 3, "alpha": 1.5, "learning_rate": 0.01}]},
        "train": {"loraplus_lr_ratio": 4.0},
    }),
    "text-encoders": Run("sdxl", {
        "lora": {"targets": ["cross-attention@mid", "text-encoder"], "rank": 1, "alpha": 1.0},
        "train": {"ema_decay": 0.8},
    }),
    "token-gate": Run(changes=lora(gate="token")),
    "token-end-gate": Run("sdxl", lora(gate="token+end")),
    # Training
    "accumulated": Run(changes=training(batch_size=2, gradient_accumulation_steps=2)),
    "averaged": Run(changes=training(ema_decay=0.8)),
    "checkpointed": Run(changes=training(gradient_checkpointing=True)),
    "cosine-schedule": Run(changes=training(
        steps=4, lr_scheduler="cosine", lr_warmup_steps=0.5, max_grad_norm=0.1
    )),
    "loss": Run(changes={
        "data": {"path": "masked"},
        "train": {"loss": {"min_snr_gamma": 1.0, "noise_offset": 0.1, "masked": True}},
    }),
    "no-min-snr": Run(changes=training(loss={"min_snr_gamma": 0.0}, weight_decay=0.3)),
    "zero-terminal-snr": Run("sd2", training(loss={"zero_terminal_snr": True})),
    # Lion takes the sign of a gradient; those of the middle self-attention are rounding errors.
    "lion": Run(needs="pytorch_optimizer", changes={
        "lora": {"targets": "cross-attention@up.1"},
        "train": {"optimizer": "lion", "optimizer_args": {"betas": [0.9, 0.99]}, "steps": 2,
                  "learning_rate": 0.001},
    }),
    "prodigy": Run(needs="pytorch_optimizer", changes=training(
        optimizer="prodigy", optimizer_args={"betas": [0.9, 0.99], "safeguard_warmup": True,
                                             "eps": 1e-4},
        steps=3, learning_rate=1.0, text_encoder_lr=1.0)),
    # Images
    "class-pictures": Run(changes={"data": CLASS_PICTURES, "train": {"batch_size": 4}}),
    "preserved": Run(changes={"preserve": {"strength": 0.5, "every_n_steps": 2}}),
    "everything": Run(changes=ALL_SETTINGS),
    # Several LoRAs
    "staged": Run(kind="features", changes={
        "train": {"mode": "staged", "ema_decay": 0.8},
        "preserve": {"strength": 0.5, "every_n_steps": 2, "earlier_features_strength": 0.5},
    }),
    "joint": Run(kind="features", changes={
        "data": CLASS_PICTURES, "train": {"mode": "joint", "batch_size": 3}}),
    "sweep": Run(kind="sweep", changes={
        "data": {"validation_split": 0.3},
        "lora": {"targets": ["attention@mid", "conv@down.1"]},
        "validation": LOOKS,
        "vary": {"lora.rank": [1, 2], "train.learning_rate": [0.01, 0.02]},
        "max_parallel": 2,
    }),
}  # fmt: skip

# --- images -------------------------------------------------------------------------------------

SAMPLING: Mapping[str, Any] = {
    "negative_prompt": "blurry",
    "num_inference_steps": 4,
    "guidance_scale": 4.0,
    "width": 64,
    "height": 64,
    "sampler": "ddim",
    "clip_skip": 1,
    "guidance_rescale": 0.0,
    "batch_size": 2,
    "gate": True,
}
"""How a picture is drawn that is told nothing else."""
SEED, DEVICE = 3, "cpu"


@dataclass(frozen=True)
class Drawn:
    """One image: a prompt, a family of tiny models, and options other than `SAMPLING`."""

    prompt: str = f"a {TAG} person, sea"
    family: str = "sd1"
    image: bool = False
    mask: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


OF_A_PICTURE = {"strength": 0.75}
_PLAIN = f"a {TAG} person, sea"

DRAWN: Mapping[str, Drawn] = {
    "sd1": Drawn(),
    "sd2": Drawn(family="sd2"),
    "sdxl": Drawn(family="sdxl"),
    "sdxl-refiner": Drawn(family="sdxl-refiner", image=True, options=OF_A_PICTURE),
    "sd1-inpainting": Drawn(family="sd1-inpainting", image=True, mask=True, options=OF_A_PICTURE),
    "sdxl-inpainting": Drawn(family="sdxl-inpainting", image=True, mask=True, options={
        "strength": 1.0}),
    "image": Drawn(image=True, options={"strength": 0.5}),
    "embedded": Drawn("a red apple, noto style", family="", options={"width": 128, "height": 128}),
    "ddpm": Drawn(options={"sampler": "ddpm"}),
    "dpm++": Drawn(options={"sampler": "dpmpp_2m"}),
    "euler": Drawn(options={"sampler": "euler"}),
    "euler-a": Drawn(options={"sampler": "euler_a"}),
    "clip-skip": Drawn(options={"clip_skip": 2}),
    "rescaled-guidance": Drawn(options={"guidance_rescale": 0.7}),
    "no-guidance": Drawn(options={"guidance_scale": 1.0}),
    "wide": Drawn(options={"width": 128, "height": 64}),
    "emphasis": Drawn(f"a ({TAG} person:1.4), [sea]"),
    "lora": Drawn(f"{_PLAIN} <lora:plain:1>"),
    "weak-lora": Drawn(f"{_PLAIN} <lora:plain:0.5>"),
    "dora": Drawn(f"{_PLAIN} <lora:dora:1>"),
    "loha": Drawn(f"{_PLAIN} <lora:loha:1>"),
    "lokr": Drawn(f"{_PLAIN} <lora:lokr:1>"),
    "two-loras": Drawn(f"{_PLAIN} <lora:plain:0.7> <lora:lokr:-0.5>"),
    "some-steps": Drawn(f"{_PLAIN} <lora:plain:1:start=2:stop=3>"),
    "open-gate": Drawn(f"{_PLAIN} <lora:gated:1>"),
    "token-gate": Drawn(f"{_PLAIN} <lora:token:1>"),
    "token-end-gate": Drawn(f"{_PLAIN} <lora:token-end:1>"),
    "gate-left-open": Drawn("a person, sea <lora:gated:1>", options={"gate": False}),
    "sdxl-lora": Drawn(f"{_PLAIN} <lora:sdxl:1>", family="sdxl"),
}  # fmt: skip
