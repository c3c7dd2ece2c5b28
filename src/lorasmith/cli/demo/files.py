"""The files of an earlier demo."""

import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorasmith.runs.paths import RunPaths


def clear_previous(paths: "RunPaths") -> None:
    """Remove the LoRA of an earlier demo and its run's files; anything else is left alone.

    Raises:
        LockedError: another demo is writing them.
    """
    from lorasmith.runs.run_lock import lock_runs

    files = [
        paths.lora, paths.settings, paths.log, paths.crops, paths.summary, paths.report,
        paths.best_lora,
    ]  # fmt: skip
    with lock_runs([paths]):
        for file in files:
            file.unlink(missing_ok=True)
        for folder in (paths.checkpoints, paths.previews, paths.folder / "tensorboard"):
            shutil.rmtree(folder, ignore_errors=True)
