"""Write the reference pages that follow from the code: settings.md and cli.md.

    python docs/generate.py

A test compares the pages with what this returns, so they cannot fall behind.
"""

import inspect
import json
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic.fields import FieldInfo

from lorasmith.config.base import BaseConfig, RegisteredName
from lorasmith.config.features import FeaturesConfig
from lorasmith.config.fields import list_fields
from lorasmith.config.pretrain import ClipPretrainConfig, UnetPretrainConfig, VaePretrainConfig
from lorasmith.config.train_config import TrainConfig

HERE = Path(__file__).parent
NOTE = "Written by `docs/generate.py` from the code; edit the docstrings there, not this page."
RUNS: Mapping[str, type[BaseConfig]] = {
    "lorasmith train": TrainConfig,
    "lorasmith train with features": FeaturesConfig,
    "lorasmith pretrain clip": ClipPretrainConfig,
    "lorasmith pretrain vae": VaePretrainConfig,
    "lorasmith pretrain unet": UnetPretrainConfig,
}


def main() -> None:
    """Write both pages."""
    for name, text in pages().items():
        (HERE / name).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """Return the pages by file name."""
    return {"settings.md": settings_page(), "cli.md": cli_page()}


# --- settings -----------------------------------------------------------------------------------


def settings_page() -> str:
    """Return the tables of all settings, sections that several commands share told once."""
    shared = [kind for kind in _sections() if len(_owners(kind)) > 1]
    lines = [
        "# Settings", "", NOTE, "",
        "A settings file is TOML; every section and key below can also be given as "
        "`--set section.key=value`. Unknown keys are errors that name close matches.", "",
    ]  # fmt: skip
    for command, run in RUNS.items():
        lines += [f"## {command}", "", _doc(run), ""]
        lines += _tables(run, shared)
    lines += ["## Sections that several commands share", ""]
    for kind in shared:
        owners = ", ".join(f"`{command}`" for command in _owners(kind))
        lines += [f"### [{_name(kind)}]", "", f"{_doc(kind)} Of {owners}.", ""]
        lines += _table(kind)
    lines += ["## Entries of lists", ""]
    for kind in _entries():
        lines += [f"### {kind.__name__}", "", _doc(kind), "", *_table(kind)]
        for name, section in _subsections(kind):
            meaning = kind.model_fields[name].description or ""
            lines += [f"`{name}`: {_cell(meaning)}", ""]
            lines += [f"### {section.__name__}", "", _doc(section), "", *_table(section)]
    return "\n".join(lines).rstrip() + "\n"


def _tables(run: type[BaseConfig], shared: list[type[BaseConfig]]) -> list[str]:
    lines = _table(run)
    for name, section in _subsections(run):
        if section in shared:
            lines += [f"`[{name}]`: see [below]({_anchor(name)}).", ""]
        else:
            lines += [f"### [{name}] of {_command(run)}", "", _doc(section), "", *_table(section)]
            for inner, part in _subsections(section):
                title = f"#### [{name}.{inner}] of {_command(run)}"
                lines += [title, "", _doc(part), "", *_table(part)]
    return lines


def _table(kind: type[BaseConfig]) -> list[str]:
    """Return the table of a class's own fields; those of its sections have their own."""
    own = [row for row in list_fields(kind) if "." not in row[0]]
    if not own:
        return []
    fields = {field.alias or name: field for name, field in kind.model_fields.items()}
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for name, default, meaning in own:
        field = fields[name]
        shown = "required" if field.is_required() else _value(default)
        lines.append(f"| `{name}` | {_kind(field)} | {shown} | {_cell(meaning)} |")
    return [*lines, ""]


def _subsections(kind: type[BaseConfig]) -> Iterator[tuple[str, type[BaseConfig]]]:
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseConfig):
            yield name, field.annotation


def _sections() -> list[type[BaseConfig]]:
    return list(dict.fromkeys(s for run in RUNS.values() for _, s in _subsections(run)))


def _owners(kind: type[BaseConfig]) -> list[str]:
    return [c for c, run in RUNS.items() if kind in dict(_subsections(run)).values()]


