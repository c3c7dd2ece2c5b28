"""An exclusive lock on a file, held by the operating system and by a record beside it.

The system's lock (``flock``, or a locked byte on Windows) ends with its process, whatever happens.
Some network disks do not have it, or only between processes of one machine. So the holder also
writes a record of itself, ``PATH.json``, whose time it renews while it lives (`FileLock.beat`).
Times are compared on the disk's own clock: machines' clocks differ.
"""

import errno
import json
import os
import secrets
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from lorasmith.core.errors import OutputError
from lorasmith.core.files import write_text
from lorasmith.core.process import ProcessIdentity
from lorasmith.core.regular_files import read_regular_file

HEARTBEAT_SECONDS = 15.0
"""How often a holder is to renew the time of its record."""
_SILENCE_SECONDS = 120.0
"""Without a sign of life for this long, a holder on another machine may be dead."""
_LAST_TIME = 2e11
"""Of a record, in seconds since 1970: times after the year 8000 cannot be shown everywhere."""
_MAX_RECORD_BYTES = 2**16
_ATTEMPTS = 50
"""The lock file can be removed by its last holder while it is opened."""
_HELD_ERRORS = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK)
_MISSING_ERRORS = tuple(
    getattr(errno, name) for name in ("ENOSYS", "ENOTSUP", "EOPNOTSUPP", "ENOLCK", "EINVAL")
)


class LockedError(OutputError):
    """Another process holds a lock. The message says who, and since when."""


@dataclass(frozen=True)
class LockRecord:
    """Who holds a lock."""

    token: str
    """Differs for every lock that was ever held."""
    since: Annotated[float, Field(ge=0, le=_LAST_TIME)]
    """In seconds since 1970, by the holder's clock."""
    holder: ProcessIdentity

    @classmethod
    def read(cls, path: Path) -> "LockRecord | None":
        """Read a record; None if there is none or it is damaged."""
        try:
            return TypeAdapter(cls).validate_json(read_regular_file(path, _MAX_RECORD_BYTES))
        except (OSError, ValueError):
            return None

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since, UTC)
        return f"process {self.holder.pid} on {self.holder.host} since {since:%Y-%m-%d %H:%M} UTC"


