"""Where models are read from: diffusers folders; for single files see `single_file`."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

from lorasmith.core.errors import DataError, WeightsError
from lorasmith.models.families.family import ModelVariant, PredictionType, detect_unet_family
from lorasmith.models.files.build import build_empty_network
from lorasmith.models.files.configs import CLASSES, DIFFUSERS_PARTS, TOKENIZERS
from lorasmith.models.files.known_configs import select_known
from lorasmith.models.files.required_files import check_files
from lorasmith.models.files.stored_tensors import StoredTensors, find_part_tensors, uses_text_level
from lorasmith.models.read_json import read_json
from lorasmith.models.scheduler_config import check_scheduler_config
from lorasmith.models.suppress_logs import suppress_logs
from lorasmith.models.text.tokenizer_files import check_tokenizer_fits, read_tokenizer

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

INDEX = "model_index.json"
_UNET_DEFAULTS = {"addition_embed_type": None, "use_linear_projection": False, "in_channels": 4}


class ModelSource(Protocol):
    """A stored model. Opening it reads configs and headers, but no weights."""

    @property
    def path(self) -> Path:
        """The folder or the file."""

    @property
    def variant(self) -> ModelVariant:
        """What the model is. Its prediction type is None where a file does not say it."""

    @property
    def networks(self) -> tuple[str, ...]:
        """Its networks: ``unet``, ``vae``, ``text_encoder``, ``text_encoder_2``."""

    @property
    def unused(self) -> tuple[str, ...]:
        """Names of parts or tensors that lorasmith does not use."""

    def config(self, part: str) -> dict[str, Any]:
        """Return the config of a network or of the ``scheduler``."""

    def tensors(self, part: str, names: Iterable[str]) -> StoredTensors:
        """Return a network's tensors; ``names`` are those that it should have."""

    def check(
        self, names: Mapping[str, Iterable[str]], ignore_unknown: bool = False
    ) -> tuple[str, ...]:
        """Refuse tensors of no network, or return them if they are to be ignored.

        ``names`` are those of each network's tensors.
        """

    def tokenizer(self, part: str) -> "CLIPTokenizer":
        """Return the tokenizer ``tokenizer`` or ``tokenizer_2``."""

    def has_text_level(self, part: str) -> bool:
        """Tell whether a text encoder's tensors have ``text_model.`` in folders."""


def detect_variant(
    unet: Mapping[str, Any], scheduler: Mapping[str, Any], where: str
) -> ModelVariant:
    """Return what a model with these configs is.

    Raises:
        WeightsError: it needs inputs that no supported family has.
    """
    config = SimpleNamespace(**(_UNET_DEFAULTS | dict(unet)))
    channels = config.in_channels
    if channels not in _CHANNELS:
        raise WeightsError(f"{where}: its U-Net {describe_channels(channels)}")
    prediction: PredictionType | None = scheduler.get("prediction_type", "epsilon")
    return ModelVariant(detect_unet_family(config, where).name, _CHANNELS[channels], prediction)


_CHANNELS = {4: False, 9: True}
_ODD_CHANNELS = {
    5: "is that of a depth-to-image model",
    7: "is that of an upscaler",
    8: "is that of an InstructPix2Pix model",
}


def describe_channels(channels: object) -> str:
    """Return what a U-Net is whose number of input channels is not 4 or 9."""
    known = _ODD_CHANNELS.get(channels, "is of no known kind") if isinstance(channels, int) else ""
    return (
        f"{known} ({channels} input channels); expected 4, or 9 as inpainting models have"
    ).strip()


