"""Models in a single ``.safetensors`` file with the names of the original code (LDM, sgm).

The family follows from the names and shapes of the tensors, and the configs from the family. Files
that lorasmith writes also hold the configs in their metadata, for models of other widths.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasmith.core.errors import WeightsError
from lorasmith.core.safetensors_io import SafetensorsFile
from lorasmith.models.families.family import (
    MODELSPEC_PREDICTIONS,
    ModelFamily,
    ModelVariant,
    PredictionType,
    load_families,
)
from lorasmith.models.families.ldm_keys import (
    IGNORED,
    MARKS,
    PROJECTION,
    UNET_PREFIX,
    V_MARKS,
    VAE_PREFIX,
    ZERO_SNR_MARK,
    SingleFileKeys,
    TensorEntry,
    TensorForm,
)
from lorasmith.models.files.build import abbreviate_names, check_tensor_names
from lorasmith.models.files.configs import TOKENIZERS, component_config, pad_token
from lorasmith.models.files.saved_configs import CONFIGS, read_saved_configs
from lorasmith.models.files.single.identify import EXPECTED, describe_file
from lorasmith.models.files.single.tensors import split_entry
from lorasmith.models.files.source import (
    check_part_fits,
    describe_channels,
    detect_variant,
    naming_part,
)
from lorasmith.models.files.stored_tensors import StoredTensor, StoredTensors
from lorasmith.models.text.tokenizer import create_clip_tokenizer

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

_YAML_PREDICTIONS: Mapping[str, PredictionType] = {"v": "v_prediction", "x0": "sample"}
"""The original code's ``parameterization``; its other word is eps."""
_MAX_YAML = 2**20
"""Characters of a YAML file that are read."""
_UNET, _VAE = UNET_PREFIX, VAE_PREFIX
_TEXT_PREFIXES = ("cond_stage_model.", "conditioner.embedders.")
_OLD_CLIP = re.compile(
    r"(cond_stage_model\.transformer\.)((?:embeddings|encoder|final_layer)\W?.*)"
)
"""SD 1.x text encoders saved without the level ``text_model``."""


