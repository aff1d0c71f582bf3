"""What nodes wrote for a closed generation, in one file: logs, claims, failed attempts whole."""

from __future__ import annotations

import tarfile
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from l2s_hpc.errors import DamageError
from l2s_hpc.store.files import remove_durably, remove_empty, write_durably
from l2s_hpc.store.layout import RunPaths


def archive(
    paths: RunPaths,
    evaluation: str,
    generation: int,
    folders: Sequence[Path],
    needless: Collection[Path],
) -> None:
    """Put what is in some folders into one archive, named as in the run directory; remove it.

    Args:
        paths: the run.
        evaluation: theirs.
        generation: theirs.
        folders: what is to be removed; a log may be a single file.
        needless: files that are kept elsewhere, and need not be in the archive.

    Raises:
        DamageError: what was written is not what is read from it; nothing is removed.
    """
    files = files_below(folders)
    kept = sorted(set(files) - set(needless))
    if kept:
        path = _next(paths, evaluation, generation)
        write_durably(path, lambda temporary: _write(temporary, paths.folder, kept))
        _compare(path, paths.folder, kept)
    remove_durably(files)
    for folder in folders:
        remove_empty(folder)


def files_below(folders: Iterable[Path]) -> list[Path]:
    """Return all files in folders, and those of the folders that are files themselves."""
    found: list[Path] = []
    for folder in folders:
        if folder.is_dir():
            found += [path for path in folder.rglob("*") if not path.is_dir()]
        elif folder.exists():
            found.append(folder)
    return sorted(found)


def _next(paths: RunPaths, evaluation: str, generation: int) -> Path:
    part = 1
    while paths.archive(evaluation, generation, part).exists():
        part += 1
    return paths.archive(evaluation, generation, part)


def _write(target: Path, folder: Path, files: Iterable[Path]) -> None:
    with tarfile.open(target, "w:gz", format=tarfile.PAX_FORMAT) as archive:
        for path in files:
            archive.add(path, arcname=str(path.relative_to(folder)), recursive=False)


def _compare(path: Path, folder: Path, files: Iterable[Path]) -> None:
    """Read an archive and compare it with its files, byte by byte."""
    names = {str(file.relative_to(folder)): file for file in files}
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            file = names.pop(member.name, None)
            if file is None or not member.isfile():
                continue
            stream = archive.extractfile(member)
            if stream is None or stream.read() != file.read_bytes():
                raise DamageError(f"{member.name} is not in it as it is on disk", path=path)
    if names:
        raise DamageError(f"{len(names)} files are not in it", path=path)
