"""Finding stored models by path, name or Hugging Face id, and opening them."""

from pathlib import Path

from lorasmith.core.errors import WeightsError, did_you_mean
from lorasmith.core.safetensors_header import PICKLE_SUFFIXES, reject_pickle
from lorasmith.models.files.hub import find_cached_model, is_model_id
from lorasmith.models.files.single.single_file import SingleFileSource
from lorasmith.models.files.source import FolderSource, ModelSource

EMBEDDED = Path(__file__).resolve().parents[2] / "embedded"
"""The small base model that ships with the package."""


def resolve_model_path(name: str | Path | None) -> Path:
    """Return a model's folder or single file; None means the embedded model.

    Args:
        name: a diffusers folder, a ``.safetensors`` file with a full model, or a Hugging Face id
            whose files are in the local cache.

    Raises:
        WeightsError: nothing is there, or it is not a model.
    """
    path = EMBEDDED if name is None else _expand(name)
    if path.is_file():
        reject_pickle(path)
        if path.suffix != ".safetensors":
            raise WeightsError(
                f"model {path}: not a model; give a diffusers folder or a .safetensors file"
            )
        return path
    if path.is_dir():
        return FolderSource(path).path
    model_id = "" if name is None else Path(name).as_posix()
    if is_model_id(model_id):
        cached = find_cached_model(model_id)
        if cached is not None:
            return _check_complete(model_id, cached)
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = did_you_mean(path.name, siblings)
    if not hint and is_model_id(model_id):
        hint = (
            f", and no such id in the cache; `lorasmith model info {model_id} --download` "
            "fetches it"
        )
    noun = "file" if path.suffix in (".safetensors", *PICKLE_SUFFIXES) else "folder"
    raise WeightsError(f"model {path}: no such {noun}{hint}")


def _expand(name: str | Path) -> Path:
    """Return a path that the system can look up."""
    try:
        path = Path(name).expanduser()
        path.stat()
    except FileNotFoundError:
        return path
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, no such user
        shown = str(name)[:100].replace("\0", "\\0")
        reason = getattr(error, "strerror", None) or error
        raise WeightsError(f"model {shown}: not a path that can be opened ({reason})") from error
    return path


def _check_complete(name: str, cached: Path) -> Path:
    """Return a model's folder in the cache if it is complete."""
    try:
        return FolderSource(cached).path
    except WeightsError as error:
        raise WeightsError(
            f"{error}; if the cache has only a part of {name}, `lorasmith model info {name} "
            "--download` fetches the rest"
        ) from error


def open_source(name: str | Path | None = None) -> ModelSource:
    """Open a stored model without reading its weights; for names see `resolve_model_path`.

    Raises:
        WeightsError: nothing is there, or it is not a complete model.
    """
    path = resolve_model_path(name)
    return SingleFileSource(path) if path.is_file() else FolderSource(path)
