"""Rows of score tables as arrays.

Tables of an evaluation have the same items, and nearly always in the same order: what the keys of
rows mean is worked out once for an order, and tables that share it are handled together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from l2s_hpc.errors import DamageError
from l2s_hpc.records import DECIDED

UNDECIDED = ~pl.col("grade_status").is_in(DECIDED)
"""Whether the grader came to no decision on an answer, for whatever reason; it counts as wrong."""

_KEY = ("benchmark", "item", "sample")
_COLUMNS = (
    *(pl.col(name) for name in _KEY),
    pl.col("correct"),
    pl.col("gradable"),
    UNDECIDED.alias("undecided"),
    pl.col("n_charged_tokens").cast(pl.Float64).alias("tokens"),
    pl.col("truncated").cast(pl.Float64),
)
_KNOWN_ORDERS = 8
"""Orders of items that are remembered."""

_KINDS = {"values": "u1", "tokens": "f8", "truncated": "f8", "gradable": "?", "undecided": "?"}

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ScoreTensor:
    """One sample of each item as arrays, with the names of their two axes.

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
    tokens: Floats
    truncated: Floats
    gradable: Bools
    undecided: Bools

    @cached_property
    def benchmarks(self) -> npt.NDArray[np.str_]:
        """The benchmark of each item, shape `[item]`."""
        return np.array([benchmark for benchmark, _ in self.items], dtype=np.str_)


class Layout:
    """What the rows of a table are answers to.

    Attributes:
        items: the pairs (benchmark, item), sorted.
        item: the place of each row's item among them.
        sample: the sample of each row.
        kept: the rows that are looked at; None: all.
    """

    def __init__(self, keys: pl.DataFrame, wanted: pl.Expr | None) -> None:
        self.keys = keys
        chosen = keys.with_row_index("at")
        chosen = chosen if wanted is None else chosen.filter(wanted)
        items = chosen.select("benchmark", "item").unique().sort("benchmark", "item")
        numbered = items.with_row_index("number")
        placed = chosen.join(numbered, on=["benchmark", "item"], maintain_order="left")
        self.items: tuple[tuple[str, str], ...] = tuple(items.rows())
        self.item = placed["number"].to_numpy()
        self.sample = placed["sample"].to_numpy()
        self.kept = placed["at"].to_numpy() if placed.height < keys.height else None

    @cached_property
    def benchmarks(self) -> tuple[str, ...]:
        """The benchmarks that it has, sorted."""
        return tuple(dict.fromkeys(benchmark for benchmark, _ in self.items))

    @cached_property
    def counts(self) -> Floats:
        """How many items each benchmark has, shape `[benchmark]`."""
        of_item = [benchmark for benchmark, _ in self.items]
        return np.array([of_item.count(name) for name in self.benchmarks], dtype=np.float64)

    @cached_property
    def of_benchmark(self) -> npt.NDArray[np.int64]:
        """The place of each row's benchmark among `benchmarks`."""
        number = {name: place for place, name in enumerate(self.benchmarks)}
        of_item = np.array([number[benchmark] for benchmark, _ in self.items], dtype=np.int64)
        return np.asarray(of_item[self.item], dtype=np.int64)

    def sums(self, values: npt.NDArray[Any]) -> Floats:
        """Return the sums over the rows of each benchmark, `[candidate, benchmark]`."""
        order, starts = self._runs
        ordered = values if order is None else values[:, order]
        return np.add.reduceat(ordered, starts, axis=1, dtype=np.float64)

    @cached_property
    def _runs(self) -> tuple[npt.NDArray[np.int64] | None, npt.NDArray[np.int64]]:
        """An order of rows in which benchmarks stand together (None: theirs), and the starts."""
        of_benchmark = self.of_benchmark
        order = None
        if np.any(np.diff(of_benchmark) < 0):
            order = np.argsort(of_benchmark, kind="stable")
            of_benchmark = of_benchmark[order]
        return order, np.searchsorted(of_benchmark, np.arange(len(self.benchmarks)))

    @cached_property
    def by_sample(self) -> dict[int, tuple[npt.NDArray[np.int64], npt.NDArray[Any]]]:
        """By sample, the rows of it and the items that they answer."""
        found = {}
        for sample in np.unique(self.sample).tolist():
            rows = np.flatnonzero(self.sample == sample)
            found[sample] = (rows, self.item[rows])
        return found


@dataclass(frozen=True)
class Block:
    """Answers of candidates whose tables have the same layout; arrays are `[candidate, row]`.

    NaN is a number that an import could not know.
    """

    candidates: tuple[str, ...]
    layout: Layout
    correct: Bools
    gradable: Bools
    undecided: Bools
    tokens: Floats
    truncated: Floats