class FolderSource:
    """A model in diffusers' folder layout.

    Raises:
        WeightsError: the folder has no index, or a part is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not (path / INDEX).is_file():
            part = "; it looks like one part of it, give the folder around it"
            whole = "; copy or download the whole folder again" if (path / "unet").is_dir() else ""
            hint = part if (path / "config.json").is_file() else whole
            raise WeightsError(
                f"model {path}: not a diffusers model folder ({INDEX} is missing){hint}"
            )
        self._index = read_json(path, INDEX)
        self._configs: dict[str, dict[str, Any]] = {}
        self.networks = self._networks()
        parts = (*self.networks, *self._tokenizers, "scheduler")
        missing = [part for part in parts if not (path / part).is_dir()]
        if missing:
            raise WeightsError(
                f"model {path}: missing part {', '.join(missing)}; {self._what_to_do()}"
            )
        check_files(path, self.networks, self._tokenizers)

    def _what_to_do(self) -> str:
        """Return what the user can do about a missing part."""
        kind = str(self._index.get("_class_name", "model of no name"))
        if kind.startswith("StableDiffusion") and not kind.startswith("StableDiffusion3"):
            return "copy or download the whole folder again"
        return f"by its {INDEX} it is a {kind}, which is none of SD 1.x, SD 2.x and SDXL"

    def _networks(self) -> tuple[str, ...]:
        """Return the model's networks; the index and the folders tell its text encoders."""
        has_second = any((self.path / part).is_dir() for part in ("text_encoder_2", "tokenizer_2"))
        first_is_missing = self._index.get("text_encoder") in (None, [None, None])
        none = first_is_missing and not (self.path / "text_encoder").is_dir()
        first_encoder = () if has_second and none else ("text_encoder",)
        return ("unet", "vae", *first_encoder, *(("text_encoder_2",) if has_second else ()))

    @property
    def _tokenizers(self) -> tuple[str, ...]:
        return tuple(TOKENIZERS[part] for part in self.networks if part in TOKENIZERS)

    @cached_property
    def variant(self) -> ModelVariant:
        """What the model is."""
        scheduler = self.config("scheduler")
        return detect_variant(self.config("unet"), scheduler, f"model {self.path}")

    @property
    def unused(self) -> tuple[str, ...]:
        """Further parts in the index, such as a safety checker."""
        used = {*self.networks, *self._tokenizers, "scheduler"}
        named = [k for k, v in self._index.items() if isinstance(v, list) and any(v)]
        return tuple(part for part in named if part not in used)

    def config(self, part: str) -> dict[str, Any]:
        """Read and check a part's config; once."""
        if part not in self._configs:
            file = "scheduler_config.json" if part == "scheduler" else "config.json"
            file = f"{part}/{file}"
            self._configs[part] = check_config(self.path, part, read_json(self.path, file), file)
        return dict(self._configs[part])

    def tensors(self, part: str, names: Iterable[str]) -> StoredTensors:
        """Return a network's tensors in its folder."""
        del names  # a part's folder holds nothing else
        return find_part_tensors(self.path / part, part)

    def check(
        self, names: Mapping[str, Iterable[str]], ignore_unknown: bool = False
    ) -> tuple[str, ...]:
        """Return nothing: parts are checked when their weights are loaded."""
        return ()

    def tokenizer(self, part: str) -> "CLIPTokenizer":
        """Load a tokenizer part, and compare it with its text encoder."""
        tokenizer = load_folder_tokenizer(self.path, part)
        check_part_fits(self, part, tokenizer)
        return tokenizer

    def has_text_level(self, part: str) -> bool:
        """Tell how the text encoder's weights are named."""
        return uses_text_level(self.path / part)


def load_folder_tokenizer(folder: Path, part: str) -> "CLIPTokenizer":
    """Load a tokenizer from a folder's part.

    Raises:
        WeightsError: a file is missing or damaged.
    """
    with suppress_logs(), naming_part(folder, part):
        return read_tokenizer(folder / part)


def check_part_fits(source: ModelSource, part: str, tokenizer: "CLIPTokenizer") -> None:
    """Compare a tokenizer with its text encoder.

    Raises:
        WeightsError: they are not of one model.
    """
    encoder = next(name for name, other in TOKENIZERS.items() if other == part)
    try:
        check_tokenizer_fits(tokenizer, source.config(encoder))
    except WeightsError as error:
        raise WeightsError(f"model {source.path}: its {part} {error}") from error


@contextmanager
def naming_part(where: Path, part: str) -> Iterator[None]:
    """Turn the errors of libraries on damaged files into one that names the part."""
    from safetensors import SafetensorError

    known = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError)
    try:
        yield
    except (WeightsError, DataError, *known) as error:
        reason = str(error).strip().split("\n")[0].removeprefix(f"model {where}: ")
        raise WeightsError(f"model {where}: {part} cannot be loaded: {reason}") from error


def check_config(where: Path, part: str, config: Mapping[str, Any], file: str) -> dict[str, Any]:
    """Return what is used of a part's config.

    Raises:
        WeightsError: a value cannot be; file and entry are named.
    """
    try:
        if part != "scheduler":
            return select_known(CLASSES[part], config, file)
        return check_scheduler_config(config)
    except WeightsError as error:
        name = f"{file}: " if part == "scheduler" else ""
        raise WeightsError(f"model {where}: {name}{error}") from error


def build_empty_part(source: ModelSource, part: str) -> Any:
    """Build one of a model's networks without its weights.

    Raises:
        WeightsError: its config is missing or does not fit; the part is named.
    """
    import diffusers
    import transformers

    library = diffusers if part in DIFFUSERS_PARTS else transformers
    config = source.config(part)
    try:
        return build_empty_network(getattr(library, CLASSES[part]), config, part)
    except WeightsError as error:
        raise WeightsError(f"model {source.path}: {error}") from error
