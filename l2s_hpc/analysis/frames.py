"""The one place that scans score tables with polars. Only accepted, verified tables are seen."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import polars as pl

from l2s_hpc.analysis.answers import UNDECIDED, Block, Gathering, Reader, ScoreTensor
from l2s_hpc.errors import DamageError, UserError
from l2s_hpc.records import Receipt
from l2s_hpc.store.files import sha256_file
from l2s_hpc.store.layout import RunPaths, Where
from l2s_hpc.store.state import Accepted, RunState
from l2s_hpc.store.tables import MENDED_BY, JoinedTable, Place, Stamp, Tables, remedy, stamp_of

__all__ = ["UNDECIDED", "Frames", "ScoreTensor"]

_T = TypeVar("_T")
_THREADS = 4
"""Threads that hash files: on a shared disk most of that time is waiting."""

_BATCH_ROWS = 1 << 20
"""Rows that are read at once."""


class Frames:
    """Verified access to the accepted score tables of one run.

    A table is hashed before it is first read, and again only if its file changed.

    Args:
        paths: the run.
        accepted: what the journal says was accepted.
        strict: a damaged table raises `DamageError`; else it is left out with a warning.
        purpose: that of the run, which decides what makes damaged tables anew.
    """

    def __init__(
        self,
        paths: RunPaths,
        accepted: Iterable[Accepted],
        strict: bool = True,
        purpose: str = "search",
    ) -> None:
        self._paths = paths
        self._purpose = purpose
        self._tables = Tables(paths)
        self._strict = strict
        self._accepted = {(a.evaluation, a.candidate): a for a in accepted}
        self._verified: dict[Where, Stamp] = {}
        self._hashed: dict[Path, Stamp] = {}
        self._without: frozenset[str] = frozenset()

    @property
    def folder(self) -> Path:
        """The run directory."""
        return self._paths.folder

    def leaving_out(self, benchmarks: Collection[str]) -> Frames:
        """Return the same tables without the rows of some benchmarks."""
        view = copy(self)
        view._without = frozenset(benchmarks)
        return view

    def benchmarks(self, evaluation: str) -> list[str]:
        """Return the benchmarks of an evaluation that has tables, by name."""
        rows = self.scan(evaluation).select(pl.col("benchmark").unique().sort()).collect()
        return rows["benchmark"].to_list()

    def candidates(self, evaluation: str) -> list[str]:
        """Return the candidates that have a score table in an evaluation."""
        return [candidate for name, candidate in self._accepted if name == evaluation]

    def usable(self, evaluation: str, candidates: Iterable[str] | None = None) -> list[str]:
        """Return the candidates (all: None) that have a table there and whose table is sound.

        Raises:
            DamageError: a table is damaged or missing (unless not strict).
        """
        wanted = self.candidates(evaluation) if candidates is None else list(candidates)
        return [entry.candidate for entry in self._sound(self._entries(evaluation, wanted))]

    def receipt(self, evaluation: str, candidate: str) -> Receipt:
        """Return the receipt of an accepted table.

        Raises:
            DamageError: it is missing or not a receipt.
        """
        return self._tables.receipt(self._accepted[evaluation, candidate].where)

    def scan(
        self, evaluation: str | None = None, candidates: Collection[str] | None = None
    ) -> pl.LazyFrame:
        """Return the rows of an evaluation (all: None) and of some candidates (all: None).

        Raises:
            DamageError: a table that is asked for is damaged or missing (unless not strict).
            UserError: nothing was accepted there.
        """
        sound = self._require(evaluation, candidates)
        rows = pl.concat([batch.rows for batch in self._batches(sound, whole=True)])
        if self._without:
            rows = rows.filter(~pl.col("benchmark").is_in(sorted(self._without)))
        return rows

    def blocks(
        self, evaluation: str, candidates: Collection[str], benchmark: str | None = None
    ) -> Iterator[Block]:
        """Yield the answers of candidates as arrays; each file is read once.

        Args:
            evaluation: its name.
            candidates: whose answers.
            benchmark: one benchmark's; None: all that are not left out.

        Raises:
            DamageError: a table that is asked for is damaged or missing (unless not strict).
            UserError: nothing was accepted there.
        """
        sound = self._require(evaluation, candidates)
        wanted = None if benchmark is None else pl.col("benchmark") == benchmark
        if self._without:
            others = ~pl.col("benchmark").is_in(sorted(self._without))
            wanted = others if wanted is None else others & wanted
        reader = Reader(wanted, self._paths.folder)
        for batch in self._batches(sound):
            yield from reader.blocks(batch.rows, batch.tables)

    def tensor(
        self, evaluation: str, candidates: Sequence[str], benchmark: str | None = None
    ) -> ScoreTensor:
        """Return the first sample of each item, items sorted by benchmark and id.

        Raises:
            DamageError: a candidate lacks an item that another has.
            UserError: nothing was accepted there, or the benchmark has no items.
        """
        gathering = Gathering(evaluation, candidates, self._paths.folder)
        return self._gather(gathering, evaluation, candidates, benchmark)[0]

    def samples(self, evaluation: str, candidates: Sequence[str]) -> tuple[ScoreTensor, ...]:
        """Return a tensor for each sample.

        Raises:
            DamageError: a candidate lacks an item or a sample that another has.
            UserError: nothing was accepted there.
        """
        gathering = Gathering(evaluation, candidates, self._paths.folder, every=True)
        return self._gather(gathering, evaluation, candidates, None)

    def _gather(
        self,
        gathering: Gathering,
        evaluation: str,
        candidates: Sequence[str],
        benchmark: str | None,
    ) -> tuple[ScoreTensor, ...]:
        found = False
        for block in self.blocks(evaluation, candidates, benchmark):
            found = found or bool(block.layout.items)
            gathering.add(block)
        if not found:
            raise UserError(f"no items of benchmark '{benchmark}' in evaluation '{evaluation}'")
        return gathering.tensors()

    def _require(
        self, evaluation: str | None, candidates: Collection[str] | None
    ) -> list[Accepted]:
        sound = self._sound(self._entries(evaluation, candidates))
        if not sound:
            raise UserError(
                f"no score table of evaluation '{evaluation or 'any'}' is accepted yet",
                path=self._paths.folder,
            )
        return sound

    def _batches(self, entries: Sequence[Accepted], whole: bool = False) -> list[_Batch]:
        """Return how tables are read: some files at once, or a part of a file of joined tables.

        Args:
            entries: the tables, all of them sound.
            whole: batches may be of any size.
        """
        limit = sys.maxsize if whole else _BATCH_ROWS
        singles: list[tuple[Path, Accepted]] = []
        joined: dict[Path, list[tuple[JoinedTable, Accepted]]] = {}
        for entry in entries:
            place = self._tables.scores(entry.where)
            if place.table is None:
                singles.append((place.path, entry))
            else:
                joined.setdefault(place.path, []).append((place.table, entry))
        found = []
        for part in _cut(singles, [entry.rows for _, entry in singles], limit):
            rows = _scanned([path for path, _ in part])
            found.append(_Batch(rows, [(entry.candidate, entry.rows) for _, entry in part]))
        for path, tables in joined.items():
            tables.sort(key=lambda pair: pair[0].first)
            found += _joined_batches(path, tables, limit)
        return found

    def _entries(
        self, evaluation: str | None, candidates: Collection[str] | None
    ) -> list[Accepted]:
        if evaluation is not None and candidates is not None:
            keys = [(evaluation, candidate) for candidate in dict.fromkeys(candidates)]
            return [self._accepted[key] for key in keys if key in self._accepted]
        return [
            entry
            for (name, candidate), entry in self._accepted.items()
            if evaluation in (None, name) and (candidates is None or candidate in candidates)
        ]

    def _sound(self, entries: Sequence[Accepted]) -> list[Accepted]:
        """Return the entries whose tables are sound; a file is hashed again only if it changed."""
        places: dict[Path, list[tuple[Accepted, Place]]] = {}
        for entry in entries:
            try:
                place = self._tables.scores(entry.where)
            except DamageError as error:
                self._leave_out(error)
                continue
            places.setdefault(place.path, []).append((entry, place))
        with ThreadPoolExecutor(_THREADS) as pool:
            errors = list(pool.map(self._checked, places.values()))
        for damage in filter(None, errors):
            self._leave_out(damage)
        pairs = zip(places.values(), errors, strict=True)
        sound = {entry.where for found, damage in pairs if damage is None for entry, _ in found}
        return [entry for entry in entries if entry.where in sound]

    def _checked(self, tables: Sequence[tuple[Accepted, Place]]) -> DamageError | None:
        """Check a file, and that it holds tables which were accepted."""
        path = tables[0][1].path
        try:
            stamp = stamp_of(path)
            fresh = [pair for pair in tables if self._verified.get(pair[0].where) != stamp]
            receipts = [self._check(entry, place) for entry, place in fresh]
            if fresh and self._hashed.get(path) != stamp:
                self._hash(*fresh[0], receipts[0])
                self._hashed[path] = stamp
            self._verified |= {entry.where: stamp for entry, _ in fresh}
        except FileNotFoundError:
            entry, place = tables[0]
            return self._tables.missing(place, entry.where, "an accepted score table")
        except DamageError as error:
            return error
        return None

    def _check(self, entry: Accepted, place: Place) -> Receipt:
        """Return a table's receipt, which is the accepted one."""
        receipt = self._tables.receipt(entry.where)
        if receipt.content_sha256 != entry.content_sha256:
            raise DamageError("its receipt is not the one that was accepted", path=place.path)
        # The journal's count stands apart from the receipt and from the manifest.
        if place.table is not None and place.table.rows != entry.rows:
            text = f"{place.table.rows} rows, {entry.rows} were accepted"
            raise DamageError(text, path=place.path)
        return receipt

    def _hash(self, entry: Accepted, place: Place, receipt: Receipt) -> None:
        """Compare a file with what was written down of it, by sha256 and by the rows it has."""
        if place.manifest is not None:
            expected, rows = place.manifest.file_sha256, place.manifest.rows
        else:
            expected, rows = receipt.file_sha256, entry.rows
        if sha256_file(place.path) != expected:
            raise DamageError(
                f"the sha256 differs from the {'manifest' if place.manifest else 'receipt'}'s",
                path=place.path,
            )
        from l2s_hpc.store.scores import rows_in

        found = rows_in(place.path)
        if found != rows:
            raise DamageError(f"{found} rows, {rows} were accepted", path=place.path)

    def _leave_out(self, error: DamageError) -> None:
        if self._strict:
            error.hint = remedy(self._purpose)
            raise error
        warnings.warn(f"left out: {error}", stacklevel=5)


