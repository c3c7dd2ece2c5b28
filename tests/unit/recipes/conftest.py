"""The scripts of the emoji recipe are plain files that import each other by name."""

import sys

from helpers.paths import EMBEDDED_RECIPE

# Appended, not put first: the recipe's `build.py` must not hide an installed package `build`.
for _scripts in (EMBEDDED_RECIPE / "data", EMBEDDED_RECIPE / "world"):
    if str(_scripts) not in sys.path:
        sys.path.append(str(_scripts))
