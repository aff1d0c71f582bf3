"""Score tables with several samples an item -> rows of mean@n and pass@k with intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from l2s_hpc.analysis.frames import UNDECIDED, Frames
from l2s_hpc.errors import DamageError
from l2s_hpc.measures.intervals import Interval, mean_interval
from l2s_hpc.measures.samples import macro_share_interval, pass_at, share_interval, sizes

if TYPE_CHECKING:
    from l2s_hpc.analysis.run import Run

Row = dict[str, Any]
"""One candidate on one benchmark; `all` pools over items, `macro` is the unweighted mean over
benchmarks.

- `items`, `samples`: how many, and how many of each; `gradable`: items whose gold a rule can judge
- `mean`: mean@n, the share of right answers; `mean_gradable`: that of gradable items (None: none;
  in `macro` None if a benchmark has none)
- `undecided`: the share of answers without a decision, which count as wrong
- `pass`: a list of `{k, value, low, high}`, k = 1, 2, 4, …, n: pass@k, unbiased
- `tokens`: mean of the answers; `tokens_right`: mean of the right ones (None: none, as above);
  `truncation`: the share of answers that the token budget cut

`_low`, `_high`, `low` and `high` are the ends of 95 % intervals over items."""


@dataclass(frozen=True)
class _Answers:
    """Sums (`right`, `tokens_right`) and means over the samples of each item, `[candidate, item]`,
    and what the items are."""

    right: NDArray[np.int64]
    tokens: NDArray[np.float64]
    tokens_right: NDArray[np.int64]
    cut: NDArray[np.float64]
    undecided: NDArray[np.float64]
    gradable: NDArray[np.bool_]
    benchmarks: NDArray[np.str_]
    samples: int


def labelled_rows(
    run: Run, frames: Frames, evaluation: str, candidates: Iterable[str] | None
) -> list[Row]:
    """Return the rows of a run's candidates (all: None), references first; see `Run.samples`."""
    order = [*run.labels]
    usable = frames.usable(evaluation, candidates)
    usable.sort(key=lambda c: order.index(c) if c in run.labels else len(order))
    rows = sample_rows(frames, evaluation, usable) if usable else []
    return [{"label": run.labels.get(row["candidate"]), **row} for row in rows]


def sample_rows(frames: Frames, evaluation: str, candidates: Sequence[str]) -> list[Row]:
    """Return the rows of candidates in an evaluation: per candidate `all`, `macro`, benchmarks.

    Args:
        frames: the run's tables.
        evaluation: its name.
        candidates: candidate ids, all with a table there.

    Raises:
        DamageError: a table is damaged, or an item has more or fewer samples than another.
        UserError: nothing was accepted there.
    """
    found = _answers(frames, evaluation, candidates)
    names = list(dict.fromkeys(found.benchmarks.tolist()))
    parts = {"all": np.ones(found.benchmarks.size, dtype=np.bool_)}
    parts |= {"macro": parts["all"]} | {name: found.benchmarks == name for name in names}
    columns = {name: _columns(found, chosen, name == "macro") for name, chosen in parts.items()}
    return [
        {"candidate": candidate, "benchmark": name, **_at(columns[name], index)}
        for index, candidate in enumerate(candidates)
        for name in parts
    ]


