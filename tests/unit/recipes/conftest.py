"""The scripts of the emoji recipe are plain files that import each other by name."""

import sys
from pathlib import Path

_RECIPE = Path(__file__).parents[3] / "recipes" / "embedded_base" / "data"

# Appended, not put first: the recipe's `build.py` must not hide an installed package `build`.
if str(_RECIPE) not in sys.path:
    sys.path.append(str(_RECIPE))
