"""Writing the pages of any run again: a single run, a features run or a sweep."""

from pathlib import Path

from lorasmith.config.features import FeaturesConfig
from lorasmith.config.reading.load import load_saved_config
from lorasmith.config.reading.read_toml import read_toml
from lorasmith.config.sweep import SweepConfig
from lorasmith.reports.pages.features import write_features_page
from lorasmith.reports.pages.run import write_run_page
from lorasmith.reports.pages.sweep import write_sweep_page
from lorasmith.runs.features_paths import FeaturesPaths
from lorasmith.runs.paths import RunPaths
from lorasmith.runs.sweep_paths import SweepPaths


def write_pages(paths: RunPaths) -> list[Path]:
    """Write the page of a run, or of each of its LoRAs and of all together; return the pages.

    LoRAs whose training has not begun have no page.

    Raises:
        DataError: it is not a run's folder, or a file in it is damaged.
        ConfigError: the settings are damaged or of another version.
        OutputError: a page cannot be written.
    """
    tree = read_toml(paths.settings) if paths.settings.is_file() else {}
    name = str(paths.folder)
    if "feature" in tree:
        features = load_saved_config(FeaturesConfig, paths.settings)
        features_paths = FeaturesPaths.from_config(features, name)
        pages = _write_run_pages(features_paths.loras)
        return [*pages, write_features_page(features, features_paths)]
    if "vary" in tree:
        sweep = load_saved_config(SweepConfig, paths.settings)
        sweep_paths = SweepPaths.from_config(sweep, name)
        return [*_write_run_pages(sweep_paths.loras), write_sweep_page(sweep, sweep_paths)]
    return [write_run_page(paths)]


def _write_run_pages(loras: tuple[RunPaths, ...]) -> list[Path]:
    return [write_run_page(lora) for lora in loras if lora.settings.is_file()]
