"""Reading what a pretraining recorded of its images."""

from pathlib import Path


def read_manifest(path: Path) -> dict[str, str]:
    """Read a manifest back as ``{key: sha256}``."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return {key: digest for key, _, digest in (line.rpartition("\t") for line in lines if line)}
