"""Rule: files that cannot be used, or not as they were meant."""

from collections.abc import Iterator

from lorasmith.data.reading.problems import KIND_DESCRIPTIONS, group_by_kind
from lorasmith.data.rules.facts import DatasetFacts, Finding


def report_file_problems(facts: DatasetFacts) -> Iterator[Finding]:
    """Report the problems of the scan, one finding for each kind; the kind is the rule's name."""
    scan = facts.scan
    for kind, group in group_by_kind([*scan.errors, *scan.warnings]).items():
        first = group[0]
        message = f"{first.file}: {first.detail}"
        if kind == "no-caption":
            message = f"{len(group)} of {scan.image_count} {KIND_DESCRIPTIONS[kind]}; {message}"
        elif len(group) > 1:
            message = f"{len(group)} {KIND_DESCRIPTIONS[kind]}; {message}"
        yield Finding(kind, first.severity, message, tuple(problem.file for problem in group))
