"""Who looks at pictures: a network that turns them into features, the embedded one or another."""

import json
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
from lorasmith.models.load import load_tokenizer, suppress_logs

IMAGE_ENCODER_SIDE = 128
"""Side of the pictures that the image tower is shown, in pixels."""
_AT_ONCE = 32


class FeatureExtractor(Protocol):
    """A feature extractor."""

    @property
    def name(self) -> str:
        """What reports call it."""

    def image_features(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Return features, float32 ``[N, D]`` on the CPU, of any length."""

    def text_features(self, texts: Sequence[str]) -> torch.Tensor | None:
        """Return features of texts in the same space, ``[N, D]``; None where it cannot read."""


def normalize(features: torch.Tensor) -> torch.Tensor:
    """Return features ``[N, D]`` at length 1."""
    return F.normalize(features, dim=1)


@dataclass(frozen=True)
class ModelFolderExtractor:
    """A model folder's own image and text tower."""

    name: str
    pair: ClipModel
    tokenizer: Any

    def image_features(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Return unit-length embeddings, ``[N, D]``."""
        return embed_images(self.pair.image, pil_to_tensor(pictures, IMAGE_ENCODER_SIDE), _AT_ONCE)

    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        """Return unit-length embeddings, ``[N, D]``."""
        return embed_texts(self.pair, self.tokenizer, texts)


class ClipExtractor:
    """A CLIP model in transformers' folder layout."""

    def __init__(self, folder: Path) -> None:
        """Load it.

        Raises:
            WeightsError: the folder is incomplete or damaged.
        """
        from transformers import CLIPModel

        self.name = folder.resolve().name
        self._model: Any = _opened(CLIPModel, folder)
        self._tokenizer = load_tokenizer(folder.parent, folder.name)
        self._mean, self._deviation = _scaling(folder)

    @torch.no_grad()
    def image_features(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Return unit-length embeddings, ``[N, D]``."""
        side = int(self._model.config.vision_config.image_size)
        scaled = (pil_to_tensor(pictures, side) / 2 + 0.5 - self._mean) / self._deviation
        parts = [
            self._model.visual_projection(self._model.vision_model(part).pooler_output)
            for part in torch.split(scaled, _AT_ONCE)
        ]
        return normalize(torch.cat(parts))

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        """Return unit-length embeddings, ``[N, D]``."""
        encoded = self._tokenizer(
            list(texts), padding="max_length", truncation=True, return_tensors="pt"
        )
        pooled = self._model.text_model(**encoded).pooler_output
        return normalize(self._model.text_projection(pooled))


class InceptionExtractor:
    """Inception v3 from ``model.safetensors``; it cannot read."""

    def __init__(self, folder: Path) -> None:
        """Load it.

        Raises:
            WeightsError: the weights are missing, or not Inception v3's.
        """
        self.name = f"inception v3 ({folder.resolve().name})"
        self._model = InceptionV3()
        tensors = load_tensors(folder / "model.safetensors")
        wanted = {k for k in self._model.state_dict() if not k.endswith("num_batches_tracked")}
        missing = sorted(wanted - tensors.keys())
        if missing:
            raise WeightsError(
                f"{folder}: {len(missing)} of the {len(wanted)} tensors of Inception v3 are "
                f"missing, first {missing[0]}; it wants the layer names of torchvision and timm"
            )
        try:
            # The classifier behind the last pool is not needed.
            self._model.load_state_dict({k: tensors[k] for k in wanted}, strict=False)
        except RuntimeError as error:
            raise WeightsError(f"{folder}: its tensors are not shaped as Inception v3's") from error
        self._model.requires_grad_(False).eval()

    @torch.no_grad()
    def image_features(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Return the last pooled layer, ``[N, 2048]``."""
        shown = torch.split(pil_to_tensor(pictures, INCEPTION_SIDE), _AT_ONCE)
        return torch.cat([self._model(part) for part in shown])

    def text_features(self, texts: Sequence[str]) -> None:
        """Return nothing: there is no text tower."""


def load_feature_extractor(folder: Path | None = None) -> FeatureExtractor:
    """Open a feature extractor; the embedded towers by default.

    Args:
        folder: a lorasmith model folder with an image tower, a CLIP model as transformers saves
            it, or a folder with Inception v3's ``model.safetensors`` and a ``config.json`` that
            names it.

    Raises:
        WeightsError: none of these, or damaged.
    """
    if folder is None:
        return embedded_extractor()
    if (folder / FOLDER).is_dir():
        return ModelFolderExtractor(
            folder.resolve().name, load_clip(folder), load_tokenizer(folder)
        )
    config = _config_of(folder)
    if config.get("model_type") == "clip":
        return ClipExtractor(folder)
    if "inception_v3" in str(config.get("architecture", "")):
        return InceptionExtractor(folder)
    kind = config.get("model_type") or config.get("architecture") or "of no known kind"
    raise WeightsError(
        f"{folder}: a judge is a CLIP model, Inception v3 (architecture inception_v3 in "
        f"config.json) or a model folder with an {FOLDER}; this is {kind}"
    )


@lru_cache(maxsize=1)
def embedded_extractor() -> ModelFolderExtractor:
    """Return the towers that ship with lorasmith."""
    from lorasmith.models.load import EMBEDDED

    return ModelFolderExtractor("embedded image tower", load_clip(), load_tokenizer(EMBEDDED))


def _config_of(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise WeightsError(
            f"{folder}: no judge there (it has neither config.json nor {FOLDER}); give the folder "
            "of a CLIP model or of Inception v3"
        )
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except ValueError as error:
        raise WeightsError(f"{file}: not a config ({error})") from error


def _opened(kind: Any, folder: Path) -> Any:
    from safetensors import SafetensorError

    try:
        with suppress_logs():
            model = kind.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise WeightsError(f"{folder}: the CLIP model cannot be loaded: {reason}") from error
    return model.requires_grad_(False).eval()


def _scaling(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and deviation of CLIP's input, ``[3, 1, 1]``: its own, or OpenAI's."""
    file = folder / "preprocessor_config.json"
    told = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    mean = told.get("image_mean", [0.48145466, 0.4578275, 0.40821073])
    deviation = told.get("image_std", [0.26862954, 0.26130258, 0.27577711])
    return torch.tensor(mean).view(3, 1, 1), torch.tensor(deviation).view(3, 1, 1)
