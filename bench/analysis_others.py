"""The same questions, asked otherwise: in SQL with DuckDB, and by a loop in torch.

Neither checks a file against its receipt, and neither has the small-count intervals of ours. The
loop reads each candidate's table with pandas and compares it with the parents', as the published
scripts read a `*_scores.pt` for each model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

PARENTS = 2


def _files(run: Path) -> list[str]:
    return [str(path) for path in sorted((run / "scores").rglob("*.parquet"))]


def _parents(run: Path) -> list[str]:
    from l2s_hpc.store.run import read_run

    return list(read_run(run).parent_ids().values())


def duckdb_fitness(run: Path, draws: int) -> Any:
    """Return accuracy, tokens and truncation by candidate and benchmark."""
    import duckdb

    query = """
        select candidate, benchmark, count(*) n, avg(correct::int) accuracy,
            avg(n_charged_tokens) tokens, avg(truncated::int) truncation,
            avg(n_charged_tokens) filter (where correct) tokens_right,
            avg(correct::int) filter (where gradable) accuracy_gradable
        from read_parquet(?) group by grouping sets ((candidate), (candidate, benchmark))
    """
    return duckdb.execute(query, [_files(run)]).fetchall()


def duckdb_ntr(run: Path, draws: int) -> Any:
    """Return the pooled NTR of every candidate with its interval.

    The rates and the lost items come from SQL; the resampling is numpy on the 0/1 matrix, for in
    SQL a thousand draws would be a join of 10^10 rows.
    """
    import duckdb

    database = duckdb.connect()
    database.execute("create temp table parents as select unnest(?) candidate", [_parents(run)])
    query = """
        with first as (
            select candidate, benchmark, item, correct from read_parquet(?) where sample = 0
        ), solved as (
            select benchmark, item, bool_or(correct) o from first semi join parents
            using (candidate) group by all
        )
        select candidate, list(case when correct then 0 else 1 end order by benchmark, item) lost
        from first join solved using (benchmark, item) where o group by candidate order by candidate
    """
    rows = database.execute(query, [_files(run)]).fetchnumpy()
    lost = np.stack(rows["lost"]).astype(np.float32)
    rng = np.random.default_rng(0)
    sums = np.empty((draws, len(lost)), dtype=np.float32)
    for draw in range(draws):
        drawn = rng.integers(lost.shape[1], size=lost.shape[1])
        sums[draw] = lost @ np.bincount(drawn, minlength=lost.shape[1]).astype(np.float32)
    return lost.mean(axis=1), np.quantile(sums / lost.shape[1], (0.025, 0.975), axis=0)


def torch_fitness(run: Path, draws: int) -> Any:
    """Return accuracy, tokens and truncation of one candidate after the other."""
    import torch

    found = {}
    for table in _tables(run):
        correct = torch.tensor(table["correct"].to_numpy()).float()
        tokens = torch.tensor(table["n_charged_tokens"].to_numpy()).float()
        cut = torch.tensor(table["truncated"].to_numpy()).float()
        benchmarks = table["benchmark"].to_numpy()
        for name in ("", *sorted(set(benchmarks))):
            at = torch.tensor(benchmarks == name) if name else torch.ones(len(table)).bool()
            found[table["candidate"].iloc[0], name] = (
                correct[at].mean().item(),
                tokens[at].mean().item(),
                cut[at].mean().item(),
            )
    return found


def torch_ntr(run: Path, draws: int) -> Any:
    """Return the pooled NTR of one candidate after the other, with an interval."""
    import torch

    columns = ["candidate", "benchmark", "item", "sample", "correct"]
    first, parents = {}, _parents(run)
    for table in _tables(run, columns):
        table = table[table["sample"] == 0].sort_values(["benchmark", "item"])
        first[table["candidate"].iloc[0]] = torch.tensor(table["correct"].to_numpy())
    solved = torch.stack([first[parent] for parent in parents]).any(dim=0)
    found = {}
    for candidate, right in first.items():
        lost = (~right[solved]).float()
        means = torch.stack(
            [lost[torch.randint(len(lost), (len(lost),))].mean() for _ in range(draws)]
        )
        ends = torch.quantile(means, torch.tensor([0.025, 0.975]))
        found[candidate] = (lost.mean().item(), ends.tolist())
    return found


def _tables(run: Path, columns: list[str] | None = None) -> Any:
    import pandas

    names = ["candidate", "benchmark", "item", "correct", "n_charged_tokens", "truncated"]
    return (pandas.read_parquet(path, columns=columns or names) for path in _files(run))
