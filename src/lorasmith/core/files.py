"""Writing files and folders atomically, and hashing files."""

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from lorasmith.core.errors import OutputError

TEMPORARY_PREFIX = ".lorasmith-tmp-"
_TEMPORARY_NAME = re.compile(rf"{re.escape(TEMPORARY_PREFIX)}[0-9a-f]+-(.+)", re.DOTALL)
_TOKEN_BYTES = 8
"""Of a temporary file's name: enough that nobody can have put something there before."""
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_SYNC_MODE = os.O_RDWR if os.name == "nt" else os.O_RDONLY


def temporary_path(path: Path) -> Path:
    """Return a path beside ``path``, with a name that cannot be guessed, for writing it."""
    return path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(_TOKEN_BYTES)}-{path.name}")


def temporary_target(path: Path) -> str | None:
    """Return the name of the file that a temporary file becomes; None if it is no such file."""
    match = _TEMPORARY_NAME.fullmatch(path.name)
    return match[1] if match else None


def remove_temporary_files(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left half-written in a folder; links are not followed.

    Only for folders that no other process writes to: its lock must be held.

    Args:
        folder: may be missing.
        name: only what would have become this file or folder; None for all.

    Raises:
        OSError: one cannot be removed.
    """
    if not folder.is_dir():
        return
    for path in list(folder.iterdir()):
        target = temporary_target(path)
        if target is None or name not in (None, target):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


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

    The temporary file is created under a name that cannot be guessed and never through a link. On
    failure it is removed and ``path`` is left unchanged.

    Raises:
        OSError: the disk refused, or the temporary file has become something else.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | _NO_FOLLOW, 0o666)
    mode = stat.S_IMODE(os.fstat(descriptor).st_mode)  # by the user's umask
    os.close(descriptor)
    try:
        yield temporary
        _finish_file(temporary, mode)
        temporary.replace(path)
        fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _finish_file(path: Path, mode: int) -> None:
    """Set a file's permissions (safetensors creates files with 0600) and sync it to the disk.

    Raises:
        OSError: it is a link or no file.
    """
    descriptor = os.open(path, _SYNC_MODE | _NO_FOLLOW)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "the temporary file was replaced", str(path))
        if hasattr(os, "fchmod"):
            os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_not_existing(path: Path) -> None:
    """Refuse to write where something is, or where a run is going to write its LoRA.

    Raises:
        OutputError: there is a file or a folder, or the folder of a run of that name.
    """
    if path.exists() or path.is_symlink():
        raise OutputError(f"{path}: something is there already; choose another name")
    run_folder = path.with_name(path.name.removesuffix(".safetensors"))
    if run_folder != path and (run_folder / "run.toml").exists():
        raise OutputError(
            f"{path}: the run in {run_folder} writes this file, also when it is resumed; "
            "choose another name"
        )


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``folder``, which takes its name if the block succeeds.

    Raises:
        OutputError: the disk refused.
    """
    temporary = temporary_path(folder)
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()  # refuses what is there, links too
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
    descriptor = os.open(path, _SYNC_MODE)
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
