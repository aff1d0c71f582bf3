"""`l2s compact`: few files for each closed generation, with nothing of the science lost."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from l2s_hpc.errors import DamageError, UserError
from l2s_hpc.records import Receipt
from l2s_hpc.store.archive import archive, files_below
from l2s_hpc.store.files import (
    create_json,
    process_start,
    read_json,
    remove_stale_temporaries,
    sha256_file,
)
from l2s_hpc.store.joining import Source, join
from l2s_hpc.store.layout import Group, RunPaths, Where
from l2s_hpc.store.run import read_run
from l2s_hpc.store.scores import GRADES, OUTPUTS, read_table, verify_outputs, verify_table
from l2s_hpc.store.state import Accepted, AttemptState, RunState, read_state
from l2s_hpc.store.tables import Place, Tables


@dataclass
class Compaction:
    """What a compaction has done, or would do.

    Attributes:
        generations: how many were joined, counted once for each evaluation.
        tables: accepted tables in them.
        files: how many files the run directory had before and has now (would have: `None`).
        sizes: their bytes, likewise.
        removed: files that a dry run would remove.
        waiting: by evaluation and generation, why it is not joined yet.
        damage: what is not as it should be; its generation stays as it is.
    """

    generations: int = 0
    tables: int = 0
    files: tuple[int, int | None] = (0, None)
    sizes: tuple[int, int | None] = (0, None)
    removed: int = 0
    waiting: dict[str, str] = field(default_factory=dict)
    damage: list[DamageError] = field(default_factory=list)


def compact(
    folder: Path, dry_run: bool = False, tell: Callable[[str], None] = lambda _: None
) -> Compaction:
    """Join the tables of each closed generation, and archive what nodes wrote for it.

    A generation is closed when all its candidates are accepted or given up, and its batches are
    closed. A table is removed only after the joined file was read again and has the same content.
    Whatever ends a compaction, the run can be read and gone on with; the next call does the rest.

    Args:
        folder: the run directory; a controller may be at work on it.
        dry_run: change nothing.
        tell: hears which generation is joined.

    Raises:
        UserError: it is no run directory, or another process compacts it.
        DamageError: the journal is damaged.
    """
    read_run(folder)
    paths = RunPaths(folder)
    state, _ = read_state(paths)
    files, size = _count(folder)
    found = Compaction(files=(files, None), sizes=(size, None))
    index = _Index(paths, state)
    found.waiting = {_name(group): reason for group, reason in index.waiting.items()}
    if dry_run:
        for group in index.closed:
            _foresee(index, group, found)
        return found
    with claim(paths, "compacting the run"):
        remove_stale_temporaries(folder)
        for group in index.closed:
            tell(_name(group))
            try:
                _compact(index, group)
            except DamageError as error:
                found.damage.append(error)
                continue
            found.generations += 1
            found.tables += len(index.accepted.get(group, ()))
    files, size = _count(folder)
    found.files, found.sizes = (found.files[0], files), (found.sizes[0], size)
    return found


@contextmanager
def claim(paths: RunPaths, doing: str) -> Iterator[None]:
    """Keep others from writing joined tables; the claim of a dead process of this host is void.

    Args:
        paths: the run.
        doing: what others are told that this process does.

    Raises:
        UserError: another process has the claim.
    """
    path, pid = paths.compacting, os.getpid()
    mine = {"host": socket.gethostname(), "pid": pid, "process": process_start(pid), "doing": doing}
    while not create_json(path, mine):
        try:
            other = read_json(path)
        except FileNotFoundError:
            continue
        ours = other["host"] == mine["host"]
        if not ours or process_start(other["pid"]) == other["process"]:
            raise UserError(
                f"process {other['pid']} on {other['host']} is {other.get('doing', doing)}",
                hint="wait for it; if it is gone, remove this file",
                path=path,
            )
        _void(path, other)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _void(path: Path, stale: dict[str, Any]) -> None:
    """Remove a stale claim, and no other that has taken its place in the meantime."""
    aside = path.with_name(f"{path.name}.{secrets.token_hex(6)}")
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        if read_json(aside) != stale:  # another was faster, and this is its own
            with contextlib.suppress(FileExistsError):
                path.hardlink_to(aside)
        aside.unlink()


def rejoin(
    paths: RunPaths, state: RunState, group: Group, kind: str, without: Collection[str]
) -> None:
    """Write the joined tables of a kind anew from what is sound in them.

    Args:
        paths: the run.
        state: its journal.
        group: the generation.
        kind: `scores` or `outputs`.
        without: candidates that are left out.

    Raises:
        DamageError: the manifest is damaged, or the rows of a candidate that should stay.
    """
    tables = Tables(paths)
    sources = []
    for accepted in _Index(paths, state).accepted.get(group, ()):
        where = accepted.where
        place = tables.scores(where) if kind == "scores" else tables.outputs(where)
        if place.table is not None and accepted.candidate not in without:
            read = partial(_salvage, tables, kind, where, place)
            sources.append(Source(accepted.candidate, read, place.table.receipt))
    join(paths, kind, *group, sources)


def _salvage(tables: Tables, kind: str, where: Where, place: Place) -> pa.Table:
    if kind == "scores":
        return tables.salvaged_scores(place, tables.receipt(where))
    return tables.rows(place, OUTPUTS)


class _Index:
    """What the journal says of each generation, gone through once."""

    def __init__(self, paths: RunPaths, state: RunState) -> None:
        self.paths, self.state = paths, state
        self.attempts: dict[Group, list[AttemptState]] = {}
        self.accepted: dict[Group, list[Accepted]] = {}
        self.groups_of: dict[str, list[Group]] = {}
        for attempt in (a for attempts in state.attempts.values() for a in attempts):
            group = (attempt.evaluation, attempt.generation)
            self.attempts.setdefault(group, []).append(attempt)
            self.groups_of.setdefault(attempt.batch, []).append(group)
        for accepted in sorted(state.accepted.values(), key=lambda a: a.candidate):
            self.accepted.setdefault(accepted.group, []).append(accepted)
        self.waiting = {
            group: reason
            for group in dict.fromkeys([*self.attempts, *self.accepted])
            if (reason := self._under_way(group))
        }
        self.closed = [group for group in self.attempts if group not in self.waiting]
        done = set(self.closed)
        self.batches: dict[Group, list[str]] = {}
        for batch, groups in self.groups_of.items():
            # A batch of several generations goes with the first of them, once all are closed.
            if done.issuperset(groups):
                self.batches.setdefault(groups[0], []).append(batch)

    def written_by_nodes(self, group: Group) -> list[Path]:
        """Return the attempts of a generation, and its batches' tasks and logs."""
        folders = [self.paths.attempts(*group)]
        for batch in self.batches.get(group, ()):
            tasks = self.state.batches[batch].tasks
            folders += dict.fromkeys(self.paths.task(key).parent for key in tasks)
            folders += self.paths.batch_logs(batch)
        return [folder for folder in folders if folder.exists()]

    def doubled(self, group: Group, texts: Collection[str]) -> set[Path]:
        """Return the files of accepted attempts whose content the joined tables hold.

        Args:
            group: the generation.
            texts: candidates whose outputs are joined; chunks hold texts as well.
        """
        found: set[Path] = set()
        for accepted in self.accepted.get(group, ()):
            attempt = self.paths.attempt(*accepted.where, accepted.attempt)
            found |= {attempt.scores, attempt.receipt}
            if accepted.candidate in texts:
                found |= {attempt.outputs, *attempt.chunk_tables()}
        return found

    def _under_way(self, group: Group) -> str:
        """Return why a generation is not closed; empty if it is."""
        state, attempts = self.state, self.attempts.get(group, [])
        if group[0] == "search" and state.generations and group[1] >= state.told:
            return "its generation is under way"
        if any(attempt.batch in state.open_batches for attempt in attempts):
            return "a batch of it is not closed yet"
        unsettled = {a.candidate for a in attempts if not state.settled(group[0], a.candidate)}
        if unsettled:
            return f"{len(unsettled)} candidates are neither accepted nor given up"
        return ""


