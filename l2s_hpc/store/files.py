"""Durable writes: a file is there whole, on disk, or not at all.

The order is always: temporary file beside the target, fsync, link or rename, fsync of the
directory. `link` fails if the name exists, also on NFS, and so decides between two writers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from l2s_hpc.errors import DamageError


def write_durably(path: Path, write: Callable[[Path], None]) -> None:
    """Make or replace `path`: `write(temporary)` fills it, then it appears at once, on disk."""
    with _temporary(path) as temporary:
        write(temporary)
        _fsync(temporary)
        temporary.replace(path)
    _fsync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, durably; the order of keys is kept: it means something."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    write_durably(path, lambda temporary: _write_text(temporary, text + "\n"))


def create_json(path: Path, value: Any) -> bool:
    """Create a JSON file unless the name is taken; return whether this call created it.

    After `link` the temporary file's link count decides, because NFS can report the failure of a
    link that succeeded.
    """
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    with _temporary(path) as temporary:
        _write_text(temporary, text + "\n")
        _fsync(temporary)
        created = _link(temporary, path)
    if created:
        _fsync(path.parent)
    return created


def link_durably(source: Path, target: Path) -> None:
    """Give a finished file a second name; a name that is already there is replaced.

    Where the file system knows no hard links the bytes are copied.
    """

    def link_or_copy(temporary: Path) -> None:
        temporary.unlink()
        try:
            temporary.hardlink_to(source)
        except OSError:
            if not temporary.exists():
                temporary.write_bytes(source.read_bytes())

    # Replacing one link of a file by another of the same file is a no-op that leaves both.
    if target.exists() and target.samefile(source):
        return
    write_durably(target, link_or_copy)


def read_json(path: Path) -> Any:
    """Read a JSON file; text that is not JSON is a `DamageError` that names the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DamageError(f"not valid JSON: {error}", path=path) from error


def sha256_file(path: Path) -> str:
    """Return the sha256 of a whole file in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def move_to_quarantine(path: Path, quarantine: Path) -> Path:
    """Move a damaged file or folder out of the way, under a new name that says where it stood.

    What is not there, because another process was faster, is left alone.
    """
    quarantine.mkdir(parents=True, exist_ok=True)
    target = quarantined(path, quarantine)
    with contextlib.suppress(FileNotFoundError):
        path.rename(target)
    _fsync(quarantine)
    return target


def quarantined(path: Path, quarantine: Path) -> Path:
    """Return a new name in the quarantine that says where a file stood."""
    return quarantine / f"{'-'.join(path.parts[-4:])}.{secrets.token_hex(4)}"


def remove_durably(files: Iterable[Path]) -> None:
    """Remove files that may be gone already, then the folders that are empty without them."""
    folders = set()
    for path in files:
        path.unlink(missing_ok=True)
        folders.add(path.parent)
    for folder in sorted(folders, key=lambda folder: -len(folder.parts)):
        # A folder that is not empty, or that another process has removed, stays as it is.
        with contextlib.suppress(OSError):
            folder.rmdir()
        if folder.parent.exists():
            _fsync(folder if folder.exists() else folder.parent)


def remove_empty(folder: Path) -> None:
    """Remove a folder and those in it, as far as they hold no file."""
    below = [path for path in folder.rglob("*") if path.is_dir()] if folder.is_dir() else []
    for path in [*sorted(below, reverse=True), folder]:
        with contextlib.suppress(OSError):
            path.rmdir()


def remove_stale_temporaries(folder: Path) -> None:
    """Remove temporary files that dead writers of this host left under a folder."""
    ours = re.compile(rf"\.{re.escape(_HOST)}\.(\d+)\.[0-9a-f]+\.tmp")
    for path in folder.rglob(".*.tmp"):
        match = ours.fullmatch(path.name)
        if match and not process_start(int(match[1])):
            path.unlink(missing_ok=True)


def process_start(pid: int) -> str:
    """Return the kernel's start time of a process of this host, or nothing if there is none.

    Where the kernel shows no processes as files (macOS) it is the word `alive` for each of them.
    """
    if not (_PROCESSES / "self").exists():
        return "alive" if _alive(pid) else ""
    try:
        text = (_PROCESSES / str(pid) / "stat").read_text(encoding="utf-8")
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[19]


_HOST = socket.gethostname()
_PROCESSES = Path("/proc")


def _alive(pid: int) -> bool:
    """Ask the kernel whether there is a process, which it says of other users' too."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """Give an empty temporary file beside the target, and remove it if it is left over."""
    _make_folder(target.parent)
    path = target.parent / f".{_HOST}.{os.getpid()}.{secrets.token_hex(6)}.tmp"
    try:
        path.touch()
        yield path
    finally:
        path.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    """Make a folder durably: its name must survive as surely as the files in it."""
    if not folder.exists():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _fsync(folder.parent)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _link(temporary: Path, path: Path) -> bool:
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        return temporary.stat().st_nlink == 2
    except OSError:
        if temporary.stat().st_nlink != 2:
            raise
    return True


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
