"""Feature extractors for images and texts: the embedded encoders, CLIP or Inception v3."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from PIL import Image

from lorasmith.core.errors import WeightsError
from lorasmith.core.safetensors_io import load_tensors
from lorasmith.evaluation.base_model import pil_to_tensor
from lorasmith.evaluation.metrics.inception import SIDE as INCEPTION_SIDE
from lorasmith.evaluation.metrics.inception import InceptionV3
from lorasmith.models.image_encoder import FOLDER, ClipModel, embed_images, embed_texts, load_clip
from lorasmith.models.load import load_clip_network, load_tokenizer
from lorasmith.models.read_json import read_json
from lorasmith.models.text.tokenizer_files import check_tokenizer_fits

_BATCH_SIZE = 32
_OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
_OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


class FeatureExtractor(Protocol):
    """A network that maps images, and perhaps texts, to features."""

    @property
    def name(self) -> str:
        """Its name in reports."""

    def image_features(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return features, float32 ``[N, D]`` on the CPU, of any length."""

    def text_features(self, texts: Sequence[str]) -> torch.Tensor | None:
        """Return features in the same space, ``[N, D]``; None without a text encoder."""

    @property
    def logit_scale(self) -> float:
        """By what a product of an image's and a text's features is multiplied for a softmax."""


def normalize(features: torch.Tensor) -> torch.Tensor:
    """Scale features ``[N, D]`` to length 1."""
    return F.normalize(features, dim=1)


