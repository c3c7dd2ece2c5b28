"""Options of commands as overrides of settings."""

import json
from typing import Any


def as_overrides(flags: dict[str, Any]) -> list[str]:
    """Write the options that were given as ``key=value``, in TOML, so that "1" stays text."""
    given = {key: value for key, value in flags.items() if value is not None}
    return [
        f"{key}={value if isinstance(value, int) else json.dumps(str(value), ensure_ascii=False)}"
        for key, value in given.items()
    ]