class FileLock:
    """A lock file, and whether this process holds it."""

    def __init__(self, path: Path, subject: Path, advice: str) -> None:
        """Name a lock.

        Args:
            path: the lock file, whose name ends in ``.lock``.
            subject: what it is the lock of, for messages.
            advice: what to do if it is held, for messages.
        """
        self.path = path
        self._subject = subject
        self._advice = advice
        self._record_path = path.with_name(f"{path.name}.json")
        self._descriptor: int | None = None
        self._token = ""

    def acquire(self, break_lock: bool = False) -> None:
        """Take the lock, or refuse at once. Locks of dead processes are taken over.

        Args:
            break_lock: also take it over from a holder on another machine that gave no sign of
                life for two minutes.

        Raises:
            LockedError: another process holds it, or may hold it.
            OSError: the folder cannot be written.
        """
        descriptor, has_system_lock = self._open_locked(break_lock)
        self._descriptor = descriptor
        try:
            record = LockRecord.read(self._record_path)
            if record is not None:
                self._check_free(record, has_system_lock, break_lock)
            self._write_record()
        except BaseException:
            os.close(descriptor)
            self._descriptor = None
            raise

    def verify(self) -> None:
        """Check that the lock is still this process's; take it again if its files were deleted.

        Raises:
            LockedError: another process has taken it.
            OSError: the folder cannot be written.
        """
        record = LockRecord.read(self._record_path)
        if self._descriptor is not None and _is_same_file(self._descriptor, self.path):
            if record is None:
                self._write_record()
                return
            if record.token == self._token:
                return
        elif not self.path.exists() and record is None:
            self.release()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.acquire()
            return
        raise LockedError(
            f"{self._subject}: {record or 'another run'} has taken it over, so nothing more is "
            f"written; {self._advice}"
        )

    def beat(self) -> None:
        """Renew the time of the record, which tells other machines that the holder lives."""
        with suppress(OSError):  # a disk that is away for a while; `verify` looks closely
            os.utime(self._record_path)

    def release(self) -> None:
        """Give the lock back and remove its files, if they are still this process's."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        with suppress(OSError):
            record = LockRecord.read(self._record_path)
            if record is not None and record.token == self._token:
                self._record_path.unlink()
            if os.name != "nt" and _is_same_file(descriptor, self.path):
                self.path.unlink()  # while it is held: whoever opened it sees that it is gone
        os.close(descriptor)
        if os.name == "nt":
            with suppress(OSError):  # another process has it open
                self.path.unlink()

    # --- details ------------------------------------------------------------------------------

    def _open_locked(self, break_lock: bool) -> tuple[int, bool]:
        """Open and lock the lock file; return its descriptor, and whether the system has locks.

        Raises:
            LockedError: another process holds it.
        """
        flags = os.O_CREAT | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)
        for _ in range(_ATTEMPTS):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(self.path, flags, 0o666)
            except FileNotFoundError:  # the folder was just removed
                continue
            try:
                is_locked = _lock(descriptor)
                if is_locked is False:
                    self._refuse_or_break(break_lock)
                elif _is_same_file(descriptor, self.path):
                    return descriptor, is_locked is True
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
            time.sleep(0.01)
        raise self._locked("another run")

    def _refuse_or_break(self, break_lock: bool) -> None:
        """Refuse a lock that the system says is held, unless it is of a machine that is gone."""
        record = LockRecord.read(self._record_path)
        if record is None or record.holder.is_on_this_system():
            raise self._locked(record or "another run")
        self._check_free(record, False, break_lock)
        self.path.unlink(missing_ok=True)

    def _check_free(self, record: LockRecord, has_system_lock: bool, break_lock: bool) -> None:
        """Refuse if the process of a record may still be alive.

        Raises:
            LockedError: it may.
        """
        holder = record.holder
        if holder.is_on_this_system() and has_system_lock:
            return  # its process is dead: it would still hold the system's lock
        is_alive = holder.is_alive()
        if is_alive is False:
            return
        silence = self._silence()
        if is_alive or silence < _SILENCE_SECONDS:
            raise self._locked(record)
        if not (break_lock or holder.is_before_restart()):
            raise LockedError(
                f"{self._subject} is in use by {record}, which gave no sign of life for "
                f"{silence / 60:.0f} minutes; if it is dead, go on with --break-lock"
            )

    def _locked(self, record: "LockRecord | str") -> LockedError:
        return LockedError(f"{self._subject} is in use by {record}; {self._advice}")

    def _silence(self) -> float:
        """Return the seconds since the last sign of life, by the disk's clock."""
        with tempfile.TemporaryFile(dir=self.path.parent) as probe:
            now = os.fstat(probe.fileno()).st_mtime
        try:
            return now - self._record_path.stat().st_mtime
        except FileNotFoundError:  # just given back
            return float("inf")

    def _write_record(self) -> None:
        self._token = secrets.token_hex(16)
        record = LockRecord(self._token, time.time(), ProcessIdentity.current())
        write_text(self._record_path, json.dumps(asdict(record)) + "\n")


def is_lock_file(path: Path) -> bool:
    """Return whether a file is a lock of this module's or the record of one, by its name."""
    return path.name.removesuffix(".json").endswith(".lock")


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except OSError:
        return False


def _lock(descriptor: int) -> bool | None:
    """Lock an open file; False if another process has, None if the disk has no locks."""
    try:
        _system_lock(descriptor)
    except OSError as error:
        if error.errno in _HELD_ERRORS:
            return False
        if error.errno in _MISSING_ERRORS:
            return None
        raise
    return True


if os.name == "nt":  # pragma: no cover

    def _system_lock(descriptor: int) -> None:
        import msvcrt

        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]

else:

    def _system_lock(descriptor: int) -> None:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