class SingleFileSource:
    """A model in a single file.

    Raises:
        WeightsError: the file is damaged, or not a full model; says what it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = SafetensorsFile(path)
        self._keys = {_normalize_key(key): key for key in self._file.header.tensors}
        self._saved = read_saved_configs(path, self.metadata)
        self.variant = self._variant()
        self.networks = ("unet", "vae", *self.variant.family.text_encoders)

    @property
    def metadata(self) -> Mapping[str, str]:
        """The file's own metadata."""
        return self._file.header.metadata

    def _variant(self) -> ModelVariant:
        where = f"model {self.path}"
        channels = self._unet_channels()
        family = self._family()
        if self._saved:
            configs = self._saved["configs"]
            variant = detect_variant(configs["unet"], configs["scheduler"], where)
            missing = [part for part in variant.family.text_encoders if part not in configs]
            if missing:
                raise WeightsError(f"{where}: its {CONFIGS} has no {missing[0]}")
            return variant
        if channels not in (4, 9):
            raise WeightsError(f"{where}: its U-Net {describe_channels(channels)}")
        return ModelVariant(family.name, channels == 9, self._prediction(family, channels == 9))

    def _unet_channels(self) -> int:
        """Return the U-Net's input channels; refuse files without a U-Net or a VAE."""
        prefixes = [
            prefix for prefix in (_UNET, _VAE) if any(key.startswith(prefix) for key in self._keys)
        ]
        is_supported = "edm_mean" not in self._keys
        conv_in = self._keys.get(f"{_UNET}input_blocks.0.0.weight")
        if prefixes == [_UNET, _VAE] and is_supported and conv_in:
            return self._file.header.tensors[conv_in].shape[1]
        if prefixes == [_UNET] and is_supported and conv_in:
            description = "a U-Net alone"
            if self._has_text():
                description = "a U-Net with its text encoder, without an autoencoder (VAE)"
        elif prefixes == [_VAE]:
            description = "an autoencoder (VAE) alone"
            if self._has_text():
                description = "an autoencoder (VAE) and a text encoder, without a U-Net"
        elif not prefixes and self._has_text():
            description = "a text encoder alone"
        else:
            description = describe_file(self._keys)
        raise WeightsError(f"model {self.path}: this is {description}; {EXPECTED}")

    def _has_text(self) -> bool:
        return any(key.startswith(_TEXT_PREFIXES) for key in self._keys)

    def _candidates(self) -> list[ModelFamily]:
        """Return the families that the names of the text encoders fit, added ones first."""
        families = reversed(load_families().values())
        return [
            family
            for family in families
            if any(key.startswith(family.single_file.mark) for key in self._keys)
        ]

    def _family(self) -> ModelFamily:
        """Return the family by the text encoders' names and the width of text in the U-Net."""
        width = self._cross_attention_dim()
        candidates = self._candidates()
        for family in candidates:
            if self._saved or family.unet.cross_attention_dim == width:
                return family
        by_width = {f.unet.cross_attention_dim: f for f in load_families().values()}
        guess = by_width.get(width)
        if not candidates:
            prefixes = guess.single_file.prefixes if guess else {"text_encoder": _TEXT_PREFIXES[0]}
            expected = [p for part, p in prefixes.items() if part.startswith("text")]
            missing = [p for p in expected if not any(key.startswith(p) for key in self._keys)]
            description = (
                "a text encoder" if missing == expected else "one of its two text encoders"
            )
            raise WeightsError(
                f"model {self.path}: this is a U-Net{_of_family(guess)} with its autoencoder, "
                f"without {description}; expected {' and '.join(f'{p}*' for p in missing)} as well"
            )
        raise WeightsError(
            f"model {self.path}: its text encoder is that of {candidates[0].title}, and its "
            f"U-Net reads text of width {width}{_of_family(guess)}; expected "
            f"{candidates[0].unet.cross_attention_dim}"
        )

    def _cross_attention_dim(self) -> int:
        """Return the width of the text that the U-Net reads."""
        suffix = ".attn2.to_k.weight"
        for key, stored_key in self._keys.items():
            if key.startswith(_UNET) and key.endswith(suffix):
                return self._file.header.tensors[stored_key].shape[-1]
        raise WeightsError(f"model {self.path}: its U-Net reads no text; {EXPECTED}")

    def _prediction(self, family: ModelFamily, is_inpainting: bool) -> PredictionType | None:
        """Return what the model predicts, by its file or the YAML file beside it; None if unknown.

        Files say it by marker tensors, by Stability AI's metadata, or by the original code's
        ``NAME.yaml``. Some families have only one prediction type.
        """
        if any(mark in self._keys for mark in V_MARKS):
            return "v_prediction"
        declared = self.metadata.get("modelspec.prediction_type", "").lower()
        architecture = self.metadata.get("modelspec.architecture", "")
        if declared.startswith("v") or architecture.endswith("768-v"):
            return "v_prediction"
        if declared == MODELSPEC_PREDICTIONS["sample"]:
            return "sample"
        yaml = self.path.with_suffix(".yaml")
        if yaml.is_file():
            with yaml.open(encoding="utf-8", errors="replace") as stream:
                match = re.search(r"parameterization\W+(\w+)", stream.read(_MAX_YAML))
            return _YAML_PREDICTIONS.get(match[1], "epsilon") if match else "epsilon"
        predictions = family.prediction_types
        unsaid = len(predictions) > 1 and not is_inpainting and not declared
        return None if unsaid else "epsilon"

    @property
    def unused(self) -> tuple[str, ...]:
        """Tensors that inference does not use; marks that say what a model is are used."""
        ignored = (*IGNORED, *self._family_keys.ignored)
        return tuple(key for key in self._keys if key.startswith(ignored) and key not in MARKS)

    @property
    def _family_keys(self) -> SingleFileKeys:
        return self.variant.family.single_file

    def config(self, part: str) -> dict[str, Any]:
        """Return a part's config: from the metadata, or the family's."""
        if self._saved:
            return dict(self._saved["configs"][part])
        config = component_config(self.variant, part)
        if part == "scheduler" and ZERO_SNR_MARK in self._keys:
            config["rescale_betas_zero_snr"] = True
        if part in self.variant.family.text_encoders:
            config |= self._vocabulary(part)
        return config

    def _vocabulary(self, part: str) -> dict[str, int]:
        """Return the vocabulary size by the embeddings' shape, if they are there."""
        prefix = self._family_keys.prefixes[part]
        inner = "" if part in self._family_keys.open_clip else "embeddings."
        key = self._keys.get(f"{prefix}{inner}token_embedding.weight")
        return {"vocab_size": self._file.header.tensors[key].shape[0]} if key else {}

    def tensors(self, part: str, names: Iterable[str]) -> StoredTensors:
        """Return a network's tensors in the file."""
        tensors_found: dict[str, StoredTensor] = {}
        for entry in self._entries({part: names}):
            key = self._keys.get(entry.key)
            if key is not None:
                tensors_found |= split_entry(entry, self._file, key)
        return tensors_found

    def check(
        self, names: Mapping[str, Iterable[str]], ignore_unknown: bool = False
    ) -> tuple[str, ...]:
        """Refuse missing and unknown tensors by their names in the file.

        Args:
            names: those of each network's tensors.
            ignore_unknown: return the names of unknown tensors instead.

        Raises:
            WeightsError: says how many of which part.
        """
        expected = {entry.key: entry.part for entry in self._entries(names)}
        unused = {*self.unused, *MARKS}
        unknown = [key for key in self._keys if key not in expected and key not in unused]
        for part in names:
            part_keys = {key: None for key, owner in expected.items() if owner == part}
            with naming_part(self.path, part):
                check_tensor_names(part_keys, {key: None for key in part_keys if key in self._keys})
        if unknown and not ignore_unknown:
            raise WeightsError(
                f"model {self.path}: {len(unknown)} tensors belong to no part of "
                f"{self.variant.family.title}{abbreviate_names(unknown)}; the file is of another "
                "kind, or something was merged into it; `lorasmith model convert --ignore-unknown` "
                "writes the model without them"
            )
        return tuple(unknown)

    def _entries(self, names: Mapping[str, Iterable[str]]) -> list[TensorEntry]:
        configs = {part: self.config(part) for part in names}
        try:
            entries = self._family_keys.entries(names, configs)
        except KeyError as error:
            title = self.variant.family.title
            raise WeightsError(
                f"model {self.path}: {error.args[0]} has no place in single files of {title}"
            ) from error
        return [self._as_stored(entry) for entry in entries]

    def _as_stored(self, entry: TensorEntry) -> TensorEntry:
        """Return an entry under its other name, if the file has that.

        Some files have the projection of OpenCLIP as a linear layer (Playground 2), which is
        diffusers' form of it: only a shape that cannot be one shows that it is still transposed.
        """
        other = f"{entry.key}.weight"
        if entry.names != (PROJECTION,) or entry.key in self._keys or other not in self._keys:
            return entry
        shape = self._file.header.tensors[self._keys[other]].shape
        config = self.config(entry.part)
        width, projection = config["hidden_size"], config["projection_dim"]
        is_transposed = width != projection and shape == (width, projection)
        form = TensorForm.TRANSPOSED if is_transposed else TensorForm.SAME
        return TensorEntry(other, entry.part, entry.names, form)

    def tokenizer(self, part: str) -> "CLIPTokenizer":
        """Return CLIP's tokenizer, with as many tokens as the text encoder knows."""
        encoder = next(name for name, other in TOKENIZERS.items() if other == part)
        with naming_part(self.path, part):
            pads = self._saved.get("pad_tokens", {})
            pad = pads.get(part) or pad_token(self.variant.family.text_encoders[encoder])
            tokenizer = create_clip_tokenizer(int(self.config(encoder)["vocab_size"]), pad)
        check_part_fits(self, part, tokenizer)
        return tokenizer

    def has_text_level(self, part: str) -> bool:
        """Use ``text_model.`` as published folders do, unless the file came from another one."""
        return part not in self._saved.get("flat_text", ())


def _normalize_key(key: str) -> str:
    old = _OLD_CLIP.fullmatch(key)
    return f"{old[1]}text_model.{old[2]}" if old else key


def _of_family(family: ModelFamily | None) -> str:
    return f" of {family.title}" if family else ""
