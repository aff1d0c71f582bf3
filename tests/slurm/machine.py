"""Faults of the machine around Slurm: a disk that is full or read-only, another login node.

All of them need root with the right to mount: see `may_mount`.
"""

from __future__ import annotations

import contextlib
import errno
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from .processes import POLL, ClusterError

BUSY_WAIT = 60.0  # seconds for which others may keep the disk busy
BALLAST = ".ballast"


def may_mount() -> bool:
    """Whether this process may mount a file system and set a hostname of its own."""
    probe = ["unshare", "--mount", "--uts", "true"]
    with contextlib.suppress(FileNotFoundError):
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0
    return False


def on_host(hostname: str, argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` as if on another login node, with the same files.

    Only the hostname is another: the processes of both hosts see each other by their pids.
    """
    rename = 'hostname "$0" && exec "$@"'
    return ["unshare", "--uts", "sh", "-c", rename, hostname, *argv]


class SmallDisk:
    """A tmpfs from `with` to the end of the block, unmounted whatever happens.

        with SmallDisk(tmp_path / "disk", size="8M") as disk:
            disk.fill()

    Jobs of a cluster that this process has started see it too.

    Args:
        folder: where to mount it; created if need be.
        size: as mount(8) takes it, such as "8M".
    """

    def __init__(self, folder: Path, size: str = "8M") -> None:
        self.folder = folder.resolve()
        self.size = size

    def __enter__(self) -> SmallDisk:
        self.folder.mkdir(parents=True, exist_ok=True)
        _run("mount", "-t", "tmpfs", "-o", f"size={self.size}", "tmpfs", str(self.folder))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            _run("umount", str(self.folder))
        except ClusterError:  # somebody has a file open; it leaves the tree now, the kernel later
            _run("umount", "--lazy", str(self.folder))

    def fill(self) -> None:
        """Leaves no byte free: who writes gets "No space left on device".

        As on most disks, an empty file can still be made, a file renamed, and the last 4 KiB block
        of a file written to its end; so a text may be cut short.
        """
        with (self.folder / BALLAST).open("ab", buffering=0) as ballast:
            while True:
                try:
                    ballast.write(bytes(2**16))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    return

    def free(self) -> None:
        """Gives back the room that `fill` took."""
        (self.folder / BALLAST).unlink(missing_ok=True)

    def read_only(self) -> None:
        """Who writes gets "Read-only file system".

        Raises:
            ClusterError: somebody keeps a file open for writing; the kernel refuses then.
        """
        deadline = time.monotonic() + BUSY_WAIT
        while True:
            try:
                return _run("mount", "-o", "remount,ro", str(self.folder))
            except ClusterError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL / 10)

    def writable(self) -> None:
        """Ends `read_only`."""
        _run("mount", "-o", "remount,rw", str(self.folder))


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"{' '.join(argv)}: exit {done.returncode}\n{done.stderr}")
