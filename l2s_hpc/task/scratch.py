"""What the tasks of a node share on its own disk: verified copies of the parents, vLLM's cache.

All of it lies in `<scratch>/l2s-<uid>/`, which nobody but its user can read or change. A copy is
`parents/<weights>-<other files>/`, both parts a hash of what is in it; `complete.json`, written
last, says that it is whole, and its time says when it was last used.

Nobody waits for a copy: who finds none reads the originals, and copies them in the background for
those who come after; one task of a node at a time. Two locks guard this, which the kernel releases
when a task dies. Who copies or sweeps holds `.lock`; who uses a copy shares its `complete.json`,
and only who has that alone removes the copy. Whatever is found wrong here, the originals and vLLM's
own cache serve: a full or unsafe scratch is passed over. A disk that fills up while vLLM compiles
costs an attempt.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from l2s_hpc.errors import DamageError, L2SError
from l2s_hpc.recipes.models import Model
from l2s_hpc.store.files import read_json, sha256_file, write_json
from l2s_hpc.task.node import own_folder, say

UNUSED_DAYS = 7
"""A copy that no task has used for so long is removed."""

ROOM = 2_000_000_000
"""Bytes that a cache must have, and that copies leave free: compiled code takes some hundred MB for
one architecture and one set of settings, and a node may need several at a time."""

_SEAL, _LOCK = "complete.json", ".lock"
_SMALL = (".json", ".jinja", ".txt", ".model", ".tiktoken")
"""Endings of configs, of the index of weights, and of what tokenizers need."""
_BLOCK = 16 * 2**20
"""Bytes after which a copy reaches the disk, and can be given up: well below a second."""
_LEAVE_SECONDS = 0.9


class _GivenUp(Exception):
    """The task ends before its copy is made."""


def cache_folder(scratch: str, named: str) -> str:
    """Return a safe folder with room for vLLM's compiled code; empty: take vLLM's own.

    vLLM unpickles what it finds there, so that who can write there can run code as this user.

    Args:
        scratch: the site's folder on the node; empty: there is none.
        named: the folder that the site names for this purpose; empty: the scratch.
    """
    if not (scratch or named):
        return ""
    try:
        folder = own_folder(named) if named else _in_scratch(scratch, "vllm")
        free = shutil.disk_usage(folder).free
        if free < ROOM:
            raise _no_room(f"{free / 1e9:.1f} GB are free, {ROOM / 1e9:.1f} GB are needed", folder)
        with tempfile.TemporaryFile(dir=folder):  # a disk may be read-only, or a quota reached
            return str(folder)
    except (OSError, L2SError) as error:
        say(f"warning: vLLM's own cache is used, not {named or scratch}: {_reason(error)}")
        return ""


class Copies:
    """The copies that a task uses, and the thread that makes the missing ones."""

    def __init__(self) -> None:
        self._used = ExitStack()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def near(
        self, models: Mapping[str, Model], scratch: str, identities: Mapping[str, str]
    ) -> dict[str, Model]:
        """Return the models as copies on the node's disk; where there is none yet, as they are.

        Missing copies are begun in the background. A copy is verified in full when it is made: the
        bytes on the disk are read again and hashed. When it is used, sizes, times, the small files
        and the samples of `Model.identity` are compared. Copies that were returned before are no
        longer held for this task.

        Args:
            models: the originals, known to be the run's.
            scratch: the site's folder; `$VARS` and `~` are expanded here; empty: no copies.
            identities: each model's `identity`.
        """
        self._used.close()
        found = dict(models)
        if not scratch:
            return found
        missing: dict[Path, tuple[Model, str]] = {}
        try:
            folder = _in_scratch(scratch, "parents")
        except (OSError, L2SError) as error:
            say(f"warning: no copies of the parents in {scratch}: {_reason(error)}")
            return found
        for name, model in models.items():
            try:
                copy = folder / _key(model, identities[name])
                if self._use(name, copy, identities[name]):
                    found[name] = Model(name, copy)
                else:
                    missing[copy] = model, identities[name]
            except (OSError, L2SError) as error:
                _warn(model, error)
        self._begin(folder, missing)
        return found

    def close(self) -> None:
        """Give up what is not copied yet, and let go of the copies; takes less than a second."""
        self._stop.set()
        if self._thread is not None:
            # A disk that hangs longer holds up nobody: the next task sweeps what is left.
            self._thread.join(_LEAVE_SECONDS)
            self._thread = None
        self._used.close()

    def _use(self, name: str, copy: Path, identity: str) -> bool:
        """Hold a copy until `close`, if it is there and whole."""
        with ExitStack() as held:
            try:
                if not held.enter_context(_locked(copy / _SEAL, fcntl.LOCK_SH)):
                    return False
            except FileNotFoundError:
                return False
            fault = _fault(name, copy, identity)
            if fault:
                say(f"the copy {copy} is damaged ({fault}): it is not used, and made again")
                return False
            os.utime(copy / _SEAL)
            self._used.enter_context(held.pop_all())
        return True

    def _begin(self, folder: Path, missing: Mapping[Path, tuple[Model, str]]) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._stop = threading.Event()
            given = (folder, missing, self._stop)
            self._thread = threading.Thread(target=_bring, args=given, name="copies", daemon=True)
            self._thread.start()


def _bring(folder: Path, missing: Mapping[Path, tuple[Model, str]], stop: threading.Event) -> None:
    """Sweep, and make copies, unless another task does: the outermost frame of a thread."""
    try:
        with _locked(folder / _LOCK, fcntl.LOCK_EX) as ours:
            if not ours:
                if missing:
                    say(f"another task copies to {folder}: this one reads the originals")
                return
            _sweep(folder)
            for copy, (model, identity) in missing.items():
                try:
                    _make(model, copy, identity, stop)
                except (OSError, L2SError) as error:
                    _warn(model, error)
    except _GivenUp:
        say(f"the task ends: not all parents were copied to {folder}")
    except OSError as error:
        say(f"warning: no copies of the parents in {folder}: {_reason(error)}")


def _make(model: Model, copy: Path, identity: str, stop: threading.Event) -> None:
    """Copy a model, or leave nothing behind; who calls this has the lock of the folder."""
    if not _fault(model.name, copy, identity):
        return  # another task was faster
    _remove(copy)
    names = _files(model)
    size = sum((model.folder / name).stat().st_size for name in names)
    if shutil.disk_usage(copy.parent).free < size + ROOM:
        raise _no_room(f"no room for {size / 1e9:.1f} GB and {ROOM / 1e9:.1f} GB beside it", copy)
    say(f"copying '{model.name}' ({size / 1e9:.1f} GB) to {copy}")
    copy.mkdir(mode=0o700)
    try:
        found = {name: _copy(model.folder / name, copy / name, stop) for name in names}
        if Model(model.name, copy).identity != identity:
            raise DamageError("the original changed while it was copied", path=model.folder)
        write_json(copy / _SEAL, {"model": model.name, "files": found})
    finally:
        if not (copy / _SEAL).exists():
            shutil.rmtree(copy, ignore_errors=True)


def _copy(source: Path, target: Path, stop: threading.Event) -> dict[str, Any]:
    """Copy a file, read the copy back from the disk, and return what it is."""
    written, read = hashlib.sha256(), hashlib.sha256()
    with source.open("rb") as original, target.open("xb", buffering=0) as copy:
        for block in _blocks(original, stop):
            written.update(block)
            rest = memoryview(block)
            while rest:
                rest = rest[copy.write(rest) :]
            os.fdatasync(copy.fileno())  # all at once at the end would take long on a slow disk
        os.fsync(copy.fileno())
        os.posix_fadvise(copy.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with target.open("rb") as copied:
        for block in _blocks(copied, stop):
            read.update(block)
    if read.digest() != written.digest():
        raise DamageError("the disk gives back other bytes than were written", path=target)
    return {"sha256": read.hexdigest(), **_size_and_time(target)}


def _blocks(file: BinaryIO, stop: threading.Event) -> Iterator[bytes]:
    while block := file.read(_BLOCK):
        if stop.is_set():
            raise _GivenUp
        yield block


def _fault(name: str, copy: Path, identity: str) -> str:
    """Return why a copy cannot be used; empty: it is there, whole and as it was made."""
    try:
        files = read_json(copy / _SEAL)["files"]
        for file, expected in files.items():
            found = {"sha256": expected["sha256"], **_size_and_time(copy / file)}
            if Path(file).name != file or found != expected:
                return str(file)
        model = Model(name, copy)
        same = model.identity == identity and _key(model, identity) == copy.name
        return "" if same else "its contents"
    except (OSError, L2SError, KeyError, TypeError, AttributeError) as error:
        return str(error)


def _sweep(folder: Path) -> None:
    """Remove what crashed tasks left, and copies that were not used for `UNUSED_DAYS`.

    Whoever calls this has the lock, so that a copy without its seal is nobody's.
    """
    oldest = time.time() - UNUSED_DAYS * 86_400
    for copy in folder.iterdir():
        seal = copy / _SEAL
        try:
            if copy.name != _LOCK and (not seal.is_file() or seal.stat().st_mtime < oldest):
                _remove(copy)
        except OSError as error:
            say(f"warning: {copy} cannot be removed: {_reason(error)}")


def _remove(copy: Path) -> None:
    """Remove a copy, its seal first: a kill in between leaves what the next task sweeps.

    What a task has open would outlive this, but it looks after the files by their names.

    Raises:
        OSError: a task uses it, or it cannot be removed.
    """
    if copy.is_symlink() or copy.is_file():
        copy.unlink()
    elif copy.exists():
        seal = copy / _SEAL
        if seal.is_file():
            with _locked(seal, fcntl.LOCK_EX) as ours:
                if not ours:
                    raise OSError(errno.EBUSY, "another task uses it", str(copy))
                seal.unlink()
        shutil.rmtree(copy)


def _key(model: Model, identity: str) -> str:
    """Return the name of a model's copy: the identity speaks of its weights alone."""
    if not re.fullmatch(r"[0-9a-f]{16}", identity):
        raise DamageError(f"{identity!r} is no identity of weights", path=model.folder)
    digest = hashlib.sha256()
    for name in _small_files(model):
        digest.update(f"{len(name)} {name} {sha256_file(model.folder / name)}\n".encode())
    return f"{identity}-{digest.hexdigest()[:16]}"


