"""``lorasmith lora``: the commands about LoRA files."""

import typer

from lorasmith.cli.lora import ablate, diff, edit, fuse, info, project


def register(app: typer.Typer) -> None:
    """Add the ``lora`` commands to the application."""
    group = typer.Typer(
        help="Inspect LoRA files, convert, merge, resize and fuse them.", no_args_is_help=True
    )
    for module in (info, fuse, edit, diff, ablate, project):
        module.register(group)
    app.add_typer(group, name="lora")