class Reader:
    """Reads rows of score tables into blocks.

    Args:
        wanted: which rows are looked at, by benchmark, item or sample; None: all.
        path: of the run, for errors.
    """

    def __init__(self, wanted: pl.Expr | None, path: Path) -> None:
        self._wanted, self._path = wanted, path
        self._known: list[Layout] = []

    def blocks(self, rows: pl.LazyFrame, tables: Sequence[tuple[str, int]]) -> Iterator[Block]:
        """Yield the answers in tables that stand one after another.

        Args:
            rows: those of all of them.
            tables: candidate and number of rows of each.

        Raises:
            DamageError: there are more or fewer rows.
        """
        read = rows.select(*_COLUMNS).collect()
        if read.height != sum(count for _, count in tables):
            raise DamageError("score tables have other rows than were accepted", path=self._path)
        keys = read.select(_KEY)
        layout, together, first, start = None, list[str](), 0, 0
        for candidate, count in tables:
            found = self._layout(keys.slice(start, count))
            if layout is not None and found is not layout:
                yield _block(read.slice(first, start - first), layout, together)
                together, first = [], start
            layout = found
            together.append(candidate)
            start += count
        if layout is not None:
            yield _block(read.slice(first, start - first), layout, together)

    def _layout(self, keys: pl.DataFrame) -> Layout:
        for layout in self._known:
            if layout.keys.equals(keys):
                return layout
        # A slice would keep the rows of all tables that were read with it.
        own = pl.DataFrame(keys.to_dict(as_series=False), schema=keys.schema)
        made = Layout(own, self._wanted)
        self._known = [made, *self._known][:_KNOWN_ORDERS]
        return made


class Gathering:
    """Places answers by candidate, item and sample: comparisons never shrink to what is left.

    Args:
        evaluation: for errors.
        candidates: all of which answers will be added, in the order of the arrays.
        path: of the run, for errors.
        every: gather all samples, not only the first.
        verdicts: gather verdicts alone.
    """

    def __init__(
        self,
        evaluation: str,
        candidates: Sequence[str],
        path: Path,
        every: bool = False,
        verdicts: bool = False,
    ) -> None:
        self._evaluation, self._path, self._every = evaluation, path, every
        self._kinds = {"values": "u1"} if verdicts else _KINDS
        self._row = {candidate: row for row, candidate in enumerate(candidates)}
        self._candidates = tuple(candidates)
        self._layouts: dict[str, Layout] = {}
        self._arrays: list[dict[str, Any]] = []

    def add(self, block: Block) -> None:
        """Add the answers of some candidates."""
        layout = block.layout
        self._layouts |= dict.fromkeys(block.candidates, layout)
        first = next(iter(self._layouts.values()))
        if layout.items != first.items:
            return  # an error as soon as all are known
        rows = np.array([self._row[candidate] for candidate in block.candidates])
        for sample, (at, items) in layout.by_sample.items():
            if sample and not self._every:
                continue
            while len(self._arrays) <= sample:
                self._arrays.append(self._empty(len(layout.items)))
            arrays = self._arrays[sample]
            place = np.ix_(rows, items)
            for name, array in arrays.items():
                array[place] = getattr(block, "correct" if name == "values" else name)[:, at]

    @property
    def items(self) -> tuple[tuple[str, str], ...]:
        """The pairs (benchmark, item) of what was added first."""
        return next(iter(self._layouts.values())).items

    def verdicts(self) -> npt.NDArray[np.uint8]:
        """Return the verdicts, 1 = right, shape `[sample, candidate, item]`.

        Raises:
            DamageError: a candidate lacks an item or a sample that another has.
        """
        self._check()
        return np.stack([arrays["values"] for arrays in self._arrays])

    def tensors(self) -> tuple[ScoreTensor, ...]:
        """Return a tensor for each sample that is gathered, items sorted by benchmark and id.

        Raises:
            DamageError: a candidate lacks an item or a sample that another has.
        """
        self._check()
        items = self.items
        named: dict[str, Any] = {"candidates": self._candidates, "items": items}
        return tuple(ScoreTensor(**named, **arrays) for arrays in self._arrays)

    def _empty(self, items: int) -> dict[str, Any]:
        shape = (len(self._candidates), items)
        return {name: np.zeros(shape, dtype=kind) for name, kind in self._kinds.items()}

    def _check(self) -> None:
        layouts = {id(layout): layout for layout in self._layouts.values()}.values()
        firsts = [_items_of(layout, 0) for layout in layouts]
        everything = frozenset[tuple[str, str]]().union(*firsts)
        lacking = {id(a): len(everything) - len(b) for a, b in zip(layouts, firsts, strict=True)}
        for candidate in self._candidates:
            layout = self._layouts.get(candidate)
            missing = lacking[id(layout)] if layout else len(everything)
            if missing:
                raise DamageError(
                    f"candidate {candidate} lacks {missing} of {len(everything)} items of "
                    f"'{self._evaluation}'",
                    hint="run `l2s verify`; comparisons never shrink to what is left",
                    path=self._path,
                )
        for layout in layouts:
            for sample in range(len(self._arrays)):
                if len(_items_of(layout, sample)) != len(everything):
                    raise DamageError(
                        f"some items of '{self._evaluation}' have fewer samples than others",
                        hint="run `l2s verify`; comparisons never shrink to what is left",
                    )


def _items_of(layout: Layout, sample: int) -> frozenset[tuple[str, str]]:
    if sample not in layout.by_sample:
        return frozenset()
    return frozenset(layout.items[item] for item in layout.by_sample[sample][1].tolist())


def _block(rows: pl.DataFrame, layout: Layout, candidates: Sequence[str]) -> Block:
    def array(name: str) -> npt.NDArray[Any]:
        found = rows[name].to_numpy().reshape(len(candidates), -1)
        return found if layout.kept is None else found[:, layout.kept]

    names = ("correct", "gradable", "undecided", "tokens", "truncated")
    return Block(tuple(candidates), layout, **{name: array(name) for name in names})
