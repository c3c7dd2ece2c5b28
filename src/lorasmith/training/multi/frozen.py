"""Features that were learned before, and stay as they are while the next one is."""

from dataclasses import dataclass
from pathlib import Path

from lorasmith.adapters.files.lora_file import LoraFile, load_lora_file
from lorasmith.adapters.gating.gate_metadata import GateMetadata, read_gate
from lorasmith.adapters.naming.layer_names import UNET_PREFIX
from lorasmith.config.train_config import DataConfig
from lorasmith.training.data.split import DatasetSplit


@dataclass(frozen=True)
class FrozenFeature:
    """A feature that is in the model already."""

    file: LoraFile
    """Its LoRA."""
    facts: GateMetadata
    """What switches it on."""
    data: DataConfig
    """Its pictures' settings."""
    split: DatasetSplit
    """Its pictures."""

    @classmethod
    def load(cls, path: Path, data: DataConfig, chosen: DatasetSplit) -> "FrozenFeature":
        """Read the LoRA of a feature.

        Raises:
            WeightsError: the file is missing or damaged.
        """
        file = load_lora_file(path)
        return cls(file, read_gate(file), data, chosen)

    @property
    def has_text_layers(self) -> bool:
        """Whether it changes a text encoder."""
        return any(not name.startswith(UNET_PREFIX) for name in self.file.layers)

    @property
    def weights_hash(self) -> str:
        """The hash of its weights."""
        return self.file.metadata.get("sshs_model_hash", "")
