"""The scripts of the emoji recipe are plain files that import each other by name."""

import sys

from helpers.paths import EMBEDDED_RECIPE

_SCRIPTS = EMBEDDED_RECIPE / "data"

# Appended, not put first: the recipe's `build.py` must not hide an installed package `build`.
if str(_SCRIPTS) not in sys.path:
    sys.path.append(str(_SCRIPTS))
