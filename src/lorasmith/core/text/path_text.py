"""Texts that cannot be paths."""

import unicodedata
from pathlib import Path

MAX_NAME_BYTES = 255
"""Longest name of a file or folder on common file systems."""
MAX_PATH_BYTES = 4096
"""Longest path on Linux."""

_ESCAPES = {"\a": r"\a", "\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t"}


def describe_path_problem(text: str) -> str | None:
    r"""Return why a text cannot be a path, None if it can.

    ``"D:\new"`` in a settings file is such a text: in double quotes ``\n`` is a line break.
    """
    if not text.strip():
        return "the path is empty"
    if "\0" in text:
        return "a path has no NUL character"
    control = next((char for char in text if unicodedata.category(char) == "Cc"), None)
    if control is not None:
        escape = _ESCAPES.get(control, f"\\x{ord(control):02x}")
        return (
            f"the path has a control character ({escape}); in double quotes a backslash begins "
            r"such a character: write 'D:\new' in single quotes, or D:/new"
        )
    try:
        length = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        return "the path is not valid UTF-8 text; rename the file or folder"
    longest = max(len(name.encode("utf-8")) for name in text.replace("\\", "/").split("/"))
    if longest > MAX_NAME_BYTES:
        return f"a name in the path has {longest:,} bytes; file systems take {MAX_NAME_BYTES}"
    if length > MAX_PATH_BYTES:
        return f"the path has {length:,} bytes; {MAX_PATH_BYTES:,} are the most"
    return None


def expand_user(path: Path) -> Path:
    """Return a path with ``~`` replaced by the user's home folder.

    Raises:
        ValueError: it cannot be a path, or there is no such user.
    """
    problem = describe_path_problem(str(path))
    if problem is not None:
        raise ValueError(problem)
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path.parts[0]} is no user's home folder here") from error
