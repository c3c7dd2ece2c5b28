"""Two processes on the CPU that know of each other, as ``accelerate launch`` would start them."""

import os
import socket
import sys
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

import torch

_PATIENCE = 200
"""Seconds."""


def in_two_processes(work: Callable[..., int], *given: Any) -> list[int | None]:
    """Do the same in both and return their exit codes: what ``work`` returns for ``given``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = [
        get_context("spawn").Process(target=_one, args=(rank, port, work, given), daemon=True)
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(_PATIENCE)
    return [worker.exitcode for worker in workers]


def _one(rank: int, port: int, work: Callable[..., int], given: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    sys.exit(work(*given))
