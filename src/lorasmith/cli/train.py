"""``lorasmith train``: from a folder of captioned images to a LoRA file."""

from typing import TYPE_CHECKING, Annotated

import typer

from lorasmith.cli.download import Download, fetch
from lorasmith.cli.options import run as options
from lorasmith.cli.options.common import ModelPath
from lorasmith.cli.output import print_line, print_toml
from lorasmith.cli.settings_command import SettingsCommand

if TYPE_CHECKING:
    from lorasmith.config.features import FeaturesConfig
    from lorasmith.config.train_config import TrainConfig


OutName = Annotated[
    str | None,
    typer.Option(help="NAME writes loras/NAME.safetensors, some/path/NAME writes it there."),
]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("train", cls=SettingsCommand)(train)


def train(
    run: options.RunFile = None,
    data: options.Data = None,
    tag: options.Tag = None,
    out: OutName = None,
    model: ModelPath = None,
    preset: options.PresetName = None,
    steps: options.Steps = None,
    rank: options.Rank = None,
    resume: options.Resume = None,
    break_lock: options.BreakLock = False,
    sets: options.Sets = None,
    download: Download = False,
    print_config: options.PrintConfig = False,
) -> None:
    """Train a LoRA on a folder of captioned images.

    Writes NAME.safetensors in the key format that other programs read; the report, settings, log,
    previews and checkpoints go to the folder NAME beside it. Ctrl-C saves a checkpoint, and
    `--resume` with the same RUN.toml or `--out` continues.

    Any setting is an option, also under its name in kohya's scripts or diffusers
    (`--network_dim 8`).

    A RUN.toml with [[feature]] tables trains a LoRA for each, NAME-TAG.safetensors.

    Example: `lorasmith train --data pictures --tag inkmono --out inkmono --steps 300`
    """
    from lorasmith.config.features import FeaturesConfig, load_train_config
    from lorasmith.config.reading.load import dump_toml

    flags = {
        "data.path": data, "data.tag": tag, "output.name": out, "model.path": model,
        "train.steps": steps, "lora.rank": rank,
    }  # fmt: skip
    sources = options.collect_sources("train", run, flags, sets, preset, resume, print_config)
    settings = load_train_config(sources.file, sources.overrides, sources.base)
    if print_config:
        print_toml(dump_toml(settings))
        return
    if download:
        fetch(settings.model.path)
    if isinstance(settings, FeaturesConfig):
        _train_features(settings, resume, break_lock)
        return
    options.advise(preset, settings)
    _train_lora(settings, resume, break_lock)


def _train_lora(config: "TrainConfig", resume: str | None, break_lock: bool) -> None:
    from lorasmith.training.trainer import train as train_lora

    file = train_lora(config, resume, break_lock=break_lock)
    report = file.with_suffix("") / "report.html"
    print_line(f"{file} ({file.stat().st_size / 2**20:.1f} MiB), report in {report}")


def _train_features(settings: "FeaturesConfig", resume: str | None, break_lock: bool) -> None:
    from lorasmith.training.multi.features import train_features

    files = train_features(settings, resume, break_lock=break_lock)
    for file in files:
        print_line(f"{file} ({file.stat().st_size / 2**20:.1f} MiB)")
    print_line(f"all together: generate --library {files[0].parent}")