def _files(model: Model) -> list[str]:
    weights = {tensor.file.name for tensor in model.tensors.values()}
    return sorted(weights.union(_small_files(model)))


def _small_files(model: Model) -> list[str]:
    return sorted(
        path.name
        for path in model.folder.iterdir()
        if path.suffix in _SMALL and path.name != _SEAL and path.is_file()
    )


def _size_and_time(path: Path) -> dict[str, int]:
    found = path.lstat()
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns}


def _in_scratch(scratch: str, name: str) -> Path:
    """Return a folder for one purpose, in this user's own folder of the scratch."""
    folder = own_folder(scratch, f"l2s-{os.geteuid()}") / name
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@contextmanager
def _locked(path: Path, how: int) -> Iterator[bool]:
    """Hold the lock of a file, shared or alone, if it can be had at once; give whether it was.

    The folder's own is made if need be; any other one must be there, and still be so afterwards.
    """
    made = os.O_CREAT if path.name == _LOCK else 0
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | made, 0o600)
    try:
        yield _try_lock(descriptor, how) and os.path.samestat(os.fstat(descriptor), path.stat())
    finally:
        # Closing is not enough where a child was forked meanwhile.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _try_lock(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _no_room(text: str, path: Path) -> OSError:
    return OSError(errno.ENOSPC, text, str(path))


def _warn(model: Model, error: OSError | L2SError) -> None:
    say(
        f"warning: no copy of '{model.name}' is made: {_reason(error)}; it is read from "
        f"{model.folder}"
    )


def _reason(error: OSError | L2SError) -> str:
    return str(error.strerror or error) if isinstance(error, OSError) else str(error)
