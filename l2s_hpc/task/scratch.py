"""A verified copy of the parents on the node's own disk, which the tasks of the node share.

A copy lies in `<scratch>/l2s-parents/<weights>-<other files>/`, both parts a hash of what is in it;
`complete.json`, written last, says that it is whole, and its time says when it was last used. One
task copies at a time and the others wait; the kernel releases the lock of a task that dies.
Whatever goes wrong here, the originals are read instead: a full scratch fails no candidate.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from l2s_hpc.errors import DamageError, L2SError
from l2s_hpc.recipes.models import Model
from l2s_hpc.store.files import read_json, sha256_file, write_json
from l2s_hpc.task.node import node_path, say

UNUSED_DAYS = 7
"""A copy that no task has used for so long is removed."""

_FOLDER, _SEAL, _LOCK = "l2s-parents", "complete.json", ".lock"
_SMALL = (".json", ".jinja", ".txt", ".model", ".tiktoken")
"""Endings of configs, of the index of weights, and of what tokenizers need."""
_PATIENCE_SECONDS = 900.0
_BLOCK = 8 * 2**20
_THREADS = 4


def near(
    models: Mapping[str, Model], scratch: str, identities: Mapping[str, str]
) -> dict[str, Model]:
    """Return the models as copies on the node's disk; where there can be none, as they are.

    A copy is verified in full when it is made: the bytes on the disk are read again and hashed.
    When it is used, sizes, times, the small files and the samples of `Model.identity` are compared.

    Args:
        models: the originals, known to be the run's.
        scratch: the site's folder; `$VARS` and `~` are expanded here; empty: no copies.
        identities: each model's `identity`.
    """
    if not scratch:
        return dict(models)
    try:
        folder = _open_folder(scratch)
        with _locked(folder, _PATIENCE_SECONDS):
            _sweep(folder)
            return {name: _near(m, folder, identities[name]) for name, m in models.items()}
    except (OSError, L2SError) as error:
        say(f"warning: no copies of the parents in {scratch}: {_reason(error)}")
        return dict(models)


def sweep(scratch: str) -> None:
    """Remove what crashed tasks left, and copies that were not used for `UNUSED_DAYS`.

    While a task copies, nothing is done; what cannot be removed is left.
    """
    try:
        folder = _open_folder(scratch)
        with _locked(folder, 0):
            _sweep(folder)
    except (OSError, L2SError) as error:
        say(f"warning: {scratch} was not swept: {_reason(error)}")


def _near(model: Model, folder: Path, identity: str) -> Model:
    try:
        copy = folder / _key(model, identity)
        if not _whole(model.name, copy, identity):
            _remove(copy)
            _make(model, copy, identity)
        os.utime(copy / _SEAL)
        return Model(model.name, copy)
    except (OSError, L2SError) as error:
        say(
            f"warning: no copy of '{model.name}' in {folder}: {_reason(error)}; "
            f"it is read from {model.folder}"
        )
        return model


def _make(model: Model, copy: Path, identity: str) -> None:
    """Copy a model, or leave nothing behind."""
    names = _files(model)
    size = sum((model.folder / name).stat().st_size for name in names)
    if shutil.disk_usage(copy.parent).free < size:
        raise OSError(errno.ENOSPC, f"no room for {size / 1e9:.1f} GB", str(copy.parent))
    say(f"copying '{model.name}' ({size / 1e9:.1f} GB) to {copy}")
    copy.mkdir(mode=0o700)
    try:
        found = _each(names, lambda name, ended: _copy(model.folder / name, copy / name, ended))
        if Model(model.name, copy).identity != identity:
            raise DamageError("the original changed while it was copied", path=model.folder)
        write_json(copy / _SEAL, {"model": model.name, "files": found})
    finally:
        if not (copy / _SEAL).exists():
            shutil.rmtree(copy, ignore_errors=True)


def _each(
    names: Collection[str], do: Callable[[str, threading.Event], dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Do it for all names with some threads; the first failure, or a signal, ends the others."""
    ended = threading.Event()
    with ThreadPoolExecutor(_THREADS, "copy") as pool:
        try:
            tasks = {name: pool.submit(do, name, ended) for name in names}
            return {name: task.result() for name, task in tasks.items()}
        finally:
            ended.set()


def _copy(source: Path, target: Path, ended: threading.Event) -> dict[str, Any]:
    """Copy a file, read the copy back from the disk, and return what it is."""
    digest = hashlib.sha256()
    with source.open("rb") as original, target.open("xb") as copy:
        while block := original.read(_BLOCK):
            if ended.is_set():
                raise OSError(errno.ECANCELED, "given up", str(target))
            digest.update(block)
            copy.write(block)
        copy.flush()
        os.fsync(copy.fileno())
        os.posix_fadvise(copy.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if sha256_file(target) != digest.hexdigest():
        raise DamageError("the disk gives back other bytes than were written", path=target)
    return {"sha256": digest.hexdigest(), **_size_and_time(target)}


def _whole(name: str, copy: Path, identity: str) -> bool:
    """Whether a copy is there, whole and as it was made."""
    try:
        files = read_json(copy / _SEAL)["files"]
        for file, expected in files.items():
            found = {"sha256": expected["sha256"], **_size_and_time(copy / file)}
            if Path(file).name != file or found != expected:
                return _damaged(copy, file)
        model = Model(name, copy)
        if model.identity != identity or _key(model, identity) != copy.name:
            return _damaged(copy, "its contents")
    except FileNotFoundError:
        return False
    except (OSError, L2SError, KeyError, TypeError, AttributeError) as error:
        return _damaged(copy, str(error))
    return True


def _damaged(copy: Path, what: str) -> bool:
    say(f"the copy {copy} is damaged ({what}); it is made again")
    return False


def _sweep(folder: Path) -> None:
    """Whoever calls this has the lock, so that a copy without its seal is nobody's."""
    oldest = time.time() - UNUSED_DAYS * 86_400
    for copy in folder.iterdir():
        seal = copy / _SEAL
        try:
            if copy.name != _LOCK and (not seal.is_file() or seal.stat().st_mtime < oldest):
                _remove(copy)
        except OSError as error:
            say(f"warning: {copy} cannot be removed: {_reason(error)}")


def _remove(copy: Path) -> None:
    """Remove a copy, its seal first: a kill in between leaves what the next task sweeps."""
    if copy.is_symlink() or copy.is_file():
        copy.unlink()
    elif copy.exists():
        (copy / _SEAL).unlink(missing_ok=True)
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


def _open_folder(scratch: str) -> Path:
    """Return the folder of the copies, made if need be; only its owner may write there."""
    place = node_path(scratch)
    if "$" in str(place) or not place.is_absolute():
        raise DamageError(f"{place} is not an absolute path on this node")
    folder = place / _FOLDER
    place.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise DamageError("others could change what is in it", path=folder)
    return folder


@contextmanager
def _locked(folder: Path, patience: float) -> Iterator[None]:
    """Hold the lock of the copies.

    Raises:
        TimeoutError: another task holds it for longer than `patience`, in seconds.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(folder / _LOCK, flags, 0o600)
    try:
        deadline = time.monotonic() + patience
        waited = False
        while not _try_lock(descriptor):
            if time.monotonic() >= deadline:
                raise TimeoutError(errno.ETIMEDOUT, "another task copies", str(folder))
            if not waited:
                say(f"waiting for another task that copies parents to {folder}")
                waited = True
            time.sleep(0.2)
        yield
    finally:
        # Closing is not enough where a child was forked meanwhile.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _reason(error: OSError | L2SError) -> str:
    return str(error.strerror or error) if isinstance(error, OSError) else str(error)
