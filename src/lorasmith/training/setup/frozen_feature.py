"""Features that are trained already, and frozen while the next one is trained."""

from dataclasses import dataclass
from pathlib import Path

from lorasmith.adapters.files.lora_file import LoraFile, load_lora_file
from lorasmith.adapters.gating.gate_metadata import GateMetadata, read_gate
from lorasmith.adapters.naming.layer_names import UNET_PREFIX
from lorasmith.config.train_config import DataConfig
from lorasmith.training.data.split import DatasetSplit


@dataclass(frozen=True)
class FrozenFeature:
    """A trained feature whose LoRA is in the model."""

    file: LoraFile
    """Its LoRA."""
    gate: GateMetadata
    """What activates it."""
    data: DataConfig
    """The settings of its images."""
    split: DatasetSplit
    """Its images."""

    @classmethod
    def load(cls, path: Path, data: DataConfig, split: DatasetSplit) -> "FrozenFeature":
        """Load the LoRA of a feature.

        Raises:
            WeightsError: the file is missing or damaged.
        """
        file = load_lora_file(path)
        return cls(file, read_gate(file), data, split)

    @property
    def has_text_layers(self) -> bool:
        """Whether it changes a text encoder."""
        return any(not name.startswith(UNET_PREFIX) for name in self.file.layers)

    @property
    def weights_hash(self) -> str:
        """The hash of its weights."""
        return self.file.metadata.get("sshs_model_hash", "")
