"""The lock of a run: while it writes its folder and its LoRA, no other run does."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lorasmith.core.file_lock import HEARTBEAT_SECONDS, FileLock
from lorasmith.loops.distributed import call_on_main
from lorasmith.runs.paths import RunPaths, cannot_write_folder

if TYPE_CHECKING:
    from accelerate import Accelerator

LOCK_NAME = "run.lock"
"""The lock file in a run's folder."""
_ADVICE = "wait for it to end, stop it, or choose another"


class RunLock:
    """The locks of a run's folders and files; in processes that do not write it has none."""

    def __init__(self, locks: Sequence[FileLock] = ()) -> None:
        self._locks = list(locks)
        self._new_folders: list[Path] = []
        self._is_over = threading.Event()

    def acquire(self, break_lock: bool) -> None:
        """Take all locks or none.

        Raises:
            LockedError: another run has one, or may have one.
            OutputError: a folder cannot be written.
        """
        folders = {parent for lock in self._locks for parent in lock.path.parents}
        self._new_folders = sorted(folder for folder in folders if not folder.exists())
        for lock in self._locks:
            try:
                lock.acquire(break_lock)
            except OSError as error:
                raise cannot_write_folder(lock.path.parent, error) from error
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        while not self._is_over.wait(HEARTBEAT_SECONDS):
            for lock in self._locks:
                lock.beat()

    def check(self) -> None:
        """Check that no other run has taken a lock over; call this before results are written.

        Raises:
            LockedError: one has.
            OutputError: a folder cannot be written.
        """
        for lock in self._locks:
            try:
                lock.verify()
            except OSError as error:
                raise cannot_write_folder(lock.path.parent, error) from error

    def release(self) -> None:
        """Give all locks back; remove folders that have stayed empty."""
        self._is_over.set()
        for lock in self._locks:
            lock.release()
        for folder in reversed(self._new_folders):
            with suppress(OSError):  # something is in it
                folder.rmdir()


def has_lock_file(run: RunPaths) -> bool:
    """Return whether a run holds its lock, or was killed while it did.

    Without one, what a new run must not overwrite can be looked at before anything is written.
    """
    return (run.folder / LOCK_NAME).exists()


@contextmanager
def lock_runs(
    runs: Sequence[RunPaths],
    accelerator: "Accelerator | None" = None,
    is_new: bool = False,
    break_lock: bool = False,
) -> Iterator[RunLock]:
    """Hold the locks of runs and of the LoRA files that they write.

    Args:
        runs: the run, followed by each LoRA's if it trains several.
        accelerator: its main process holds the locks, the others wait until it does; None for
            a process that is alone.
        is_new: False for a run that is resumed.
        break_lock: take over locks that other machines did not renew for long.

    Raises:
        LockedError: another run writes here.
        OutputError: the name is taken, or a folder cannot be written.
    """
    if is_new:
        runs[0].check_place()
    subjects: dict[Path, Path] = {}
    for run in runs:
        subjects[run.folder / LOCK_NAME] = run.folder
        subjects[run.lora.parent / f".{run.name}.lock"] = run.lora
    locks = [FileLock(path, subject, f"{_ADVICE} --out") for path, subject in subjects.items()]
    with _hold(locks, accelerator, break_lock) as lock:
        yield lock


@contextmanager
def lock_folder(
    folder: Path, option: str, accelerator: "Accelerator", break_lock: bool
) -> Iterator[RunLock]:
    """Hold the lock of a folder that a run without a LoRA writes.

    Args:
        folder: the folder.
        option: what chooses it, for messages.
        accelerator: as of `lock_runs`.
        break_lock: as of `lock_runs`.

    Raises:
        LockedError, OutputError: as from `lock_runs`.
    """
    locks = [FileLock(folder / LOCK_NAME, folder, f"{_ADVICE} {option}")]
    with _hold(locks, accelerator, break_lock) as lock:
        yield lock


@contextmanager
def _hold(
    locks: Sequence[FileLock], accelerator: "Accelerator | None", break_lock: bool
) -> Iterator[RunLock]:
    run_lock = RunLock(locks if accelerator is None or accelerator.is_main_process else ())
    try:
        if accelerator is None:
            run_lock.acquire(break_lock)
        else:
            call_on_main(accelerator, lambda: run_lock.acquire(break_lock))
        yield run_lock
    finally:
        run_lock.release()
