"""The one place that scans score tables with polars. Only accepted, verified tables are seen."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import ValidationError

from l2s_hpc.errors import DamageError, UserError
from l2s_hpc.records import Receipt
from l2s_hpc.store.files import read_json, sha256_file
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.store.state import Accepted


@dataclass(frozen=True)
class ScoreTensor:
    """The first sample of each item as arrays, with the names of their two axes.

    Attributes:
        values: uint8 `[candidate, item]`, 1 = right.
        candidates: the ids along the first axis.
        items: the pairs (benchmark, item) along the second axis.
        tokens: int32 `[candidate, item]`, the tokens that the objective charges.
        truncated: bool `[candidate, item]`, whether the token budget ended the answer.
    """

    values: npt.NDArray[np.uint8]
    candidates: tuple[str, ...]
    items: tuple[tuple[str, str], ...]
    tokens: npt.NDArray[np.int32]
    truncated: npt.NDArray[np.bool_]

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
        self._verified: dict[Path, tuple[int, int, int]] = {}

    def candidates(self, evaluation: str) -> list[str]:
        """Return the candidates that have a score table in an evaluation."""
        return [candidate for name, candidate in self._accepted if name == evaluation]

    def usable(self, evaluation: str, candidates: Iterable[str] | None = None) -> list[str]:
        """Return the candidates (all: None) that have a table there and whose table is sound.

        Raises:
            DamageError: a table is damaged or missing (unless not strict).
        """
        wanted = self.candidates(evaluation) if candidates is None else list(candidates)
        entries = [self._accepted.get((evaluation, candidate)) for candidate in wanted]
        return [e.candidate for e in entries if e is not None and self._verify(e) is not None]

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
        """Return the first sample of each item, items sorted by benchmark and id.

        Raises:
            DamageError: a candidate lacks an item that another has.
            UserError: nothing was accepted there, or the benchmark has no items.
        """
        rows = self.scan(evaluation, candidates).filter(pl.col("sample") == 0)
        if benchmark is not None:
            rows = rows.filter(pl.col("benchmark") == benchmark)
        columns = ("candidate", "benchmark", "item", "correct", "n_charged_tokens", "truncated")
        frame = rows.select(columns).collect()
        if frame.is_empty():
            raise UserError(f"no items of benchmark '{benchmark}' in evaluation '{evaluation}'")
        items = frame.select("benchmark", "item").unique().sort("benchmark", "item").rows()
        column_of = {item: index for index, item in enumerate(items)}
        row_of = {candidate: index for index, candidate in enumerate(candidates)}
        at = (
            [row_of[candidate] for candidate in frame["candidate"].to_list()],
            [column_of[item] for item in frame.select("benchmark", "item").rows()],
        )
        shape = (len(candidates), len(items))
        self._check_whole(at, shape, evaluation, candidates)
        values, tokens = np.empty(shape, dtype=np.uint8), np.empty(shape, dtype=np.int32)
        truncated = np.empty(shape, dtype=np.bool_)
        values[at] = frame["correct"].to_numpy()
        tokens[at] = frame["n_charged_tokens"].to_numpy()
        truncated[at] = frame["truncated"].to_numpy()
        return ScoreTensor(values, tuple(candidates), tuple(items), tokens, truncated)

    def _check_whole(
        self,
        at: tuple[list[int], list[int]],
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
                hint="`l2s verify --quarantine` moves it away, `l2s run` evaluates it again",
                path=path,
            )
        # Reads the file's footer only; the journal's count stands apart from the receipt.
        rows = pl.scan_parquet(path, hive_partitioning=False).select(pl.len()).collect().item()
        if rows != entry.rows:
            raise DamageError(f"{rows} rows, {entry.rows} were accepted", path=path)
        self._verified[path] = seen
