import tomllib
from pathlib import Path

import lorasmith
from lorasmith.core.version import VERSION

PROJECT = Path(__file__).parents[3] / "pyproject.toml"


def test_the_version_is_the_same_everywhere() -> None:
    assert tomllib.loads(PROJECT.read_text())["project"]["version"] == VERSION
    assert lorasmith.__version__ == VERSION