def _compact(index: _Index, group: Group) -> None:
    """Join one generation and archive the rest of it."""
    paths, accepted = index.paths, index.accepted.get(group, [])
    tables = Tables(paths)
    join(paths, "scores", *group, [_scores(paths, tables, a) for a in accepted])
    tables = Tables(paths)
    outputs = [s for a in accepted if (s := _outputs(paths, tables, a)) is not None]
    join(paths, "outputs", *group, outputs)
    for grader in paths.graders():
        grades = [s for a in accepted if (s := _grades(paths, tables, grader, a)) is not None]
        join(paths, paths.grades_kind(grader), *group, grades)
    doubled = index.doubled(group, {source.candidate for source in outputs})
    archive(paths, *group, index.written_by_nodes(group), doubled)


def _scores(paths: RunPaths, tables: Tables, accepted: Accepted) -> Source:
    where = accepted.where
    own = (paths.scores(*where), paths.receipt(*where))
    there = tuple(path for path in own if path.exists())
    place = tables.scores(where)
    if place.table is not None and place.table.content_sha256 == accepted.content_sha256:
        tables.check_file(place)
        read = partial(_salvage, tables, "scores", where, place)
        return Source(accepted.candidate, read, place.table.receipt, True, there)
    try:
        said = read_json(own[1])
        receipt = Receipt.model_validate(said)
    except (OSError, ValueError):
        raise DamageError("the receipt of an accepted table is missing", path=own[1]) from None
    if receipt.content_sha256 != accepted.content_sha256 or receipt.rows != accepted.rows:
        raise DamageError("its receipt is not the accepted one", path=own[1])
    return Source(accepted.candidate, partial(verify_table, own[0], receipt), said, False, there)


