"""Files that cannot be used, or not as they were meant."""

from collections.abc import Iterator

from lorasmith.data.rules.facts import DatasetFacts, Finding
from lorasmith.data.scan.problems import KIND_DESCRIPTIONS, group_by_kind


def report_file_problems(facts: DatasetFacts) -> Iterator[Finding]:
    """Tell the problems of the scan, kind by kind."""
    scan = facts.scan
    for kind, group in group_by_kind([*scan.errors, *scan.warnings]).items():
        first = group[0]
        several = len(group) > 1 or kind == "no-caption"
        of_all = f" of {scan.image_count}" if kind == "no-caption" else ""
        message = (
            f"{len(group)}{of_all} {KIND_DESCRIPTIONS[kind]}; {first.file}: {first.detail}"
            if several
            else f"{first.file}: {first.detail}"
        )
        yield Finding(kind, first.severity, message, tuple(problem.file for problem in group))
