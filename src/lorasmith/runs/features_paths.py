"""The files of a features run."""

from dataclasses import dataclass, replace

from lorasmith.config.features import FeaturesConfig
from lorasmith.config.train_config import SUFFIX
from lorasmith.runs.multi_paths import MultiRunPaths
from lorasmith.runs.paths import RunPaths


@dataclass(frozen=True)
class FeaturesPaths(MultiRunPaths):
    """``NAME-TAG.safetensors`` of each feature, and in the folder ``NAME`` a folder ``TAG``."""

    @classmethod
    def from_config(cls, config: FeaturesConfig, name: str | None = None) -> "FeaturesPaths":
        """Return the paths of a run.

        Args:
            config: its settings.
            name: the output name, if it is not that of the settings: a run's folder may have been
                moved.
        """
        main = RunPaths.from_name(name or config.output.name)
        shared = main.checkpoints if config.train.mode == "joint" else None
        loras = [
            RunPaths(
                lora=main.folder.parent / f"{main.name}-{feature.name}{SUFFIX}",
                folder=main.folder / feature.name,
                parent_folder=main.folder,
                shared_checkpoints=shared,
            )
            for feature in config.feature
        ]
        return cls(replace(main, parent_folder=main.folder), tuple(loras))
