"""Where a run of several features writes."""

from dataclasses import dataclass, replace

from lorasmith.config.features import FeaturesRun
from lorasmith.config.train_config import SUFFIX
from lorasmith.runs.multi_paths import SeveralPaths
from lorasmith.runs.paths import RunPaths


@dataclass(frozen=True)
class FeaturesPaths(SeveralPaths):
    """``NAME-TAG.safetensors`` for each feature, and the folder ``NAME`` with a folder ``TAG`` for
    each."""

    @property
    def features(self) -> tuple[RunPaths, ...]:
        """Each feature."""
        return self.parts

    @classmethod
    def of(cls, run: FeaturesRun) -> "FeaturesPaths":
        """Return the paths for a run's output name."""
        own = RunPaths.of(run.output.name)
        shared = own.checkpoints if run.train.mode == "joint" else None
        parts = [
            RunPaths(
                own.folder.parent / f"{own.name}-{feature.name}{SUFFIX}",
                own.folder / feature.name,
                own.folder,
                shared,
            )
            for feature in run.feature
        ]
        return cls(replace(own, whole=own.folder), tuple(parts))
