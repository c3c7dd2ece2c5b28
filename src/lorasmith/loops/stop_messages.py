"""What is said about a run that ends early: what is saved, and how to resume."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lorasmith.core.errors import OutputError
from lorasmith.core.file_lock import LockedError
from lorasmith.core.signals import StoppedBySignal
from lorasmith.loops.checkpoint import list_checkpoints


class Interrupted(StoppedBySignal):
    """The run was stopped by a signal, after a checkpoint was saved."""


@contextmanager
def explain_interruption(folder: Path, checkpoints: Path, resume_hint: str) -> Iterator[None]:
    """Say what is saved, and how to resume, when anything ends a run.

    Args:
        folder: of the run.
        checkpoints: of its checkpoints.
        resume_hint: how to resume, such as ``go on with: COMMAND``.
    """

    def describe() -> str:
        if list_checkpoints(checkpoints):
            return f"{last_checkpoint(checkpoints)} is kept, {resume_hint}"
        return f"{last_checkpoint(checkpoints)} is kept, the same command starts anew"

    try:
        yield
    except (Interrupted, LockedError):
        raise
    except KeyboardInterrupt as error:
        number = getattr(error, "signal_number", StoppedBySignal().signal_number)
        raise StoppedBySignal(f"stopped at once; {describe()}", number) from error
    except OSError as error:
        raise OutputError(
            f"cannot write to {error.filename or folder}: {error.strerror or error}; {describe()}"
        ) from error
    except Exception as error:
        # Most messages about memory and losses name the checkpoint themselves.
        error.add_note(resume_hint if "checkpoint (" in str(error) else describe())
        raise


def last_checkpoint(checkpoints: Path) -> str:
    """Return what messages call the state that a run can be resumed from."""
    saved = list_checkpoints(checkpoints)
    return f"the last checkpoint ({saved[-1].name})" if saved else "the start (no checkpoint yet)"
