"""Where a sweep writes."""

from dataclasses import dataclass, replace
from pathlib import Path

from lorasmith.config.sweep import SweepRun
from lorasmith.config.train_config import SUFFIX
from lorasmith.runs.multi_paths import SeveralPaths
from lorasmith.runs.paths import RunPaths

_COMMAND = "sweep"


@dataclass(frozen=True)
class SweepPaths(SeveralPaths):
    """The folder ``NAME``, and in it ``VARIANT.safetensors`` and a folder ``VARIANT`` for each."""

    @property
    def page(self) -> Path:
        """The sweep on one page."""
        return self.own.folder / "sweep.html"

    @property
    def figures(self) -> Path:
        """The same for programs."""
        return self.own.folder / "sweep.json"

    @property
    def pages(self) -> tuple[Path, ...]:
        """What is written about the whole."""
        return (self.page, self.figures)

    @classmethod
    def of(cls, run: SweepRun) -> "SweepPaths":
        """Return the paths for a sweep's output name."""
        own = RunPaths.of(run.output.name)
        own = replace(own, whole=own.folder, command=_COMMAND)
        groups, parts, every = [], [], run.groups()
        for number, group in enumerate(every, start=1):
            folder = own.folder / f"group{number}" if len(every) > 1 else own.folder
            place = replace(own, folder=folder)
            groups.append(place)
            parts += [
                RunPaths(
                    own.folder / f"{variant.name}{SUFFIX}",
                    own.folder / variant.name,
                    own.folder,
                    place.checkpoints,
                    _COMMAND,
                )
                for variant in group
            ]
        return cls(own, tuple(parts), tuple(groups))

    def of_group(self, run: SweepRun, number: int) -> tuple[RunPaths, ...]:
        """Return the paths of the LoRAs of a group (from 0)."""
        sizes = [len(group) for group in run.groups()]
        first = sum(sizes[:number])
        return self.parts[first : first + sizes[number]]
