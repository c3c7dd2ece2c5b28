"""Suppressing the log messages and progress bars of diffusers and transformers."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

# diffusers imports bitsandbytes where it is installed, which says what it could not load.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@contextmanager
def suppress_logs() -> Iterator[None]:
    """Suppress progress bars and warnings of the libraries while the block runs."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = [
        lib for lib in (diffusers_logging, transformers_logging) if lib.is_progress_bar_enabled()
    ]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for library in libraries:
            library.enable_progress_bar()