def _entries() -> list[type[BaseConfig]]:
    """Return the classes that stand in lists (``[[stages]]``), in the order they are met."""
    found: dict[type[BaseConfig], None] = {}
    queue: list[type[BaseConfig]] = [*RUNS.values()]
    while queue:
        kind = queue.pop(0)
        queue += [section for _, section in _subsections(kind)]
        for field in kind.model_fields.values():
            entry = _entry_of(field.annotation)
            if entry is not None and entry not in found:
                found[entry] = None
                queue.append(entry)
    return list(found)


def _entry_of(annotation: Any) -> type[BaseConfig] | None:
    inner = typing.get_args(annotation)
    if typing.get_origin(annotation) in (list, tuple) and isinstance(inner[0], type):
        return inner[0] if issubclass(inner[0], BaseConfig) else None
    return None


def _name(kind: type[BaseConfig]) -> str:
    return next(name for run in RUNS.values() for name, s in _subsections(run) if s is kind)


def _command(run: type[BaseConfig]) -> str:
    return next(command for command, kind in RUNS.items() if kind is run)


def _anchor(name: str) -> str:
    return f"#{name}"


def _doc(kind: type[BaseConfig]) -> str:
    return " ".join((inspect.getdoc(kind) or "").split())


def _kind(field: FieldInfo) -> str:
    """Return what may stand there, with its bounds, in words."""
    for rule in field.metadata:
        if isinstance(rule, RegisteredName):
            return ", ".join(f"`{name}`" for name in rule.registry.names())
    bounds = [text for text in map(_bound, field.metadata) if text]
    return _cell(" ".join([_type(field.annotation), *bounds]))


def _bound(rule: Any) -> str:
    for attribute, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
        if hasattr(rule, attribute):
            value = getattr(rule, attribute)
            return f"{sign} {'2^63' if value == 2**63 else format(value, 'g')}"
    return ""


def _type(annotation: Any) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin is typing.Annotated:
        field = FieldInfo.from_annotation(annotation)
        return _kind(field) if field.annotation is not annotation else _type(inner[0])
    if origin in (list, tuple):
        entry = _entry_of(annotation)
        if entry is not None:
            return f"list of [{entry.__name__}](#{entry.__name__.lower()})"
        return f"list of {_type(inner[0])}"
    if origin in (typing.Union, types.UnionType):
        silent = {type(None), int if float in inner else None}  # "number" speaks for whole ones
        return " or ".join(_type(one) for one in inner if one not in silent)
    if origin is dict:
        return "table"
    names = {int: "integer", float: "number", str: "text", bool: "true or false", Path: "path"}
    return names[annotation]


def _value(default: Any) -> str:
    if default is None:
        return "none"
    return f"`{json.dumps(default, ensure_ascii=False, default=str)}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# --- commands -----------------------------------------------------------------------------------


def cli_page() -> str:
    """Return every command with its arguments and options."""
    lines = [
        "# Commands", "", NOTE, "",
        "Every command answers `--help`. `--debug` shows the traceback of an error. Exit status: "
        "0 success, 1 an error (one line says which), 2 wrong usage, 130 interrupted.", "",
    ]  # fmt: skip
    for path, command in leaf_commands():
        name = " ".join(["lorasmith", *path])
        lines += [f"## {name}", "", inspect.cleandoc(command.help or ""), ""]
        lines += ["| option | meaning | default |", "|---|---|---|"]
        lines += [_parameter(p) for p in command.params if p.name != "help"]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def leaf_commands() -> list[tuple[tuple[str, ...], Any]]:
    """Return ``(path, click command)`` of every command that does something itself."""
    import typer

    from lorasmith.cli.app import app

    def walk(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        inner = getattr(command, "commands", None)
        if inner is None:
            yield path, command
        else:
            for name, one in inner.items():
                yield from walk(one, (*path, name))

    return list(walk(typer.main.get_command(app), ()))


def _parameter(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        shown = f"`{(parameter.metavar or parameter.name).upper().strip('[]')}`"
    else:
        shown = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
    return f"| {shown} | {_cell(getattr(parameter, 'help', None) or '')} | {_default(parameter)} |"


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    told = getattr(parameter, "show_default", None)
    if isinstance(told, str):
        return told
    default = parameter.default
    shown = isinstance(default, int | float | str | Path) and default is not False and default != ""
    return f"`{default}`" if shown else ""


if __name__ == "__main__":
    main()
