"""Models by their Hugging Face id: in the local cache, or downloaded on request."""

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from lorasmith.core.errors import WeightsError
from lorasmith.core.safetensors_header import PICKLE_SUFFIXES
from lorasmith.models.files.configs import CLASSES, TOKENIZERS
from lorasmith.models.files.source import INDEX
from lorasmith.models.files.stored_tensors import STEMS

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]*[A-Za-z0-9]")
_VARIANT = re.compile(
    rf"(?:{'|'.join(STEMS)})(?:\.(?P<name>\w+))?(?:-\d+-of-\d+)?\.safetensors"
    rf"(?:\.index(?:\.(?P<index>\w+))?\.json)?"
)
_TEXTS = (".json", ".txt")


def is_model_id(name: str) -> bool:
    """Tell whether a name has the form of a model id, ``organisation/model``."""
    return _ID.fullmatch(name) is not None


def find_cached_model(name: str) -> Path | None:
    """Return a model's folder in the local cache, or None. The network is not used."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def download_model(name: str) -> Path:
    """Download a model's missing files into the local cache.

    Raises:
        WeightsError: not the form of an id, no such model, it is not in diffusers' layout, or there
            is no network.
    """
    if not is_model_id(name):
        raise WeightsError(
            f"model {name}: only Hugging Face ids such as organisation/model can be downloaded"
        )
    import httpx
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        info = HfApi().model_info(name)
        stored = [sibling.rfilename for sibling in info.siblings or ()]
        files = select_files(stored)
        if INDEX not in files:
            raise WeightsError(
                f"model {name}: not in diffusers' folder layout ({INDEX} is missing)"
            )
        _check_not_pickled(name, stored, files)
        return Path(snapshot_download(name, revision=info.sha, allow_patterns=files))
    except (HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        hint = "; is there a network?" if isinstance(error, httpx.TransportError) else ""
        raise WeightsError(f"model {name}: cannot be downloaded: {reason}{hint}") from error


def _check_not_pickled(name: str, stored: Iterable[str], chosen: Iterable[str]) -> None:
    """Refuse a model one of whose networks has its weights as pickles only, before the download."""
    readable = {PurePosixPath(file).parent for file in chosen if ".safetensors" in file}
    for path in map(PurePosixPath, stored):
        is_network = str(path.parent) in CLASSES
        if is_network and path.suffix in PICKLE_SUFFIXES and path.parent not in readable:
            raise WeightsError(
                f"model {name}: {path} is pickled, which can run code when opened, and there is no "
                "safetensors file beside it; look for another copy of the model, or convert it on "
                "a machine that you can throw away (docs/models.md says how)"
            )


def select_files(files: Iterable[str]) -> list[str]:
    """Select the files to download: configs, tokenizers, and one variant of each network's weights.

    The variant without a name comes first, then fp16. Pickles and other formats are left out.
    """
    chosen: list[str] = []
    weights: dict[str, dict[str, list[str]]] = {}
    for path in map(PurePosixPath, files):
        folder = str(path.parent)
        if folder == "." and path.name == INDEX:
            chosen.append(INDEX)
        match = _VARIANT.fullmatch(path.name)
        if folder in CLASSES and match:
            variant = match["name"] or match["index"] or ""
            weights.setdefault(folder, {}).setdefault(variant, []).append(str(path))
        elif folder in (*CLASSES, *TOKENIZERS.values(), "scheduler") and path.suffix in _TEXTS:
            chosen.append(str(path))
    for variants in weights.values():
        preferred = min(
            variants,
            key=lambda variant: (variant != "", variant != "fp16", variant == "non_ema", variant),
        )
        chosen += variants[preferred]
    return sorted(chosen)
