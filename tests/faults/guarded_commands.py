"""Run commands in this process and report what they reach for: network, programs, pickles, code.

A script: ``python guarded_commands.py PLAN.json REPORT.json``. The plan holds command lines, or the
names of probes; each is run under an audit hook that refuses what is listed in `FORBIDDEN` and in
`PATCHED`. The report holds the exit status of each and everything that was refused.
"""

import json
import os
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

FORBIDDEN = (
    *("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"),
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork"),
    *("os.forkpty", "pty.spawn", "pickle.find_class", "urllib.Request", "ctypes.dlopen"),
    "webbrowser.open",
)
"""Audit events (docs.python.org/3/library/audit_events.html)."""
PATCHED = ("torch.load", "torch.jit.load", "torch.hub.load", "numpy.load")
CANARY = "evil"
"""Part of every name that stands in a file of the test and could be code."""

refused: list[tuple[str, str]] = []


class ForbiddenError(Exception):
    """Something that a file must not be able to cause."""


def is_forbidden(event: str, arguments: tuple[Any, ...]) -> bool:
    """Tell an event that nothing may cause, or that names something of a file."""
    if event == "ctypes.dlopen":  # libraries of installed packages are loaded all the time
        return arguments[0] is not None and not str(arguments[0]).startswith(INSTALLED)
    return event in FORBIDDEN


INSTALLED = (sys.prefix, sys.base_prefix, "lib", "/usr/lib", "/lib")


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if is_forbidden(event, arguments):
        refused.append((event, str(arguments[:2])[:200]))
        raise ForbiddenError(event)


class NoSuchModules(MetaPathFinder):
    """Refuses to look for modules whose names stand in a file."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        """Refuse a module, or leave it to the other finders."""
        if CANARY in fullname:
            refused.append(("import", fullname))
            raise ForbiddenError(fullname)


def patch(name: str) -> None:
    """Let a function raise."""
    from importlib import import_module

    path, _, function = name.rpartition(".")

    def raise_error(*arguments: Any, **_: Any) -> None:
        refused.append((name, str(arguments)[:200]))
        raise ForbiddenError(name)

    setattr(import_module(path), function, raise_error)


def probe_socket() -> None:
    import socket

    socket.create_connection(("127.0.0.1", 9), timeout=1)


def probe_program() -> None:
    import subprocess

    subprocess.run(["true"], check=True)


def probe_system() -> None:
    os.system("true")


def probe_pickle() -> None:
    import pickle

    pickle.loads(pickle.dumps(Path))


def probe_torch() -> None:
    import torch

    torch.load("weights.pt")


def probe_module() -> None:
    from importlib import import_module

    import_module("evil_module")


def probe_library() -> None:
    import ctypes

    ctypes.CDLL("/tmp/evil.so")


PROBES: dict[str, Callable[[], None]] = {
    "socket": probe_socket, "program": probe_program, "system": probe_system,
    "pickle": probe_pickle, "torch": probe_torch, "module": probe_module, "library": probe_library,
}  # fmt: skip


def run_probe(name: str) -> int:
    try:
        PROBES[name]()
    except ForbiddenError:
        return 1
    return 0


def main() -> None:
    """Run the plan."""
    plan, report = map(Path, sys.argv[1:])
    from lorasmith.cli.app import run

    for name in PATCHED:
        patch(name)
    sys.meta_path.insert(0, NoSuchModules())
    sys.addaudithook(refuse)
    results = []
    for step in json.loads(plan.read_text()):
        refused.clear()
        status = run_probe(step) if isinstance(step, str) else run(step)
        results.append({"status": status, "refused": list(refused)})
    report.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
