"""The one place that scans score tables with polars. Only accepted, verified tables are seen."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from l2s_hpc.errors import DamageError, UserError
from l2s_hpc.records import Receipt
from l2s_hpc.store.files import read_json, sha256_file
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.store.state import Accepted


@dataclass(frozen=True)
class ScoreTensor:
    """Verdicts as an array, with the names of its two axes.

    Attributes:
        values: uint8 `[candidate, item]`, 1 = right.
        candidates: the ids along the first axis.
        items: the pairs (benchmark, item) along the second axis.
    """

    values: npt.NDArray[np.uint8]
    candidates: tuple[str, ...]
    items: tuple[tuple[str, str], ...]


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
        self._verified: dict[Path, tuple[int, int, int]] = {}

    def candidates(self, evaluation: str) -> list[str]:
        """Return the candidates that have a score table in an evaluation."""
        return [candidate for name, candidate in self._accepted if name == evaluation]

    def receipt(self, evaluation: str, candidate: str) -> Receipt:
        """Return the receipt of an accepted table."""
        entry = self._accepted[evaluation, candidate]
        path = self._paths.receipt(evaluation, entry.generation, candidate)
        return Receipt.model_validate(read_json(path))

    def scan(
        self, evaluation: str | None = None, candidates: Collection[str] | None = None
    ) -> pl.LazyFrame:
        """Return the rows of an evaluation (all: None) and of some candidates (all: None).

        Raises:
            DamageError: a table that is asked for is damaged or missing (unless not strict).
            UserError: nothing was accepted there.
        """
        wanted = [
            entry
            for (name, candidate), entry in self._accepted.items()
            if evaluation in (None, name) and (candidates is None or candidate in candidates)
        ]
        files = [path for entry in wanted if (path := self._verify(entry)) is not None]
        if not files:
            raise UserError(
                f"no score table of evaluation '{evaluation or 'any'}' is accepted yet",
                path=self._paths.folder,
            )
        return pl.scan_parquet(files, hive_partitioning=False, glob=False)

    def tensor(
        self, evaluation: str, candidates: Sequence[str], benchmark: str | None = None
    ) -> ScoreTensor:
        """Return the verdicts of the first sample of each item.

        Raises:
            DamageError: a candidate lacks an item that another has.
        """
        rows = self.scan(evaluation, candidates).filter(pl.col("sample") == 0)
        if benchmark is not None:
            rows = rows.filter(pl.col("benchmark") == benchmark)
        frame = rows.select("candidate", "benchmark", "item", "correct").collect()
        if frame.is_empty():
            raise UserError(f"no items of benchmark '{benchmark}' in evaluation '{evaluation}'")
        items = frame.select("benchmark", "item").unique().sort("benchmark", "item").rows()
        position = {item: index for index, item in enumerate(items)}
        row_of = {candidate: index for index, candidate in enumerate(candidates)}
        values = np.full((len(candidates), len(items)), 2, dtype=np.uint8)
        rows_at = [row_of[c] for c in frame["candidate"].to_list()]
        columns_at = [position[key] for key in frame.select("benchmark", "item").rows()]
        values[rows_at, columns_at] = frame["correct"].to_numpy()
        for index in np.flatnonzero((values == 2).any(axis=1)):
            missing = int((values[index] == 2).sum())
            raise DamageError(
                f"candidate {candidates[index]} lacks {missing} of {len(items)} items of "
                f"'{evaluation}'",
                hint="run `l2s verify`; comparisons never shrink to what is left",
                path=self._paths.folder,
            )
        return ScoreTensor(values, tuple(candidates), tuple(items))

    def _verify(self, entry: Accepted) -> Path | None:
        path = self._paths.scores(entry.evaluation, entry.generation, entry.candidate)
        try:
            self._check(path, entry)
        except DamageError as error:
            if self._strict:
                raise
            warnings.warn(f"left out: {error}", stacklevel=4)
            return None
        return path

    def _check(self, path: Path, entry: Accepted) -> None:
        try:
            info = path.stat()
        except OSError:
            raise DamageError("an accepted score table is missing", path=path) from None
        seen = (info.st_size, info.st_mtime_ns, info.st_ino)
        if self._verified.get(path) == seen:
            return
        receipt = self.receipt(entry.evaluation, entry.candidate)
        if receipt.content_sha256 != entry.content_sha256:
            raise DamageError("its receipt is not the one that was accepted", path=path)
        if sha256_file(path) != receipt.file_sha256:
            raise DamageError(
                "the sha256 differs from the receipt's",
                hint="run `l2s verify`, then `l2s run` to evaluate the candidate again",
                path=path,
            )
        self._verified[path] = seen
