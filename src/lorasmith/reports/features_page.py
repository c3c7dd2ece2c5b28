"""The page of a run of several features, which leads to the pages of each."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from lorasmith.config.features import FeaturesConfig
from lorasmith.config.load import load_saved_config, read_toml
from lorasmith.config.train_config import OutputConfig
from lorasmith.core.errors import OutputError
from lorasmith.core.files import write_text
from lorasmith.core.version import VERSION
from lorasmith.reports.run_page import write_run_page
from lorasmith.runs.features_paths import FeaturesPaths
from lorasmith.runs.paths import RunPaths
from lorasmith.runs.run_folder import image_data_uri, read_run_folder

_TEMPLATE = "features.html.j2"


@dataclass(frozen=True)
class Card:
    """A feature in the page."""

    tag: str
    class_word: str
    state: str
    """What became of it."""
    file: str
    """Name of its LoRA, where that is written."""
    report: str
    """Its own page, relative to this one; empty where there is none."""
    pictures: tuple[str, ...]
    """Its latest previews, as data URIs."""


def write_all_features_pages(paths: RunPaths) -> list[Path]:
    """Write the reports of all features that were begun, and the page that leads to them.

    Returns:
        the pages; none for a run of a single feature.

    Raises:
        DataError: a file of a feature is damaged.
        ConfigError: the settings are damaged or of another version.
        OutputError: a page cannot be written.
    """
    if not paths.settings.is_file() or "feature" not in read_toml(paths.settings):
        return []
    run = load_saved_config(FeaturesConfig, paths.settings)
    moved = run.model_copy(update={"output": OutputConfig(name=str(paths.folder))})
    every = FeaturesPaths.from_config(moved)
    pages = [write_run_page(one) for one in every.loras if one.settings.is_file()]
    return [*pages, write_features_page(run, every)]


def write_features_page(run: FeaturesConfig, paths: FeaturesPaths) -> Path:
    """Write ``report.html`` into the run's folder and return it.

    Raises:
        DataError: a file of a feature is damaged.
        OutputError: the page cannot be written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("lorasmith.reports")
    # Everything is escaped: tags and names are the user's, and may be anything.
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    cards = [
        _card(feature.tag, feature.class_word, place)
        for feature, place in zip(run.feature, paths.loras, strict=True)
    ]
    page = environment.get_template(_TEMPLATE).render(
        name=paths.main.name, mode=run.train.mode, cards=cards, version=VERSION
    )
    target = paths.main.report
    try:
        write_text(target, page)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error
    return target


def _card(tag: str, class_word: str, place: RunPaths) -> Card:
    if not place.settings.is_file():
        return Card(tag, class_word, "not begun", "", "", ())
    folder = read_run_folder(place.folder)
    last = folder.previews[-1].images if folder.previews else ()
    summary = folder.summary
    return Card(
        tag,
        class_word,
        "not finished" if summary is None else f"{summary.steps} steps, {summary.stop_reason}",
        place.lora.name if summary is not None else "",
        f"{quote(place.folder.name)}/{place.report.name}" if place.report.is_file() else "",
        tuple(image_data_uri(picture) for picture in last),
    )
