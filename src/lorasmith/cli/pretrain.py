"""``lorasmith pretrain``: the three parts of Stable Diffusion, and a report on them."""

from pathlib import Path
from typing import Annotated, Any

import typer

Config = Annotated[Path, typer.Argument(help="Settings of the run, a TOML file.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override one setting: section.key=value. May be repeated."),
]
From = Annotated[
    Path | None, typer.Option("--from", help="Start from the weights in this folder (a fine-tune).")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue from the newest checkpoint in loop.out.")
]


def register(app: typer.Typer) -> None:
    """Add the sub-commands."""
    pretrain = typer.Typer(
        help="Train the three parts of Stable Diffusion from scratch.", no_args_is_help=True
    )
    app.add_typer(pretrain, name="pretrain")
    pretrain.command("vae")(vae)
    pretrain.command("clip")(clip)
    pretrain.command("unet")(unet)


def vae(config: Config, sets: Sets = None, start: From = None, resume: Resume = False) -> None:
    """Train the autoencoder.

    Example: `lorasmith pretrain vae vae.toml --set loop.steps=2000`
    """
    from lorasmith.config.pretrain import VaeRun
    from lorasmith.pretraining.vae import pretrain_vae

    _run(VaeRun, pretrain_vae, config, sets, start, resume)


def clip(config: Config, sets: Sets = None, start: From = None, resume: Resume = False) -> None:
    """Train the text and image towers.

    Example: `lorasmith pretrain clip clip.toml --set loop.batch_size=512`
    """
    from lorasmith.config.pretrain import ClipRun
    from lorasmith.pretraining.clip import pretrain_clip

    _run(ClipRun, pretrain_clip, config, sets, start, resume)


def unet(config: Config, sets: Sets = None, start: From = None, resume: Resume = False) -> None:
    """Train the U-Net on the latents of a trained autoencoder.

    Example: `lorasmith pretrain unet unet.toml --from runs/unet-1 --set loop.out=runs/unet-2`
    """
    from lorasmith.config.pretrain import UnetRun
    from lorasmith.pretraining.unet import pretrain_unet

    _run(UnetRun, pretrain_unet, config, sets, start, resume)


def _run(
    kind: Any, train: Any, config: Path, sets: list[str] | None, start: Path | None, resume: bool
) -> None:
    from lorasmith.config.load import load_settings

    overrides = list(sets or [])
    if start is not None:
        overrides.append(f"loop.start_from={start}")
    out = train(load_settings(kind, config, overrides), resume)
    typer.echo(f"saved to {out}")
