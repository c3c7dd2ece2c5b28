"""What a dataset folder or file holds, before any image is opened."""

from dataclasses import dataclass, field

from lorasmith.data.reading.problems import Problem, ProblemKind, ProblemSeverity
from lorasmith.data.reading.row import Row


@dataclass
class DatasetListing:
    """The rows of a dataset and the problems of its files."""

    rows: list[Row] = field(default_factory=list)
    """Captioned images that exist, in a stable order."""
    problems: list[Problem] = field(default_factory=list)
    image_count: int = 0
    """Images with and without captions."""

    def add_problem(
        self, file: str, kind: ProblemKind, detail: str, severity: ProblemSeverity = "error"
    ) -> None:
        self.problems.append(Problem(printable_name(file), kind, detail, severity))


def printable_name(name: str) -> str:
    """Return a file name as text that can be printed and written anywhere."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
