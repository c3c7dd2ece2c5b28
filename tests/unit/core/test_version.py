"""The version stands in one place."""

import tomllib
from importlib.metadata import version

import lorasmith
from helpers.paths import REPOSITORY
from lorasmith.core.version import VERSION

PROJECT = REPOSITORY / "pyproject.toml"


def test_package_and_its_metadata_have_the_version_of_the_module() -> None:
    assert "version" not in tomllib.loads(PROJECT.read_text())["project"]
    assert lorasmith.__version__ == VERSION
    assert version("lorasmith") == VERSION
