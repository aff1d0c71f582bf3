"""How long the answers are: quantiles, shares cut, lengths of right answers, and what is saved.

An answer that the token budget cut would have gone on: its length is censored. Means and quantiles
take it as long as it is charged, so where a share of answers is cut the mean is a lower bound, and
so is every quantile above one less that share.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from l2s_hpc.analysis.names import resolve
from l2s_hpc.analysis.verdicts import Verdicts, read_verdicts
from l2s_hpc.errors import UserError
from l2s_hpc.measures.intervals import mean_interval
from l2s_hpc.measures.lengths import median_interval

if TYPE_CHECKING:
    from l2s_hpc.analysis.run import Run

QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}

_SAVED = ("saved", "saved_low", "saved_high", "saved_median", "saved_median_low",
          "saved_median_high")  # fmt: skip
"""What an answer saves against the first parent's to the same problem."""


def lengths(
    run: Run,
    evaluation: str | None = None,
    candidates: Iterable[str] | None = None,
    without: Iterable[str] = (),
) -> pl.DataFrame:
    """Return the lengths of answers by candidate and benchmark (`all` pools over items).

    Columns: candidate, label, benchmark; n (answers), mean, q05, q25, median, q75, q95 (tokens as
    the objective charges them), cut (the share that the budget cut), lower_bound (whether the mean
    is one, because some are cut), mean_right and mean_wrong (given the verdict; null: there are
    none); saved, the mean over problems of the tokens that the first parent spends more, with the
    ends of its paired 95 % interval, and saved_median, the median of these differences, likewise
    (by order statistics). Null is what is not known.

    Args:
        run: the run.
        evaluation: None means `Run.best_evaluation()`.
        candidates: as `names.resolve` understands them; None means all that have a table there.
        without: benchmarks that are left out.

    Raises:
        UserError: a name is unknown, or nothing was accepted there.
        DamageError: a table is damaged or missing (unless not strict).
    """
    evaluation = evaluation or run.best_evaluation()
    frames, known = run.comparable(evaluation, without)
    wanted = known if candidates is None else [resolve(run, text) for text in candidates]
    if missing := [candidate for candidate in wanted if candidate not in known]:
        message = f"candidate {missing[0]} has no table to compare in evaluation '{evaluation}'"
        raise UserError(message, path=run.folder)
    wanted = list(dict.fromkeys(wanted))
    if not wanted:
        raise UserError(f"no score table of evaluation '{evaluation}' is accepted yet")
    slow = next((parent for parent in run.parents.values() if parent in known), None)
    ids = wanted if slow is None else list(dict.fromkeys([*wanted, slow]))
    found = _distributions(frames.scan(evaluation, wanted))
    saved = _saved(read_verdicts(frames, evaluation, ids), wanted, slow)
    labels = pl.DataFrame(
        {
            "candidate": wanted,
            "label": [run.labels.get(candidate) for candidate in wanted],
            "_order": range(len(wanted)),
        },
        schema={"candidate": pl.String, "label": pl.String, "_order": pl.Int64},
    )
    table = labels.join(found, on="candidate").join(saved, on=["candidate", "benchmark"])
    # `all` first, as in the other tables.
    table = table.sort("_order", pl.col("benchmark") != "all", "benchmark")
    return table.select("candidate", "label", *found.columns[1:], *_SAVED)


def _distributions(rows: pl.LazyFrame) -> pl.DataFrame:
    """Return count, quantiles and means of the answers by candidate and benchmark."""
    tokens = pl.col("n_charged_tokens")
    known = tokens.null_count() == 0
    right = pl.col("correct")
    wanted = [
        pl.len().cast(pl.Int64).alias("n"),
        tokens.mean().alias("mean"),
        *(tokens.quantile(q, "linear").alias(name) for name, q in QUANTILES.items()),
        pl.col("truncated").mean().alias("cut"),
        pl.col("truncated").any().alias("lower_bound"),
        tokens.filter(right).mean().alias("mean_right"),
        tokens.filter(~right).mean().alias("mean_wrong"),
    ]
    # A mean of those that an import happens to know would be one of other answers.
    wanted = [
        wanted[0],
        *(pl.when(known).then(value).alias(value.meta.output_name()) for value in wanted[1:]),
    ]
    parts = rows.group_by("candidate", "benchmark").agg(wanted)
    pooled = rows.group_by("candidate").agg(pl.lit("all").alias("benchmark"), *wanted)
    return pl.concat([pooled.collect(), parts.collect()], how="vertical_relaxed")


def _saved(verdicts: Verdicts, candidates: Sequence[str], slow: str | None) -> pl.DataFrame:
    """Return what each candidate saves per problem, by candidate and benchmark."""
    names = sorted(set(verdicts.benchmarks.tolist()))
    everything = np.ones(verdicts.benchmarks.size, dtype=np.bool_)
    parts = {"all": everything} | {name: verdicts.benchmarks == name for name in names}
    chosen = [verdicts.row(candidate) for candidate in candidates]
    tables = []
    for name, part in parts.items():
        strata = verdicts.benchmarks[part]
        saved = np.full((len(chosen), strata.size), np.nan)
        if slow is not None:
            saved = verdicts.tokens[verdicts.row(slow)][part] - verdicts.tokens[chosen][:, part]
        known = np.isfinite(saved).all(axis=1)
        columns = np.full((len(_SAVED), len(chosen)), np.nan)
        if known.any():
            mean = mean_interval(saved[known], strata)
            median = median_interval(saved[known])
            columns[:3, known] = saved[known].mean(axis=1), mean.low, mean.high
            columns[3:, known] = np.median(saved[known], axis=1), median.low, median.high
        keys = {"candidate": list(candidates), "benchmark": [name] * len(chosen)}
        tables.append(pl.DataFrame(keys | dict(zip(_SAVED, columns, strict=True))))
    return pl.concat(tables).with_columns(pl.col(_SAVED).fill_nan(None))
