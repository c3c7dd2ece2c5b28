"""``lorasmith pretrain``: the three parts of Stable Diffusion, and a report on them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lorasmith.cli.options.run import BreakLock
from lorasmith.cli.output import print_line

Config = Annotated[Path, typer.Argument(help="Settings of the run, a TOML file.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override one setting: section.key=value. May be repeated."),
]
From = Annotated[
    Path | None, typer.Option("--from", help="Start from the weights in this folder (a fine-tune).")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue from the newest checkpoint in train.output_dir.")
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
    pretrain.command("report")(report)


def vae(
    config: Config,
    sets: Sets = None,
    start: From = None,
    resume: Resume = False,
    break_lock: BreakLock = False,
) -> None:
    """Train the autoencoder.

    Example: `lorasmith pretrain vae vae.toml --set train.steps=2000`
    """
    from lorasmith.config.pretrain import VaePretrainConfig
    from lorasmith.pretraining.vae import pretrain_vae

    _run(VaePretrainConfig, pretrain_vae, config, sets, start, resume, break_lock)


def clip(
    config: Config,
    sets: Sets = None,
    start: From = None,
    resume: Resume = False,
    break_lock: BreakLock = False,
) -> None:
    """Train the text and image encoders.

    Example: `lorasmith pretrain clip clip.toml --set train.batch_size=512`
    """
    from lorasmith.config.pretrain import ClipPretrainConfig
    from lorasmith.pretraining.clip import pretrain_clip

    _run(ClipPretrainConfig, pretrain_clip, config, sets, start, resume, break_lock)


def unet(
    config: Config,
    sets: Sets = None,
    start: From = None,
    resume: Resume = False,
    break_lock: BreakLock = False,
) -> None:
    """Train the U-Net on the latents of a trained autoencoder.

    Example: `lorasmith pretrain unet unet.toml --from runs/unet --set train.output_dir=runs/unet-2`
    """
    from lorasmith.config.pretrain import UnetPretrainConfig
    from lorasmith.pretraining.unet import pretrain_unet

    _run(UnetPretrainConfig, pretrain_unet, config, sets, start, resume, break_lock)


def report(
    config: Config,
    model: Annotated[
        Path | None,
        typer.Option("-m", "--model", help="Model folder; the embedded one if left out."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", help="The Markdown file; sheets go beside it.")
    ] = Path("RESULTS.md"),
    vaes: Annotated[
        list[str] | None, typer.Option("--vae", help="NAME=FOLDER: also measure FOLDER/vae.")
    ] = None,
    unets: Annotated[
        list[str] | None, typer.Option("--unet", help="NAME=FOLDER: also generate with this U-Net.")
    ] = None,
    table: Annotated[
        list[str] | None,
        typer.Option(
            "--table", help="NAME=FOLDER: a short VAE run for the table of architectures."
        ),
    ] = None,
    append: Annotated[
        Path | None, typer.Option("--append", help="A Markdown file to put at the end.")
    ] = None,
    sets: Sets = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Measure a base model and generate its contact sheets. CONFIG is the U-Net's settings file.

    Example: `lorasmith pretrain report unet.toml --model runs/unet --out runs/RESULTS.md`
    """
    from lorasmith.config.pretrain import UnetPretrainConfig
    from lorasmith.config.reading.load import load_config
    from lorasmith.pretraining.report import ComparedNetworks
    from lorasmith.pretraining.report import write_report as write_report

    run = load_config(UnetPretrainConfig, config, sets or [])
    compared = ComparedNetworks(_named(vaes), _named(unets), _named(table), append)
    written = write_report(run, model, out, compared, device)
    print_line(f"wrote {written} and its sheets")


def _named(pairs: list[str] | None) -> dict[str, Path]:
    named = {}
    for pair in pairs or []:
        name, equals, folder = pair.partition("=")
        if not equals or not name or not folder:
            raise typer.BadParameter(f"{pair!r}: write it as NAME=FOLDER")
        named[name] = Path(folder)
    return named


def _run(
    kind: Any,
    train: Any,
    config: Path,
    sets: list[str] | None,
    start: Path | None,
    resume: bool,
    break_lock: bool,
) -> None:
    from lorasmith.config.reading.load import load_config

    overrides = list(sets or [])
    if start is not None:
        overrides.append(f"train.start_from={start}")
    out = train(load_config(kind, config, overrides), resume, break_lock)
    print_line(f"saved to {out}")
