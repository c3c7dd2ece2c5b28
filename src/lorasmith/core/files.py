"""Writing files and folders atomically, and hashing files."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from lorasmith.core.errors import OutputError

TEMPORARY_PREFIX = ".lorasmith-tmp-"


def ensure_writable_folder(path: Path) -> Path:
    """Create ``path`` if needed and check that files can be written in it.

    Raises:
        OutputError: it is a file, or cannot be created or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"cannot write to folder {path}: {reason}; choose another --out"
        ) from error
    return path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces ``path`` if the block succeeds, synced to the disk.

    On failure the temporary file is removed and ``path`` is left unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{path.name}")
    temporary.touch()
    mode = temporary.stat().st_mode  # by the user's umask; safetensors creates files with 0600
    try:
        yield temporary
        temporary.chmod(mode)
        fsync_file(temporary)
        temporary.replace(path)
        fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def check_not_existing(path: Path) -> None:
    """Refuse to write where something is.

    Raises:
        OutputError: there is a file or a folder.
    """
    if path.exists() or path.is_symlink():
        raise OutputError(f"{path}: something is there already; choose another --out")


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``folder``, which takes its name if the block succeeds.

    Raises:
        OutputError: the disk refused.
    """
    temporary = folder.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{folder.name}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(folder)
        fsync_folder(folder.parent)
    except (OSError, SafetensorError, shutil.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(f"cannot write {folder}: {reason}; choose another --out") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text with `atomic_write`."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def fsync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_folder(path: Path) -> None:
    """Sync a folder's entries, where the system can (Windows cannot)."""
    if os.name == "nt":
        return
    fsync_file(path)


def sha256_file(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """Return a file's SHA-256 in hex; ``progress`` receives the bytes of each chunk."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
            if progress is not None:
                progress(len(chunk))
    return digest.hexdigest()
