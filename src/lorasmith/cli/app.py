"""The command line's frame: sub-commands, one-line errors and warnings, exit codes.

0 is success, 1 an error, 2 wrong usage; 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP. The modules of this
package import heavy libraries inside their commands only, so that ``--help`` answers at once.
"""

import io
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, TextIO

import typer
import typer.core

from lorasmith.cli import cache, check, classify, evaluate, generate, pretrain, report, sweep, train
from lorasmith.cli.demo import command as demo
from lorasmith.cli.log_handler import log_to_terminal
from lorasmith.cli.lora import commands as lora
from lorasmith.cli.model import commands as model
from lorasmith.cli.options.usage_errors import explain_usage_error
from lorasmith.cli.output import print_error, print_error_block, print_line
from lorasmith.core.errors import ConfigError, LorasmithError, LorasmithWarning
from lorasmith.core.signals import exit_status, raise_on_termination
from lorasmith.core.text.terminal import shorten
from lorasmith.core.version import VERSION

# Newer typer carries its own click, older ones use the package; this is the right one of either.
ClickException: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

_LONGEST_ARGUMENT = 200


class _InterruptError(Exception):
    """Ctrl-C on its way past typer, which would turn KeyboardInterrupt into a silent exit."""

    def __init__(self, error: KeyboardInterrupt) -> None:
        super().__init__(str(error))
        self.signal_number = exit_status(error) - 128


class _Commands(typer.core.TyperGroup):
    """The commands, keeping the message of an interruption."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _InterruptError(error) from error


app = typer.Typer(
    name="lorasmith",
    cls=_Commands,
    help="Train, evaluate, merge and use Stable Diffusion LoRAs.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)
for module in (
    generate, check, train, sweep, report, evaluate, classify, demo, pretrain, model, lora, cache,
):  # fmt: skip
    module.register(app)


def _print_version(is_requested: bool) -> None:
    if is_requested:
        print_line(f"lorasmith {VERSION}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Train, evaluate, merge and use Stable Diffusion LoRAs."""
    # `run` takes --debug out of the arguments wherever it stands; it is declared for --help.


def main() -> None:
    """Entry point of the ``lorasmith`` script."""
    # Read when torch loads. OpenMP threads that spin for long while they wait for work make small
    # models ten times slower as soon as another process wants the same cores.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name must not end a command
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line in this process and return its exit status."""
    _forbid_hub_kernels()
    debug = "--debug" in arguments
    arguments = [_with_dashes(argument) for argument in arguments if argument != "--debug"]
    with log_to_terminal(), warnings.catch_warnings(), raise_on_termination():
        warnings.showwarning = _show_warning
        warnings.simplefilter("always", LorasmithWarning)
        return _run_guarded(arguments, debug)


def _forbid_hub_kernels() -> None:
    """Let libraries find no package ``kernels``, which fetches native code from a hub.

    bitsandbytes asks it for a kernel as soon as it is imported, on processors with AVX512-BF16.
    """
    if "kernels" not in sys.modules:
        sys.modules["kernels"] = None  # type: ignore[assignment]  # its import fails


def _with_dashes(argument: str) -> str:
    """Return an option as click has it: ``--guidance_scale`` is ``--guidance-scale``."""
    name, equals, value = argument.partition("=")
    is_option = name.startswith("--") and name[2:].replace("_", "").isalnum()
    return f"{name.replace('_', '-')}{equals}{value}" if is_option else argument


def _run_guarded(arguments: list[str], debug: bool) -> int:
    try:
        _check_arguments(arguments)
        status = typer.main.get_command(app).main(
            arguments, prog_name="lorasmith", standalone_mode=False
        )
    except LorasmithError as error:
        return _fail(str(error), error, debug)
    except ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
        else:
            print_error(f"error: {explain_usage_error(error)}")
        return int(error.exit_code)
    except (KeyboardInterrupt, _InterruptError, typer.Abort) as error:
        print_error(f"interrupted: {error}" if str(error) else "interrupted")
        return exit_status(error)
    except MemoryError as error:
        message = "out of memory; use a smaller batch size or image size"
        return _fail(message, error, debug)
    except OSError as error:
        return _fail(_describe_os_error(error), error, debug)
    except RuntimeError as error:
        return _fail(_describe_runtime_error(error, arguments), error, debug)
    except Exception as error:  # noqa: BLE001 (one line instead of a traceback)
        return _fail(_describe_unexpected_error(error), error, debug)
    return status if isinstance(status, int) else 0


def _check_arguments(arguments: Sequence[str]) -> None:
    """Refuse bytes of another encoding and NUL, which neither files nor texts can hold.

    Raises:
        ConfigError: an argument has them.
    """
    for argument in arguments:
        shown = shorten(repr(argument), _LONGEST_ARGUMENT)
        if "\0" in argument:
            raise ConfigError(f"{shown}: an argument has no NUL character")
        try:
            argument.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"{shown}: the argument is not valid UTF-8 text; a file of such a name must be "
                "renamed"
            ) from error


def _describe_os_error(error: OSError) -> str:
    """Return what the system refused, with the file's name."""
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename else reason


def _describe_runtime_error(error: RuntimeError, arguments: Sequence[str]) -> str:
    """Return what pathlib means by a home folder that it does not find, with the path."""
    path = next((argument for argument in arguments if argument.startswith("~")), None)
    if path is not None and "home directory" in str(error):
        return f"{path}: there is no home folder of that user"
    return _describe_unexpected_error(error)


def _describe_unexpected_error(error: Exception) -> str:
    detail = str(error).strip().split("\n")[0]
    return f"unexpected {type(error).__name__}: {detail} (--debug shows where)"


def _fail(message: str, error: Exception, debug: bool) -> int:
    """Print an error with what was noted about it on its way, such as how to resume."""
    if debug:
        print_error_block(traceback.format_exc())
    print_error("; ".join([f"error: {message}", *getattr(error, "__notes__", ())]))
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
        print_error(f"warning: {message}")
