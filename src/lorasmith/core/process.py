"""Who a process is: on which machine it runs, since which start of it, and whether it is alive."""

import os
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class ProcessIdentity:
    """A process, told apart from every other on this machine and on others."""

    host: str
    """The machine's name."""
    boot: str
    """Identifies the start of its system; empty where that is not known."""
    namespace: str
    """Of its process number: containers count anew. Empty where there is no such thing."""
    pid: int
    start: str
    """When it was started: numbers of processes are used again. Empty where that is not known."""

    @classmethod
    def current(cls) -> "ProcessIdentity":
        """Return this process."""
        pid = os.getpid()
        start = _process_start(pid) or ""
        return cls(socket.gethostname(), _boot_id(), _pid_namespace(), pid, start)

    def is_on_this_system(self) -> bool:
        """Return whether it ran on this machine since its last start, in any container."""
        here = ProcessIdentity.current()
        if self.boot and here.boot:
            return self.boot == here.boot
        return self.host == here.host

    def is_before_restart(self) -> bool:
        """Return whether a machine of this one's name has been started again since."""
        here = ProcessIdentity.current()
        return self.host == here.host and bool(self.boot and here.boot) and self.boot != here.boot

    def is_alive(self) -> bool | None:
        """Return whether it still runs; None where that cannot be seen from here."""
        if not self.is_on_this_system() or self.namespace != _pid_namespace():
            return None
        start = _process_start(self.pid)
        if start is None:
            return False
        return start == self.start or not (start and self.start)


@cache
def _boot_id() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


@cache
def _pid_namespace() -> str:
    with suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return ""


def _process_start(pid: int) -> str | None:
    """Return when a process was started, as text; None if there is no such process."""
    if sys.platform == "linux":
        # psutil's times on Linux follow changes of the clock; these count from the boot.
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    import psutil

    try:
        return str(round(psutil.Process(pid).create_time()))
    except psutil.NoSuchProcess:
        return None
    except psutil.Error:
        return ""
