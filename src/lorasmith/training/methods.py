"""Training methods: what is trained in a model, and how it is exported. LoRA is the built-in one.

``train.method`` names an item of ``registries.TRAINING_METHODS``. Another method is an object with
the members of `TrainingMethod`, registered under its name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from lorasmith.adapters.files.lora_file import save_lora_file
from lorasmith.adapters.files.metadata import LoraMetadata, build_metadata
from lorasmith.adapters.gating.gate_metadata import GateMetadata
from lorasmith.adapters.injection.inject import AttachedLora
from lorasmith.adapters.injection.trainable import (
    TrainableLora,
    export_layers,
    inject_trainable,
    summarize_parts,
)
from lorasmith.adapters.naming.layer_names import UNET
from lorasmith.adapters.nn.lora import layer_weight
from lorasmith.adapters.targeting.targets import LayerTarget, resolve_targets
from lorasmith.config.lora import LoraConfig
from lorasmith.config.optimization import TrainerConfig
from lorasmith.loops.optimization.optimizers import ParamGroup
from lorasmith.models.model import Model


@dataclass(frozen=True)
class MethodPlan:
    """What a method is going to train in a model."""

    layers: Any
    """The layers, in whatever form the method itself uses."""
    num_parameters: int
    """How many parameters are trained."""
    trains_text_encoder: bool = False
    """Whether some are in a text encoder, which then runs in every step."""


@dataclass(frozen=True)
class ExportMetadata:
    """What a trained file says about itself."""

    name: str
    """Its name."""
    gate: GateMetadata
    """Trigger word, class word, run and step."""
    family: str
    """Family of the base model."""
    prediction_type: str
    """What the base model predicts: ``epsilon``, ``v_prediction`` or ``sample``."""
    resolution: int
    """Side of the training images in pixels."""
    tag_frequency: Mapping[str, int]
    """How often each part of the captions occurs."""
    dataset_name: str
    """Name of the dataset, without folders."""
    base_hash: str
    """Hash of the base model's U-Net."""
    dataset_hash: str
    """Hash of the names and captions of the images."""


class TrainableModules(Protocol):
    """Modules in a model that are trained."""

    @property
    def adapters(self) -> Mapping[str, nn.Module]:
        """The modules by the names of their layers; checkpoints hold their ``state_dict``."""

    @property
    def attached(self) -> AttachedLora | None:
        """The adapters with their gate; None where there is no gate."""

    def parameters(self) -> list[nn.Parameter]:
        """Return what is trained, float32."""

    def train(self, mode: bool = True, /) -> None:
        """Turn dropout and such on or off."""

    def set_strength(self, strength: float, /) -> None:
        """Scale what was learned; at 0 the model is the base model, bit for bit."""

    def detach(self) -> None:
        """Restore the base model."""


class TrainingMethod(Protocol):
    """A kind of training."""

    @property
    def has_gate(self) -> bool:
        """Whether the trained modules can be inactive for some images of a batch."""

    def plan(self, model: Model, lora: LoraConfig, train: TrainerConfig) -> MethodPlan:
        """Choose the layers; the model stays as it is.

        Raises:
            ConfigError: the settings do not fit the model.
        """

    def inject(
        self, model: Model, plan: MethodPlan, lora: LoraConfig, seed: int, gate: GateMetadata
    ) -> Any:
        """Put trainable modules into the model and return them, as `TrainableModules`.

        The model's output stays what it is. The same seed makes the same modules.
        """

    def parameter_groups(self, trainable: Any, train: TrainerConfig) -> list[ParamGroup]:
        """Return the parameters with their peak learning rates, each in one group."""

    def export(self, trainable: Any, path: Path, metadata: ExportMetadata) -> None:
        """Write what was learned to a ``.safetensors`` file.

        Raises:
            WeightsError: it is all zero or not finite.
            OutputError: the file cannot be written.
        """


class LoraMethod:
    """Low-rank adapters, exported as a LoRA file that other programs read."""

    has_gate = True

    def plan(self, model: Model, lora: LoraConfig, train: TrainerConfig) -> MethodPlan:
        """Resolve ``lora.targets`` and ``lora.overrides``."""
        targets = resolve_targets(model, lora, train)
        in_text = any(target.ref.part != UNET for target in targets)
        return MethodPlan(targets, count_parameters(targets), in_text)

    def inject(
        self, model: Model, plan: MethodPlan, lora: LoraConfig, seed: int, gate: GateMetadata
    ) -> TrainableLora:
        """Put untrained adapters on the layers."""
        return inject_trainable(plan.layers, lora, seed, gate)

    def parameter_groups(self, trainable: TrainableLora, train: TrainerConfig) -> list[ParamGroup]:
        """Return the factors by part; LoRA+ raises the learning rate of the up-matrices."""
        ratio = {"down": 1.0, "up": train.loraplus_lr_ratio}
        return [
            ParamGroup(
                f"{group.part} {group.factor}" if train.loraplus_lr_ratio > 1 else group.part,
                group.parameters,
                group.learning_rate * ratio[group.factor],
            )
            for group in trainable.parameter_groups()
        ]

    def export(self, trainable: TrainableLora, path: Path, metadata: ExportMetadata) -> None:
        """Write a LoRA file."""
        gate = metadata.gate
        block = build_metadata(
            LoraMetadata(
                name=metadata.name,
                tag=gate.tag,
                family=metadata.family,
                prediction_type=metadata.prediction_type,
                parts=summarize_parts(trainable),
                resolution=metadata.resolution,
                tag_frequency=metadata.tag_frequency,
                dataset=metadata.dataset_name,
                gate=gate.kind,
                class_word=gate.class_word,
                run_id=gate.run_id,
                step=gate.step,
                base_hash=metadata.base_hash,
                dataset_hash=metadata.dataset_hash,
            )
        )
        save_lora_file(path, export_layers(trainable), block)


LORA = LoraMethod()
"""The built-in method."""


def count_parameters(targets: Sequence[LayerTarget]) -> int:
    """Return how many parameters the adapters of some layers have."""
    total = 0
    for target in targets:
        weight = layer_weight(target.ref.layer)
        total += target.rank * (weight[0].numel() + weight.shape[0])
    return total
