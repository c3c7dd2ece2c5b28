"""Two connected processes on the CPU, as ``accelerate launch`` would start them."""

import os
import socket
import sys
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

import torch

_TIMEOUT = 200
"""Seconds."""


def in_two_processes(
    work: Callable[..., int], *arguments: Any, start_method: str = "spawn"
) -> list[int | None]:
    """Call ``work(*arguments)`` in both and return their exit codes, which are its results.

    ``fork`` starts at once, but only suits work that needs none of the parent's threads.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = [
        get_context(start_method).Process(
            target=_run_process, args=(rank, port, work, arguments), daemon=True
        )
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(_TIMEOUT)
    return [worker.exitcode for worker in workers]


def _run_process(
    rank: int, port: int, work: Callable[..., int], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    sys.exit(work(*arguments))
