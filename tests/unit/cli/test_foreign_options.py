"""Options of other programs are taken, or answered in one line."""

from collections.abc import Iterator
from typing import Any

import pytest
import typer

from lorasmith.cli import run
from lorasmith.cli.app import app
from lorasmith.cli.options.foreign import ForeignOptionsCommand


def foreign_commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from foreign_commands(command, (*path, name))
        elif isinstance(command, ForeignOptionsCommand):
            yield " ".join((*path, name)), command


COMMANDS = dict(foreign_commands(typer.main.get_command(app)))


@pytest.mark.parametrize("name", COMMANDS)
def test_tables_fit_the_options_of_the_command(name: str) -> None:
    command = COMMANDS[name]
    options = {option for param in command.params for option in param.opts}
    assert set(command.same.values()) <= options
    assert not options & (set(command.same) | set(command.answers))
    assert not set(command.same) & set(command.answers)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("evaluate --lora ink", "--lora: it stands without an option: lorasmith evaluate "
         "loras/inkmono.safetensors"),
        ("evaluate ink --resolution 512", "--resolution: give --size WIDTHxHEIGHT, such as --size "
         "512x768"),
        ("lora merge --models a b", "--models: files stand without an option, each with its "
         "weight: lorasmith lora merge first.safetensors:0.7 second.safetensors:0.3 --out "
         "sum.safetensors"),
        ("lora resize a --dynamic_method=sv_fro", "--dynamic_method: give --energy, the share of "
         "the squared norm to keep: sv_fro 0.9 is --energy 0.81"),
        ("lora extract --model_org a", "--model_org: the models stand without an option, the tuned "
         "one first: lorasmith lora extract TUNED BASE --rank 8 --out NEW"),
        ("lora merge nofile --save_to x.safetensors --save_precision float",
         "--precision: 'float' is not one of 'fp32', 'fp16', 'bf16'"),
        ("lora merge nofile --save_to x.safetensors --save_precision=float16",
         "nofile: no such weights file"),
    ],
)  # fmt: skip
def test_option_of_another_program_is_taken_or_answered(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments.split()) in (1, 2)
    assert capsys.readouterr().err == f"error: {message}\n"