def _answers(frames: Frames, evaluation: str, candidates: Sequence[str]) -> _Answers:
    key = ("candidate", "benchmark", "item")
    items = (
        frames.scan(evaluation, candidates)
        .group_by(key)
        .agg(
            pl.len().alias("samples"),
            pl.col("correct").sum().cast(pl.Int64).alias("right"),
            pl.col("n_charged_tokens").mean().alias("tokens"),
            pl.col("n_charged_tokens").filter("correct").sum().cast(pl.Int64).alias("tokens_right"),
            pl.col("truncated").mean().alias("cut"),
            UNDECIDED.mean().alias("undecided"),
            pl.col("gradable").first(),
        )
        .sort("benchmark", "item")
        .collect()
    )
    known = items.select("benchmark", "item", "gradable").unique(maintain_order=True)
    samples = int(items["samples"][0])
    if len(items) != len(known) * len(candidates) or (items["samples"] != samples).any():
        raise DamageError(
            f"the tables of '{evaluation}' do not have {samples} samples of each of {len(known)} "
            f"items for each of {len(candidates)} models",
            hint="run `l2s verify`; comparisons never shrink to what is left",
        )
    order = pl.DataFrame({"candidate": list(candidates)}).with_row_index("row")
    placed = items.join(order, on="candidate").sort("row", "benchmark", "item")

    def matrix(name: str) -> NDArray[Any]:
        return placed[name].to_numpy().reshape(len(candidates), len(known))

    return _Answers(
        right=matrix("right"),
        tokens=matrix("tokens"),
        tokens_right=matrix("tokens_right"),
        cut=matrix("cut"),
        undecided=matrix("undecided"),
        gradable=known["gradable"].to_numpy(),
        benchmarks=known["benchmark"].to_numpy().astype(np.str_),
        samples=samples,
    )


def _columns(found: _Answers, chosen: NDArray[np.bool_], macro: bool) -> Row:
    """Return the columns of one benchmark, or of all; each an array `[candidates]` or a number."""
    strata = found.benchmarks[chosen]
    right, gradable = found.right[:, chosen], found.gradable[chosen]
    # The mean over benchmarks is the mean over items that are weighted by benchmark.
    weight = _weights(strata) if macro else np.ones(strata.size)
    means, tokens = right / found.samples, found.tokens[:, chosen] * weight
    judged = np.broadcast_to(gradable, means.shape)
    between = macro_share_interval if macro else share_interval
    passed = []
    for k in sizes(found.samples):
        values = pass_at(right, found.samples, k)
        ends = between(values, strata)
        value = (values * weight).mean(axis=1)
        passed.append({"k": k, "value": value, "low": ends.low, "high": ends.high})
    return {
        "items": strata.size,
        "samples": found.samples,
        "gradable": int(gradable.sum()),
        "mean": (means * weight).mean(axis=1),
        **_ends("mean", between(means, strata)),
        "mean_gradable": _ratio(means * gradable, judged, strata, macro),
        "undecided": (found.undecided[:, chosen] * weight).mean(axis=1),
        "pass": passed,
        "tokens": tokens.mean(axis=1),
        **_ends("tokens", mean_interval(tokens, strata)),
        "tokens_right": _ratio(found.tokens_right[:, chosen], right, strata, macro),
        "truncation": (found.cut[:, chosen] * weight).mean(axis=1),
    }


def _ratio(
    above: NDArray[Any], below: NDArray[Any], strata: NDArray[np.str_], macro: bool
) -> NDArray[np.float64]:
    """Return the ratio of two sums over items, pooled or the mean of the benchmarks' ratios.

    NaN where the sum below is 0, be it of one benchmark.
    """
    parts = (
        [strata == name for name in np.unique(strata)] if macro else [np.full(strata.size, True)]
    )
    sums = [(above[:, part].sum(axis=1), below[:, part].sum(axis=1)) for part in parts]
    nothing = np.full(len(above), np.nan)
    ratios = [np.divide(a, b, out=nothing.copy(), where=b > 0) for a, b in sums]
    return np.asarray(np.mean(ratios, axis=0), dtype=np.float64)


def _weights(strata: NDArray[np.str_]) -> NDArray[np.float64]:
    """Return weights of items, 1 in the mean, under which all benchmarks weigh the same."""
    _, where, counts = np.unique(strata, return_inverse=True, return_counts=True)
    return np.asarray(strata.size / (counts.size * counts[where]), dtype=np.float64)


def _ends(name: str, interval: Interval) -> Row:
    return {f"{name}_low": interval.low, f"{name}_high": interval.high}


def _at(columns: Mapping[str, Any], index: int) -> Row:
    """Return one candidate's row, in plain numbers."""
    row: Row = {}
    for name, value in columns.items():
        if isinstance(value, np.ndarray):
            row[name] = None if np.isnan(value[index]) else float(value[index])
        elif isinstance(value, list):
            row[name] = [_at(entry, index) for entry in value]
        else:
            row[name] = value
    return row