def _outputs(paths: RunPaths, tables: Tables, accepted: Accepted) -> Source | None:
    """Return the full texts of a candidate; None if there are none, or they were dropped."""
    where = accepted.where
    receipt, own = tables.receipt(where), paths.outputs(*where)
    there = (own,) if own.exists() else ()
    said = {"file_sha256": receipt.outputs_sha256}
    place = tables.outputs(where)
    if place.table is not None and place.table.receipt == said:
        tables.check_file(place)
        read = partial(tables.rows, place, OUTPUTS)
        return Source(accepted.candidate, read, said, True, there)
    if not there:
        return None

    def checked() -> pa.Table:
        verify_outputs(own, receipt)
        return read_table(own, OUTPUTS)

    return Source(accepted.candidate, checked, said, False, there)


def _grades(paths: RunPaths, tables: Tables, grader: str, accepted: Accepted) -> Source | None:
    """Return a grader's verdicts on a candidate; what is no whole pair of files stays alone."""
    where = accepted.where
    place = tables.grades(grader, where)
    if place.table is not None:
        tables.check_file(place)
        read = partial(tables.rows, place, GRADES)
        return Source(accepted.candidate, read, place.table.receipt, True)
    try:
        said: dict[str, Any] = tables.grade_receipt(grader, where)
        if sha256_file(place.path) != said.get("file_sha256"):
            return None
    except (OSError, DamageError):
        return None
    own = (place.path, place.path.with_suffix(".json"))
    return Source(accepted.candidate, partial(read_table, own[0], GRADES), said, False, own)


def _foresee(index: _Index, group: Group, found: Compaction) -> None:
    """Count what joining a generation would remove."""
    paths, accepted = index.paths, index.accepted.get(group, [])
    tables = Tables(paths)
    sources: list[Source] = []
    try:
        for one in accepted:
            made = [_scores(paths, tables, one), _outputs(paths, tables, one)]
            made += [_grades(paths, tables, grader, one) for grader in paths.graders()]
            sources += [source for source in made if source is not None]
    except DamageError as error:
        found.damage.append(error)
        return
    nodes = files_below(index.written_by_nodes(group))
    found.removed += sum(len(source.files) for source in sources) + len(nodes)
    if nodes or any(source.files for source in sources):
        found.generations += 1
        found.tables += len(accepted)


def _name(group: Group) -> str:
    return f"{group[0]}, generation {group[1]}"


def _count(folder: Path) -> tuple[int, int]:
    """Return how many files are in a folder, and their bytes; one with two names counts once."""
    sizes: dict[int, int] = {}
    for place, _, names in os.walk(folder):
        for name in names:
            info = Path(place, name).lstat()
            sizes[info.st_ino] = info.st_size
    return len(sizes), sum(sizes.values())
