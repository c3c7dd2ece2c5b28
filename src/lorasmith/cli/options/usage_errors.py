"""Wrong usage of the command line in one line, as all other errors."""

from typing import Any

from lorasmith.core.errors import did_you_mean


def explain_usage_error(error: Any) -> str:
    """Return what is wrong with a command line, and what to do, in one line.

    Args:
        error: click's exception. Typer has a copy of click or uses the package, so its class is
            told by its name.
    """
    command = error.ctx.command_path if getattr(error, "ctx", None) is not None else "lorasmith"
    listed = f"{command} --help lists what there is"
    kind = type(error).__name__
    if kind == "NoSuchOption":
        known = [option for param in error.ctx.command.params for option in _options(param)]
        hint = did_you_mean(error.option_name, known, limit=2) or f"; {listed}"
        return f"{error.option_name}: {command} has no such option{hint}"
    if kind == "MissingParameter" and error.param is not None:
        return f"{command} needs {_label(error.param)}; {listed}"
    if kind == "BadParameter" and error.param is not None:
        message = error.message.removeprefix("Value error, ").rstrip(".")
        return f"{_label(error.param)}: {message[:1].lower()}{message[1:]}"
    message = error.format_message().rstrip(".")
    message = f"{message[:1].lower()}{message[1:]}"
    if ". Did you mean" in message:
        return message.replace(". Did", "; did")
    return f"{message}; {listed}"


def _options(param: Any) -> list[str]:
    """Return the names of an option; an argument has none."""
    if param.param_type_name != "option":
        return []
    return [*param.opts, *param.secondary_opts]


def _label(param: Any) -> str:
    """Return a parameter as a user writes it: ``--steps``, ``PROMPT``."""
    options = _options(param)
    return options[0] if options else str(param.metavar or param.name.upper())
