"""The one place that scans score tables with polars. Only accepted, verified tables are seen."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import ValidationError

from l2s_hpc.errors import DamageError, UserError
from l2s_hpc.records import DECIDED, Receipt
from l2s_hpc.store.files import read_json, sha256_file
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.store.state import Accepted

_MEASURED = (
    "candidate",
    "benchmark",
    "item",
    "sample",
    "correct",
    "gradable",
    "n_charged_tokens",
    "truncated",
)
"""The columns that measures are made of, beside `undecided`."""

UNDECIDED = ~pl.col("grade_status").is_in(DECIDED)
"""Whether the grader came to no decision on an answer, for whatever reason; it counts as wrong."""

Stamp = tuple[int, int, int]
"""Size, time of the last change and inode of a file."""


@dataclass(frozen=True)
class ScoreTensor:
    """The first sample of each item as arrays, with the names of their two axes.

    Attributes:
        values: uint8 `[candidate, item]`, 1 = right.
        gradable: bool `[candidate, item]`, whether a rule can judge answers to the item.
        undecided: bool `[candidate, item]`, whether the grader came to no decision.
        candidates: the ids along the first axis.
        items: the pairs (benchmark, item) along the second axis.
        tokens: float64 `[candidate, item]`, the tokens that the objective charges.
        truncated: float64 `[candidate, item]`, 1 = the token budget ended the answer.

    NaN is a number that an import could not know.
    """

    values: npt.NDArray[np.uint8]
    candidates: tuple[str, ...]
    items: tuple[tuple[str, str], ...]
    tokens: npt.NDArray[np.float64]
    truncated: npt.NDArray[np.float64]
    gradable: npt.NDArray[np.bool_]
    undecided: npt.NDArray[np.bool_]

    @property
    def benchmarks(self) -> npt.NDArray[np.str_]:
        """The benchmark of each item, shape `[item]`."""
        return np.array([benchmark for benchmark, _ in self.items], dtype=np.str_)


class Frames:
    """Verified access to the accepted score tables of one run.

    A table is hashed before it is first read, and again only if its file changed.

    Args:
        paths: the run.
        accepted: what the journal says was accepted.
        strict: a damaged table raises `DamageError`; else it is left out with a warning.
    """

    def __init__(self, paths: RunPaths, accepted: Iterable[Accepted], strict: bool = True) -> None:
        self._paths = paths
        self._strict = strict
        self._accepted = {(a.evaluation, a.candidate): a for a in accepted}
        self._verified: dict[Path, Stamp] = {}
        self._without: frozenset[str] = frozenset()

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
        entry = self._accepted[evaluation, candidate]
        path = self._paths.receipt(evaluation, entry.generation, candidate)
        try:
            return Receipt.model_validate(read_json(path))
        except OSError:
            raise DamageError("the receipt of an accepted table is missing", path=path) from None
        except ValidationError as error:
            raise DamageError(f"not a receipt: {error.errors()[0]['msg']}", path=path) from None

    def scan(
        self, evaluation: str | None = None, candidates: Collection[str] | None = None
    ) -> pl.LazyFrame:
        """Return the rows of an evaluation (all: None) and of some candidates (all: None).

        Raises:
            DamageError: a table that is asked for is damaged or missing (unless not strict).
            UserError: nothing was accepted there.
        """
        sound = self._sound(self._entries(evaluation, candidates))
        files = [self._path(entry) for entry in sound]
        if not files:
            raise UserError(
                f"no score table of evaluation '{evaluation or 'any'}' is accepted yet",
                path=self._paths.folder,
            )
        rows = pl.scan_parquet(files, hive_partitioning=False, glob=False)
        if self._without:
            rows = rows.filter(~pl.col("benchmark").is_in(sorted(self._without)))
        return rows

    def read(self, evaluation: str, candidates: Collection[str]) -> pl.DataFrame:
        """Return the columns that measures are made of, `undecided` last; each file is read once.

        Raises:
            DamageError: a table that is asked for is damaged or missing (unless not strict).
            UserError: nothing was accepted there.
        """
        rows = self.scan(evaluation, candidates)
        return rows.select(*_MEASURED, UNDECIDED.alias("undecided")).collect()

    def tensor(
        self, evaluation: str, candidates: Sequence[str], benchmark: str | None = None
    ) -> ScoreTensor:
        """Return the first sample of each item, items sorted by benchmark and id.

        Raises:
            DamageError: a candidate lacks an item that another has.
            UserError: nothing was accepted there, or the benchmark has no items.
        """
        rows = self.read(evaluation, candidates)
        if benchmark is not None:
            rows = rows.filter(pl.col("benchmark") == benchmark)
        if rows.is_empty():
            raise UserError(f"no items of benchmark '{benchmark}' in evaluation '{evaluation}'")
        return self.arrange(rows, evaluation, candidates)

    def arrange(
        self, rows: pl.DataFrame, evaluation: str, candidates: Sequence[str]
    ) -> ScoreTensor:
        """Return the first sample of each item of rows that `read` returned.

        Raises:
            DamageError: a candidate lacks an item that another has.
        """
        rows = rows.filter(pl.col("sample") == 0)
        items = rows.select("benchmark", "item").unique().sort("benchmark", "item")
        column_of = items.with_row_index("column")
        row_of = pl.DataFrame({"candidate": candidates}).with_row_index("row")
        placed = rows.join(column_of, on=["benchmark", "item"]).join(row_of, on="candidate")
        at = (placed["row"].to_numpy(), placed["column"].to_numpy())
        shape = (len(candidates), len(items))
        self._check_whole(at, shape, evaluation, candidates)

        def matrix(column: str, kind: type[pl.DataType], dtype: type[Any]) -> npt.NDArray[Any]:
            found = np.empty(shape, dtype=dtype)
            found[at] = placed[column].cast(kind).to_numpy()
            return found

        return ScoreTensor(
            values=matrix("correct", pl.UInt8, np.uint8),
            candidates=tuple(candidates),
            items=tuple(items.rows()),
            tokens=matrix("n_charged_tokens", pl.Float64, np.float64),
            truncated=matrix("truncated", pl.Float64, np.float64),
            gradable=matrix("gradable", pl.Boolean, np.bool_),
            undecided=matrix("undecided", pl.Boolean, np.bool_),
        )

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

    def _check_whole(
        self,
        at: tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]],
        shape: tuple[int, int],
        evaluation: str,
        candidates: Sequence[str],
    ) -> None:
        """Every candidate has every item: comparisons never shrink to what is left."""
        there = np.zeros(shape, dtype=np.bool_)
        there[at] = True
        for name, missing in zip(candidates, (~there).sum(axis=1).tolist(), strict=True):
            if missing:
                raise DamageError(
                    f"candidate {name} lacks {missing} of {shape[1]} items of '{evaluation}'",
                    hint="run `l2s verify`; comparisons never shrink to what is left",
                    path=self._paths.folder,
                )

    def _sound(self, entries: Iterable[Accepted]) -> list[Accepted]:
        """Return the entries whose tables are sound; a table is read again only if it changed."""
        stamps = [(entry, stamp) for entry in entries if (stamp := self._hashed(entry))]
        fresh = [e for e, stamp in stamps if self._verified.get(self._path(e)) != stamp]
        counted = _row_counts([self._path(entry) for entry in fresh])
        sound = []
        for entry, stamp in stamps:
            path = self._path(entry)
            # The journal's count stands apart from the receipt.
            if counted.get(path, entry.rows) != entry.rows:
                text = f"{counted[path]} rows, {entry.rows} were accepted"
                self._leave_out(DamageError(text, path=path))
                continue
            self._verified[path] = stamp
            sound.append(entry)
        return sound

    def _hashed(self, entry: Accepted) -> Stamp | None:
        """Return what tells a table's file from a later one, once its hash is right."""
        path = self._path(entry)
        try:
            info = path.stat()
            stamp = (info.st_size, info.st_mtime_ns, info.st_ino)
            if self._verified.get(path) != stamp:
                self._check(path, entry)
        except FileNotFoundError:
            self._leave_out(DamageError("an accepted score table is missing", path=path))
        except DamageError as error:
            self._leave_out(error)
        else:
            return stamp
        return None

    def _check(self, path: Path, entry: Accepted) -> None:
        receipt = self.receipt(entry.evaluation, entry.candidate)
        if receipt.content_sha256 != entry.content_sha256:
            raise DamageError("its receipt is not the one that was accepted", path=path)
        if sha256_file(path) != receipt.file_sha256:
            raise DamageError(
                "the sha256 differs from the receipt's",
                hint="`l2s verify --quarantine` moves it away, `l2s run` evaluates it again",
                path=path,
            )

    def _leave_out(self, error: DamageError) -> None:
        if self._strict:
            raise error
        warnings.warn(f"left out: {error}", stacklevel=5)

    def _path(self, entry: Accepted) -> Path:
        return self._paths.scores(entry.evaluation, entry.generation, entry.candidate)


def _row_counts(files: Sequence[Path]) -> dict[Path, int]:
    """Return the rows of each table, from the files' footers alone."""
    if not files:
        return {}
    scan = pl.scan_parquet(
        list(files), hive_partitioning=False, glob=False, include_file_paths="file"
    )
    return {Path(file): rows for file, rows in scan.group_by("file").len().collect().iter_rows()}
