"""The files of a sweep."""

from dataclasses import dataclass, replace
from pathlib import Path

from lorasmith.config.sweep import SweepConfig
from lorasmith.config.train_config import SUFFIX
from lorasmith.runs.multi_paths import MultiRunPaths
from lorasmith.runs.paths import RunPaths

_COMMAND = "sweep"


@dataclass(frozen=True)
class SweepPaths(MultiRunPaths):
    """The folder ``NAME``, and in it ``VARIANT.safetensors`` and a folder ``VARIANT`` for each."""

    @property
    def html_page(self) -> Path:
        """The page that compares the LoRAs."""
        return self.main.folder / "sweep.html"

    @property
    def json_file(self) -> Path:
        """The same results for programs."""
        return self.main.folder / "sweep.json"

    @property
    def pages(self) -> tuple[Path, ...]:
        """The files that report on the sweep."""
        return (self.html_page, self.json_file)

    @classmethod
    def from_config(cls, config: SweepConfig, name: str | None = None) -> "SweepPaths":
        """Return the paths of a run.

        Args:
            config: its settings.
            name: the output name, if it is not that of the settings: a run's folder may have been
                moved.
        """
        main = RunPaths.from_name(name or config.output.name)
        main = replace(main, parent_folder=main.folder, command=_COMMAND)
        loras: list[RunPaths] = []
        group_paths: list[RunPaths] = []
        groups = config.groups()
        for index, group in enumerate(groups, start=1):
            folder = main.folder / f"group{index}" if len(groups) > 1 else main.folder
            paths = replace(main, folder=folder)
            group_paths.append(paths)
            loras += [
                RunPaths(
                    lora=main.folder / f"{variant.name}{SUFFIX}",
                    folder=main.folder / variant.name,
                    parent_folder=main.folder,
                    shared_checkpoints=paths.checkpoints,
                    command=_COMMAND,
                )
                for variant in group
            ]
        return cls(main, tuple(loras), tuple(group_paths))

    def loras_of_group(self, config: SweepConfig, group: int) -> tuple[RunPaths, ...]:
        """Return the paths of the LoRAs of a group (counted from 0)."""
        sizes = [len(variants) for variants in config.groups()]
        first = sum(sizes[:group])
        return self.loras[first : first + sizes[group]]
