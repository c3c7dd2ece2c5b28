"""``lorasmith classify``: which of some labels fits a picture."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from lorasmith.cli.options.common import AsJson
from lorasmith.cli.output import print_json
from lorasmith.core.errors import DataError, LorasmithWarning
from lorasmith.core.text.console import open_console

if TYPE_CHECKING:
    from lorasmith.evaluation.classify import ClassifiedImage

_FILE_WIDTH = 120
_LABELS_SHOWN = 3

Pictures = Annotated[
    list[Path],
    typer.Argument(metavar="PICTURE|FOLDER...", help="Images, and folders of images."),
]
Labels = Annotated[str, typer.Option(help='The labels, separated by commas: "a dog, a cat".')]
Template = Annotated[
    str, typer.Option(help='The text of a label, with {} in its place: "{}, noto style".')
]
FeatureExtractor = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the network that compares images and labels: CLIP as transformers saves "
        "it, or a model folder with an image_tower.",
        show_default="the embedded image and text encoder",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("classify")(classify)


def classify(
    pictures: Pictures,
    labels: Labels,
    template: Template = "{}",
    feature_extractor: FeatureExtractor = None,
    as_json: AsJson = False,
) -> None:
    """Tell which of some labels fits each picture, without training (zero-shot).

    The probabilities are a softmax over the labels: they say which of them fits best, not whether
    any fits. A picture that cannot be read is a warning; the others are classified.

    Example: `lorasmith classify pictures --labels "a dog, a cat" --template "{}, noto style"`
    """
    from lorasmith.evaluation.classify import classify_images, parse_labels
    from lorasmith.evaluation.feature_extractor import load_feature_extractor

    names = parse_labels(labels)
    with open_console(stderr=True).status("classifying"):
        folder = None if feature_extractor is None else feature_extractor.expanduser()
        extractor = load_feature_extractor(folder)
        paths = [path.expanduser() for path in pictures]
        results = list(classify_images(paths, names, extractor, template))
    unread = [result for result in results if result.problem]
    for result in unread:
        warnings.warn(f"{result.path}: {result.problem}", LorasmithWarning, stacklevel=2)
    if as_json:
        tree = {"judge": extractor.name, "template": template, "labels": names}
        print_json({**tree, "pictures": [_to_dict(result) for result in results]})
    elif len(unread) < len(results):
        open_console(file_width=_FILE_WIDTH).print(_table(results, len(names)))
    if len(unread) == len(results):
        raise DataError(f"{pictures[0]}: no picture could be read")


def _table(results: "list[ClassifiedImage]", label_count: int) -> Table:
    """Return a row for each picture that was read, with its most probable labels."""
    table = Table()
    table.add_column("picture", overflow="fold")  # the end of a path tells most
    table.add_column("label")
    table.add_column("probability", justify="right")
    for name in ("second", "third")[: min(label_count, _LABELS_SHOWN) - 1]:
        table.add_column(name)
    for result in results:
        if not result.problem:
            (label, probability), *others = result.ranking()[:_LABELS_SHOWN]
            cells = [f"{name} {share:.1%}" for name, share in others]
            table.add_row(str(result.path), label, f"{probability:.1%}", *cells)
    return table


def _to_dict(result: "ClassifiedImage") -> dict[str, Any]:
    if result.problem:
        return {"path": str(result.path), "error": result.problem}
    label, _ = result.ranking()[0]
    return {"path": str(result.path), "label": label, "probabilities": result.probabilities}
