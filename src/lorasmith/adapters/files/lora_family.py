"""Which models a LoRA file is for: their family and prediction type."""

import re

from lorasmith.adapters.files.lora_file import LoraFile
from lorasmith.models.families.family import MODELSPEC_PREDICTIONS, load_families


def detect_lora_family(file: LoraFile) -> tuple[str | None, str]:
    """Return the name of the family of models that a file is for, and what shows it.

    The second value is ``metadata``, ``shapes`` or ``names``; without a family it is empty.
    """
    families = load_families()
    version = file.metadata.get("ss_base_model_version", "")
    for name, family in families.items():
        if version in family.kohya_versions:
            return name, "metadata"
    for name, family in families.items():
        if family.kohya_version_prefix and version.startswith(family.kohya_version_prefix):
            return name, "metadata"
    by_width = {family.unet.cross_attention_dim: name for name, family in families.items()}
    text_layers = [layer for name, layer in file.layers.items() if name.endswith("attn2_to_k")]
    widths = {layer.matrix_shape[1] for layer in text_layers}
    matches = {by_width[width] for width in widths if width in by_width}
    if len(matches) == 1:
        return matches.pop(), "shapes"
    for name, family in families.items():
        pattern, exclusion = family.lora_name_pattern, family.lora_name_exclusion
        if exclusion and any(re.match(exclusion, layer) for layer in file.layers):
            continue
        if pattern and any(re.match(pattern, layer) for layer in file.layers):
            return name, "names"
    return None, ""


def detect_prediction_type(file: LoraFile) -> str | None:
    """Return a key of `MODELSPEC_PREDICTIONS` if the file says what its base model predicts.

    ``ss_base_model_version`` shows it for SD 2.x only.
    """
    declared = file.metadata.get("modelspec.prediction_type")
    for prediction_type, word in MODELSPEC_PREDICTIONS.items():
        if declared == word:
            return prediction_type
    version = file.metadata.get("ss_base_model_version")
    for family in load_families().values():
        epsilon, v_prediction = family.kohya_versions
        if version and epsilon != v_prediction and version in family.kohya_versions:
            return "epsilon" if version == epsilon else "v_prediction"
    return None