@dataclass(frozen=True)
class ModelFolderExtractor:
    """A lorasmith model folder's own image and text encoder."""

    name: str
    clip: ClipModel
    tokenizer: Any

    def image_features(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return unit-length embeddings, ``[N, D]``."""
        pixels = pil_to_tensor(images, self.clip.image.input_side)
        return embed_images(self.clip.image, pixels, _BATCH_SIZE)

    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        """Return unit-length embeddings, ``[N, D]``."""
        return embed_texts(self.clip, self.tokenizer, texts)

    @property
    def logit_scale(self) -> float:
        """The inverse temperature that was learned with the encoders."""
        return float(self.clip.scale())


class ClipExtractor:
    """A CLIP model in transformers' folder layout."""

    def __init__(self, folder: Path) -> None:
        """Load it.

        Raises:
            WeightsError: the folder is incomplete or damaged.
        """
        self.name = folder.resolve().name
        self._model: Any = _load_clip(folder)
        self._tokenizer = load_tokenizer(folder.parent, folder.name)
        try:
            check_tokenizer_fits(self._tokenizer, self._model.config.text_config.to_dict())
        except WeightsError as error:
            raise WeightsError(f"{folder}: its tokenizer {error}") from error
        self._mean, self._std = _read_normalization(folder)

    @torch.no_grad()
    def image_features(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return unit-length embeddings, ``[N, D]``."""
        side = int(self._model.config.vision_config.image_size)
        pixels = (pil_to_tensor(images, side) / 2 + 0.5 - self._mean) / self._std
        features = [
            self._model.visual_projection(self._model.vision_model(batch).pooler_output)
            for batch in torch.split(pixels, _BATCH_SIZE)
        ]
        return normalize(torch.cat(features))

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        """Return unit-length embeddings, ``[N, D]``."""
        tokens = self._tokenizer(
            list(texts), padding="max_length", truncation=True, return_tensors="pt"
        )
        pooled = self._model.text_model(**tokens).pooler_output
        return normalize(self._model.text_projection(pooled))

    @property
    def logit_scale(self) -> float:
        """The inverse temperature that was learned with the encoders."""
        return float(self._model.logit_scale.exp())


class InceptionExtractor:
    """Inception v3 from ``model.safetensors``, without a text encoder."""

    def __init__(self, folder: Path) -> None:
        """Load it.

        Raises:
            WeightsError: the weights are missing, or not Inception v3's.
        """
        self.name = f"inception v3 ({folder.resolve().name})"
        self._model = InceptionV3()
        tensors = load_tensors(folder / "model.safetensors")
        keys = {k for k in self._model.state_dict() if not k.endswith("num_batches_tracked")}
        missing = sorted(keys - tensors.keys())
        if missing:
            raise WeightsError(
                f"{folder}: {len(missing)} of the {len(keys)} tensors of Inception v3 are "
                f"missing, first {missing[0]}; use weights with the layer names of torchvision or "
                "timm"
            )
        try:
            # The classifier after the last pool is not needed.
            self._model.load_state_dict({key: tensors[key] for key in keys}, strict=False)
        except RuntimeError as error:
            raise WeightsError(
                f"{folder}: its tensors do not have the shapes of Inception v3's"
            ) from error
        self._model.requires_grad_(False).eval()

    @torch.no_grad()
    def image_features(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return the last pooled layer, ``[N, 2048]``."""
        batches = torch.split(pil_to_tensor(images, INCEPTION_SIDE), _BATCH_SIZE)
        return torch.cat([self._model(batch) for batch in batches])

    def text_features(self, texts: Sequence[str]) -> None:
        """Return None."""

    @property
    def logit_scale(self) -> float:
        """1: there are no texts to compare with."""
        return 1.0


def load_feature_extractor(folder: Path | None = None) -> FeatureExtractor:
    """Load a feature extractor.

    Args:
        folder: a lorasmith model folder with an image encoder, a CLIP model as transformers saves
            it, or a folder with Inception v3's ``model.safetensors`` and a ``config.json`` that
            names it. None is the embedded image and text encoder.

    Raises:
        WeightsError: it is none of these, or damaged.
    """
    if folder is None:
        return embedded_extractor()
    if (folder / FOLDER).is_dir():
        return ModelFolderExtractor(
            folder.resolve().name, load_clip(folder), load_tokenizer(folder)
        )
    config = _read_config(folder)
    if config.get("model_type") == "clip":
        return ClipExtractor(folder)
    if "inception_v3" in str(config.get("architecture", "")):
        return InceptionExtractor(folder)
    kind = config.get("model_type") or config.get("architecture") or "unknown"
    raise WeightsError(
        f"{folder}: a feature extractor is a CLIP model, Inception v3 (architecture inception_v3 "
        f"in config.json) or a model folder with an {FOLDER}; this is {kind}"
    )


@lru_cache(maxsize=1)
def embedded_extractor() -> ModelFolderExtractor:
    """Return the image and text encoder that ship with lorasmith."""
    from lorasmith.models.files.open import EMBEDDED

    return ModelFolderExtractor("embedded image encoder", load_clip(), load_tokenizer(EMBEDDED))


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise WeightsError(
            f"{folder}: not a feature extractor (it has neither config.json nor {FOLDER}); give "
            "the folder of a CLIP model or of Inception v3"
        )
    return read_json(folder, file.name)


def _load_clip(folder: Path) -> Any:
    from transformers import CLIPModel

    try:
        return load_clip_network(CLIPModel, folder)
    except WeightsError as error:
        raise WeightsError(f"{folder}: the CLIP model cannot be loaded: {error}") from error


def _read_normalization(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation of CLIP's input, ``[3, 1, 1]``; OpenAI's by default."""
    file = folder / "preprocessor_config.json"
    config = read_json(folder, file.name) if file.exists() else {}
    values = []
    for key, default, lowest in (("image_mean", _OPENAI_MEAN, 0), ("image_std", _OPENAI_STD, 1e-3)):
        value = config.get(key, default)
        if not _is_per_channel(value, lowest):
            raise WeightsError(
                f"{file}: {key} is not three numbers from {lowest}, one for each channel"
            )
        values.append(torch.tensor(value, dtype=torch.float32).view(3, 1, 1))
    return values[0], values[1]


def _is_per_channel(value: Any, lowest: float) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 3
        and all(isinstance(number, int | float) and lowest <= number < 1e6 for number in value)
    )
