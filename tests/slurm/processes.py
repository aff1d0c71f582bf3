"""The processes of a test cluster, and how to find, start and end them without a mistake."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LOOPBACK: Final = "127.0.0.1"
POLL: Final = 0.1  # seconds between two looks
TERM_GRACE: Final = 5.0  # seconds between SIGTERM and SIGKILL
# Debian keeps daemons where an ordinary user's PATH does not look.
SEARCH_PATH: Final = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


class ClusterError(RuntimeError):
    """The cluster did not do what was asked; the message carries the evidence."""


@dataclass(frozen=True)
class Process:
    """A process, told apart from a later one with the same pid by its kernel start time."""

    pid: int
    start: int  # clock ticks after boot

    @classmethod
    def find(cls, pid: int) -> Process | None:
        """The live process with this pid; a zombie is not alive."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        fields = stat.rpartition(")")[2].split()  # the name before it may hold spaces and ")"
        return None if fields[0] in "ZX" else cls(pid, int(fields[19]))

    def alive(self) -> bool:
        return Process.find(self.pid) == self

    def stopped(self) -> bool:
        """Whether all its threads stand still; SIGSTOP waits for what they ask of the kernel."""
        try:
            stats = [p.read_text("utf-8", "replace") for p in self._folder.glob("task/*/stat")]
        except OSError:  # a thread has ended
            return False
        return self.alive() and {s.rpartition(")")[2].split()[0] for s in stats} == {"T"}

    @property
    def _folder(self) -> Path:
        return Path("/proc", str(self.pid))

    def send(self, signum: signal.Signals) -> None:
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)


def kill(processes: Collection[Process]) -> None:
    """SIGKILL; returns when all are gone."""
    for process in processes:
        process.send(signal.SIGKILL)
    while any(p.alive() for p in processes):  # nobody can refuse, it only takes a moment
        time.sleep(POLL / 5)


class Daemon:
    """A child process in a session of its own; what it prints is kept in `log`."""

    def __init__(self, name: str, argv: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        program = shutil.which(argv[0], path=SEARCH_PATH)
        if program is None:
            raise ClusterError(f"{argv[0]} is not installed")
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                [program, *argv[1:]],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C in the terminal is for pytest alone
            )

    @property
    def pid(self) -> int:
        return self._child.pid

    def check(self) -> None:
        """Raises ClusterError, with the end of its log, if the daemon has died."""
        status = self._child.poll()
        if status is not None:
            raise ClusterError(f"{self.name} died, exit {status}:\n{tail(self.log)}")

    def stop(self, *, grace: float = TERM_GRACE) -> None:
        """SIGTERM, `grace` seconds to comply, SIGKILL; returns when it is gone.  0: no SIGTERM."""
        if grace:
            self._child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(grace)
        self._child.kill()  # no signal if it is gone: until wait() its pid is nobody else's
        self._child.wait()


def tail(log: Path, lines: int = 20) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def reserve_port() -> socket.socket:
    """A port of 127.0.0.1 that only a daemon of ours gets, for as long as the socket is open.

    The reservation never listens, and it allows address reuse *after* its bind(0): Slurm, which
    asks for reuse, may listen there, while the kernel gives the port to nobody else's bind(0) or
    connect(), not even while a killed daemon is away.
    """
    reservation = socket.socket()
    reservation.bind((LOOPBACK, 0))
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return reservation


def open_files(pid: int) -> Iterator[str]:
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed since
            yield str(entry.readlink())


def variables(pid: int) -> set[bytes]:
    """The environment that a process was started with; empty if it has ended or is not ours."""
    with contextlib.suppress(OSError):
        return set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    return set()
