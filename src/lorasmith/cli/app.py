"""The command line's frame: sub-commands, one-line errors and warnings, exit codes.

0 is success, 1 an error, 2 wrong usage, 130 an interruption. The modules of this room import
heavy libraries inside their commands only, so that ``--help`` answers at once.
"""

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, TextIO

import typer
import typer.core

from lorasmith.cli import cache, check, demo, evaluate, generate, pretrain, report, sweep, train
from lorasmith.cli.lora import commands as lora
from lorasmith.cli.model import commands as model
from lorasmith.core.errors import LorasmithError, LorasmithWarning
from lorasmith.core.version import VERSION

# Newer typer carries its own click, older ones use the package; this is the right one of either.
ClickException: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


class _InterruptError(Exception):
    """Ctrl-C on its way past typer, which would turn KeyboardInterrupt into a silent exit."""


class _Commands(typer.core.TyperGroup):
    """The commands, with what an interruption has to say kept."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _InterruptError(str(error)) from error


app = typer.Typer(
    name="lorasmith",
    cls=_Commands,
    help="Teach Stable Diffusion new things with LoRA.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)
for room in (generate, check, train, sweep, report, evaluate, demo, pretrain, model, lora, cache):
    room.register(app)


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lorasmith {VERSION}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_tell_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Teach Stable Diffusion new things with LoRA."""
    # `run` takes --debug out of the arguments wherever it stands; it is declared for --help.


def main() -> None:
    """Entry point of the ``lorasmith`` script."""
    # Read when torch loads. OpenMP threads that spin for long while they wait for work make small
    # models ten times slower as soon as another process wants the same cores.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line in this process and return its exit status."""
    debug = "--debug" in arguments
    rest = [argument for argument in arguments if argument != "--debug"]
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        warnings.simplefilter("always", LorasmithWarning)
        return _guarded(rest, debug)


def _guarded(arguments: list[str], debug: bool) -> int:
    try:
        status = typer.main.get_command(app).main(
            arguments, prog_name="lorasmith", standalone_mode=False
        )
    except LorasmithError as error:
        return _fail(str(error), debug)
    except ClickException as error:
        error.show()
        return int(error.exit_code)
    except (KeyboardInterrupt, _InterruptError, typer.Abort) as error:
        _say(f"interrupted: {error}" if str(error) else "interrupted")
        return 130
    except MemoryError:
        return _fail("out of memory; use a smaller batch size or picture size", debug)
    except Exception as error:  # noqa: BLE001 (the last net: one line instead of a traceback)
        detail = str(error).strip().split("\n")[0]
        return _fail(f"unexpected {type(error).__name__}: {detail} (--debug shows where)", debug)
    return status if isinstance(status, int) else 0


def _fail(message: str, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    _say(f"error: {' '.join(message.split())}")
    return 1


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if issubclass(category, LorasmithWarning):
        _say(f"warning: {' '.join(str(message).split())}")


def _say(line: str) -> None:
    typer.echo(line, err=True)
