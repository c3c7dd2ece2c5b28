"""The ``lorasmith`` command."""

from lorasmith.cli.app import main, run

__all__ = ["main", "run"]
