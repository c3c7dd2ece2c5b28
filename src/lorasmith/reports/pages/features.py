"""The page of a features run, with links to the pages of each feature."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from lorasmith.config.features import FeaturesConfig
from lorasmith.core.errors import LorasmithError
from lorasmith.reports.embedded_images import embed_preview
from lorasmith.reports.html import failure_as_warning, render_page, write_output
from lorasmith.runs.features_paths import FeaturesPaths
from lorasmith.runs.paths import RunPaths
from lorasmith.runs.run_folder import read_run_folder

_TEMPLATE = "features.html.j2"


@dataclass(frozen=True)
class FeatureCard:
    """A feature on the page."""

    tag: str
    class_word: str
    state: str
    """How far its training is, as a phrase."""
    file: str = ""
    """Name of its LoRA; empty if it is not finished."""
    report: str = ""
    """Its own page, relative to this one; empty if there is none."""
    images: tuple[str, ...] = ()
    """Its last preview images, as data URIs."""


def write_features_page_after_training(config: FeaturesConfig, paths: FeaturesPaths) -> None:
    """Write the page; if that fails, warn."""
    with failure_as_warning("overview page", paths.main.folder):
        write_features_page(config, paths)


def write_features_page(config: FeaturesConfig, paths: FeaturesPaths) -> Path:
    """Write ``report.html`` into the run's folder and return it.

    A feature whose files cannot be read has a card that says so.

    Raises:
        OutputError: the page cannot be written.
    """
    cards = [
        _make_card(feature.tag, feature.class_word, lora)
        for feature, lora in zip(config.feature, paths.loras, strict=True)
    ]
    page = render_page(_TEMPLATE, name=paths.main.name, mode=config.train.mode, cards=cards)
    return write_output(paths.main.report, page)


def _make_card(tag: str, class_word: str, paths: RunPaths) -> FeatureCard:
    if not paths.settings.is_file():
        return FeatureCard(tag, class_word, "not begun")
    try:
        run = read_run_folder(paths.folder)
    except LorasmithError as error:
        file = paths.lora.name if paths.lora.is_file() else ""
        return FeatureCard(tag, class_word, f"its files cannot be read: {error}", file)
    summary = run.summary
    state = "not finished" if summary is None else f"{summary.steps} steps, {summary.stop_reason}"
    return FeatureCard(
        tag,
        class_word,
        state,
        file=paths.lora.name if summary is not None else "",
        report=f"{quote(paths.folder.name)}/{paths.report.name}" if paths.report.is_file() else "",
        images=embed_preview(tag, run.previews[-1]).images if run.previews else (),
    )
