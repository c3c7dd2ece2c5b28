"""Paths inside the repository."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
EMBEDDED_RECIPE = REPOSITORY / "recipes" / "embedded_base"
MERGES_FILE = EMBEDDED_RECIPE / "tokenizer" / "merges.txt"
