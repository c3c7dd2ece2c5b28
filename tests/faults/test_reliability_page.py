"""docs/reliability.md names tests and scripts that exist."""

import re
from collections.abc import Iterator

import pytest

from helpers.paths import REPOSITORY

HEADINGS = ("Work that is lost", "Wrong results", "Hostile or broken input", "Load")
PAGE = (REPOSITORY / "docs" / "reliability.md").read_text(encoding="utf-8")


def rows(heading: str) -> Iterator[tuple[str, str]]:
    """Yield ``(promise, tests)`` of every row of the table under a heading."""
    table = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    for line in table.splitlines():
        if line.startswith("|") and not line.startswith(("|---", "| promised")):
            cells = [cell.strip() for cell in line.strip("|").split(" |")]
            assert len(cells) == 3, line
            yield cells[0], cells[1]


ROWS = [(heading, *row) for heading in HEADINGS for row in rows(heading)]


@pytest.mark.parametrize("heading", HEADINGS)
def test_every_heading_has_promises(heading: str) -> None:
    assert [promise for kind, promise, _ in ROWS if kind == heading]


@pytest.mark.parametrize(("heading", "promise", "tests"), ROWS)
def test_each_promise_names_tests_that_exist(heading: str, promise: str, tests: str) -> None:
    names = re.findall(r"`([^`]+)`", tests)
    assert names, promise
    for name in names:
        file, _, test = name.partition("::")
        if not test:
            assert (REPOSITORY / file).is_file(), name
            continue
        # By the file's name alone: a test may move to another folder.
        files = list((REPOSITORY / "tests").rglob(file))
        assert len(files) == 1, f"{name}: {len(files)} files of this name"
        assert f"def {test}(" in files[0].read_text(encoding="utf-8"), name