def warn_of_quarantine(state: RunState, purpose: str) -> None:
    """Warn if tables that counted once are missing from all figures."""
    if state.reopened:
        warnings.warn(
            f"{len(state.reopened)} tables are in quarantine and not evaluated again yet; "
            f"figures lack them until {MENDED_BY[purpose]} has made them again",
            stacklevel=3,
        )


@dataclass(frozen=True)
class _Batch:
    """Rows of tables that stand one after another; candidate and number of rows of each."""

    rows: pl.LazyFrame
    tables: list[tuple[str, int]]


def _scanned(files: list[Path]) -> pl.LazyFrame:
    return pl.scan_parquet(files, hive_partitioning=False, glob=False)


def _joined_batches(
    path: Path, tables: Sequence[tuple[JoinedTable, Accepted]], limit: int
) -> Iterator[_Batch]:
    """Yield the rows of some tables of a joined file, as few slices as they stand in."""
    for part in _cut(tables, [table.rows for table, _ in tables], limit):
        slices: list[tuple[int, int]] = []
        for table, _ in part:
            if slices and sum(slices[-1]) == table.first:
                slices[-1] = (slices[-1][0], slices[-1][1] + table.rows)
            else:
                slices.append((table.first, table.rows))
        rows = pl.concat([_scanned([path]).slice(first, count) for first, count in slices])
        yield _Batch(rows, [(entry.candidate, entry.rows) for _, entry in part])


def _cut(tables: Sequence[_T], rows: Sequence[int], limit: int) -> Iterator[Sequence[_T]]:
    """Yield tables in parts of at most so many rows, and at least one table."""
    start = held = 0
    for end, count in enumerate(rows):
        if held and held + count > limit:
            yield tables[start:end]
            start, held = end, 0
        held += count
    if start < len(tables):
        yield tables[start:]
