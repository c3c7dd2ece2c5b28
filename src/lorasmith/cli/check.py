"""``lorasmith check``: the preflight of a dataset."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorasmith.cli.options.common import AsJson, ModelPath
from lorasmith.cli.options.overrides import as_overrides
from lorasmith.cli.output import print_json
from lorasmith.cli.settings_command import SettingsCommand
from lorasmith.core.errors import ConfigError, DataError
from lorasmith.core.text.console import open_console

if TYPE_CHECKING:
    from lorasmith.data.rules.facts import Finding
    from lorasmith.evaluation.checks.dataset import DatasetReport
    from lorasmith.evaluation.checks.features import FeaturesReport

_FILE_WIDTH = 120
_FILES_SHOWN = 4
_SIZES_SHOWN = 3
_STYLES = {"error": "bold red", "warning": "yellow", "advice": "cyan"}


Data = Annotated[
    Path,
    typer.Argument(
        metavar="DIR|RUN.toml",
        help="A folder of captioned images, a packed tar, or the settings of a run.",
    ),
]
Tag = Annotated[str | None, typer.Option(help="The trigger word (tag); checks the captions.")]
Resolution = Annotated[
    int | None,
    typer.Option(help="Side of square training images.", show_default="the model's"),
]
Caption = Annotated[
    str | None, typer.Option(help="Caption of images that have none, as class images may.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="A setting as `train` takes it: data.max_aspect_ratio=3. Repeatable."
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("check", cls=SettingsCommand)(check)


def check(
    data: Data,
    tag: Tag = None,
    resolution: Resolution = None,
    model: ModelPath = None,
    caption: Caption = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Check a dataset before training on it.

    Lists the sizes that images get in training, files that cannot be used, captions without the
    tag, duplicate images, and what would make the dataset better. The folder is only read. Errors
    stop training and exit 1; warnings and advice do not.

    Example: `lorasmith check pictures --tag inkmono`
    """
    from lorasmith.evaluation.api import is_settings_file, make_data_config
    from lorasmith.evaluation.checks.dataset import check_dataset as check_data
    from lorasmith.loops.progress import progress_bar

    if is_settings_file(data):
        if tag is not None or caption is not None:
            raise ConfigError("--tag and --caption go with a folder; RUN.toml says what they are")
        more = {"data.resolution": resolution, "model.path": model}
        _check_run(data, [*as_overrides(more), *(sets or [])], as_json)
        return
    settings = make_data_config(data, tag, {"resolution": resolution}, tuple(sets or ()))
    report = check_data(settings, tag is None, model, caption, progress_bar)
    _tell(report, data, as_json)


def _tell(report: "DatasetReport", data: Path, as_json: bool) -> None:
    if as_json:
        print_json(report.to_dict())
    else:
        show(report, _console())
    if report.errors:
        raise DataError(
            f"{data}: {', '.join(finding.rule for finding in report.errors)}; "
            f"{len(report.facts.scan.rows)} of {report.facts.scan.image_count} images can be used"
        )


def _check_run(file: Path, overrides: list[str], as_json: bool) -> None:
    """Check the images of a run."""
    from lorasmith.config.features import FeaturesConfig, load_train_config
    from lorasmith.evaluation.checks.dataset import check_dataset as check_data
    from lorasmith.evaluation.checks.features import check_features
    from lorasmith.loops.progress import progress_bar

    run = load_train_config(file.expanduser(), overrides)
    if not isinstance(run, FeaturesConfig):
        report = check_data(run.data, False, run.model.path, None, progress_bar)
        _tell(report, run.data.path, as_json)
        return
    result = check_features(run, progress_bar)
    if as_json:
        print_json(result.to_dict())
    else:
        show_features(result, _console())
    if result.errors:
        raise DataError(f"{file}: {', '.join(result.errors)}; the findings above say what to do")


def show_features(result: "FeaturesReport", console: Console) -> None:
    """Print the report on several features for people."""
    for tag, report in result.reports.items():
        console.rule(Text(f"{tag}  ({' '.join(result.tokens[tag])})"), align="left")
        show(report, console)
    console.rule("side by side", align="left")
    if result.findings:
        console.print(_findings(result.findings))
    else:
        console.print("The features are kept apart.", style="green")


def show(report: "DatasetReport", console: Console) -> None:
    """Print a report for people."""
    console.print(_summary(report))
    console.print(_buckets(report))
    if report.findings:
        console.print(_findings(report.findings))
    else:
        console.print("Nothing to complain about.", style="green")


def _console() -> Console:
    """Return a console as wide as the terminal, or wide enough for a file."""
    return open_console(file_width=_FILE_WIDTH)


def _summary(report: "DatasetReport") -> Table:
    result = report.facts.scan
    table = Table(title=str(report.path), title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    usable = f"{len(result.rows)} of {result.image_count} can be used"
    masks = sum(row.mask_path is not None for row in result.rows)
    table.add_row("images", usable + (f", {masks} have a mask" if masks else ""))
    table.add_row("sizes", _sizes(report))
    captions = len({row.caption for row in result.rows})
    table.add_row("captions", f"{captions} different")
    table.add_row("tag", _tag(report))
    if report.diversity is not None:
        table.add_row("variety", _variety(report))
    return table


def _sizes(report: "DatasetReport") -> str:
    sizes = report.sizes
    shown = [f"{width}x{height} ({count})" for (width, height), count in sizes[:_SIZES_SHOWN]]
    more = f" and {len(sizes) - _SIZES_SHOWN} more sizes" if len(sizes) > _SIZES_SHOWN else ""
    return ", ".join(shown) + more or "none"


def _tag(report: "DatasetReport") -> str:
    use = report.tag
    if use is not None:
        return f"{use.tag!r} in {use.captions} of {len(report.facts.scan.rows)} captions"
    words = ", ".join(repr(word) for word in report.common_words)
    common = f"words in every caption: {words}" if words else "no word is in every caption"
    return f"not checked, --tag TAG does; {common}"


def _variety(report: "DatasetReport") -> str:
    variety = report.diversity
    if variety is None:
        return ""
    judged = "all alike" if variety.is_uniform else "varied"
    limit = f"sets of {variety.images} below {variety.threshold:.2f} are all alike"
    return f"{variety.distance:.2f}, {judged} ({limit})"


def _buckets(report: "DatasetReport") -> Table:
    table = Table(title=f"Sizes at resolution {report.resolution}", title_justify="left")
    table.add_column("size")
    for column in ("images", "per epoch", "cropped away", "enlarged"):
        table.add_column(column, justify="right")
    for use in report.buckets:
        table.add_row(
            f"{use.width}x{use.height}", str(use.images), str(use.per_epoch),
            f"{use.cropped:.0%}", str(use.enlarged),
        )  # fmt: skip
    return table


def _findings(findings: "Sequence[Finding]") -> Table:
    table = Table(title="Findings", title_justify="left", show_lines=True)
    table.add_column("")
    table.add_column("what, and what to do", overflow="fold", ratio=3)
    table.add_column("files", overflow="fold", ratio=1)
    for finding in findings:
        label = Text(f"{finding.severity}\n")
        label.stylize(_STYLES[finding.severity])
        label.append(finding.rule, style="dim")
        table.add_row(label, Text(finding.message), Text(_files(finding)))
    return table


def _files(finding: "Finding") -> str:
    shown: list[Any] = list(finding.files[:_FILES_SHOWN])
    if len(finding.files) > _FILES_SHOWN:
        shown.append(f"and {len(finding.files) - _FILES_SHOWN} more")
    return "\n".join(shown)
