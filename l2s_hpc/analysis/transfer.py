"""Score tables -> rows of accuracy, tokens and transfer by benchmark, each with its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2s_hpc.analysis.fitness import RATES
from l2s_hpc.analysis.frames import Frames, ScoreTensor
from l2s_hpc.measures.intervals import Interval, macro_interval, mean_interval, rate_interval

Row = dict[str, Any]
"""One candidate on one benchmark; `all` pools over items, `macro` is the unweighted mean over
benchmarks. `solved` is how many of the `n` items some parent solves: NTR is a share of those, PTR
of the others. `accuracy_gradable` is the accuracy on the `n_gradable` items whose gold a rule can
judge, `undecided` the share of answers without a decision, which count as wrong. Rates lie in
[0, 1], `tokens` and those of right answers (`tokens_right`) are means; `_low` and `_high` are the
ends of a 95 % interval. None is a rate without denominator, or one whose parents have no table, or
what an import could not know."""

TRANSFER_KEYS = (
    "candidate", "label", "benchmark", "n", "n_gradable", "accuracy", "accuracy_gradable",
    "undecided", "ntr", "ntr_low", "ntr_high", "ptr", "ptr_low", "ptr_high",
)  # fmt: skip


def transfer_rows(
    frames: Frames, evaluation: str, candidates: Sequence[str], parents: Mapping[str, str]
) -> list[Row]:
    """Return the rows of candidates in an evaluation: per candidate `all`, `macro`, benchmarks.

    Everything comes from the first sample of each item, so that in every row but `macro`
    accuracy = u (1 - NTR) + (1 - u) PTR with u = solved / n.

    Args:
        frames: the run's tables.
        evaluation: its name.
        candidates: candidate ids, all with a table there.
        parents: the parents' candidate ids by name; none gives rows without transfer rates.

    Raises:
        DamageError: a table is damaged, or a candidate lacks items of its parents.
    """
    ids = list(dict.fromkeys([*parents.values(), *candidates]))
    tensor = frames.tensor(evaluation, ids)
    of_parents = [ids.index(parent) for parent in parents.values()]
    wanted = [ids.index(candidate) for candidate in candidates]
    solved = (tensor.values[of_parents] == 1).any(axis=0) if parents else None
    names = sorted(set(tensor.benchmarks.tolist()))
    parts = {"all": np.ones(len(tensor.items), dtype=np.bool_)}
    parts |= {name: tensor.benchmarks == name for name in names}
    found = {name: _part(tensor, wanted, solved, chosen) for name, chosen in parts.items()}
    found["macro"] = _macro(tensor, wanted, solved, [parts[name] for name in names], found, names)
    return [
        {"candidate": candidate, "benchmark": name, **_at(found[name], index)}
        for index, candidate in enumerate(candidates)
        for name in ("all", "macro", *names)
    ]


def _part(
    tensor: ScoreTensor,
    wanted: Sequence[int],
    solved: NDArray[np.bool_] | None,
    chosen: NDArray[np.bool_],
) -> Row:
    """Return the columns of one benchmark, or of all; each an array `[wanted]` or a number."""
    right = tensor.values[wanted][:, chosen] == 1
    strata, everything = tensor.benchmarks[chosen], np.ones(int(chosen.sum()), dtype=np.bool_)
    tokens, gradable = tensor.tokens[wanted][:, chosen], tensor.gradable[wanted][:, chosen]
    row = {
        "n": int(chosen.sum()),
        "n_gradable": gradable.sum(axis=1),
        "solved": None,
        **_columns("accuracy", right.mean(axis=1), rate_interval(right, everything, strata)),
        **_columns("tokens", tokens.mean(axis=1), _mean_ends(tokens, strata)),
        "accuracy_gradable": _mean_among(right, gradable),
        "undecided": tensor.undecided[wanted][:, chosen].mean(axis=1),
        "tokens_right": _mean_among(tokens, right),
        "truncation": tensor.truncated[wanted][:, chosen].mean(axis=1),
    }
    if solved is None:
        return row | _no_transfer(len(wanted))
    kept = solved[chosen]
    row["solved"] = int(kept.sum())
    for name, hit, base in (("ntr", kept & ~right, kept), ("ptr", ~kept & right, ~kept)):
        rate = hit.sum(axis=1) / base.sum() if base.any() else np.full(len(wanted), np.nan)
        row |= _columns(name, rate, rate_interval(hit, base, strata))
    return row


def _macro(
    tensor: ScoreTensor,
    wanted: Sequence[int],
    solved: NDArray[np.bool_] | None,
    parts: Sequence[NDArray[np.bool_]],
    found: Mapping[str, Row],
    names: Sequence[str],
) -> Row:
    """Return the columns of the unweighted mean over benchmarks; NaN if a benchmark has NaN."""
    right = tensor.values[wanted] == 1
    everything = np.ones(right.shape[1], dtype=np.bool_)
    row = {name: found["all"][name] for name in ("n", "n_gradable", "solved")}
    for name in RATES:
        row[name] = np.mean([found[part][name] for part in names], axis=0)
    row |= _ends("accuracy", _macro_interval(right, everything, parts))
    # The mean over benchmarks is the mean over items of tokens that are weighted by benchmark.
    weight = sum(part * (right.shape[1] / (len(parts) * part.sum())) for part in parts)
    row |= _ends("tokens", _mean_ends(tensor.tokens[wanted] * weight, tensor.benchmarks))
    if solved is None:
        return row | _no_transfer(len(wanted))
    row |= _ends("ntr", _macro_interval(solved & ~right, solved, parts))
    return row | _ends("ptr", _macro_interval(~solved & right, ~solved, parts))


def _macro_interval(
    hit: NDArray[np.bool_], base: NDArray[np.bool_], parts: Sequence[NDArray[np.bool_]]
) -> Interval:
    counts = np.stack([hit[:, part].sum(axis=1) for part in parts], axis=1)
    return macro_interval(counts, np.array([base[part].sum() for part in parts]))


def _mean_ends(values: NDArray[np.float64], strata: NDArray[np.str_]) -> Interval:
    """Return the interval of each candidate's mean; NaN where one of its values is unknown."""
    known = np.isfinite(values).all(axis=1)
    low, high = np.full(len(values), np.nan), np.full(len(values), np.nan)
    if known.any():
        found = mean_interval(values[known], strata)
        low[known], high[known] = found.low, found.high
    return Interval(low, high)


def _mean_among(values: NDArray[Any], among: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return each candidate's mean of some values; NaN where there are none, or one is unknown."""
    counts = np.where(np.isfinite(values).all(axis=1), among.sum(axis=1), 0)
    sums = np.where(among, values, 0).sum(axis=1, dtype=np.float64)
    means = np.full(len(values), np.nan)
    np.divide(sums, counts, out=means, where=counts > 0)
    return means


def _no_transfer(candidates: int) -> Row:
    nothing = np.full(candidates, np.nan)
    return {f"{name}{end}": nothing for name in ("ntr", "ptr") for end in ("", "_low", "_high")}


def _columns(name: str, values: NDArray[np.float64], interval: Interval) -> Row:
    return {name: values, **_ends(name, interval)}


def _ends(name: str, interval: Interval) -> Row:
    return {f"{name}_low": interval.low, f"{name}_high": interval.high}


def _at(columns: Row, index: int) -> Row:
    """Return one candidate's row, in plain numbers; NaN becomes None."""
    return {
        name: _plain(value[index]) if isinstance(value, np.ndarray) else value
        for name, value in columns.items()
    }


def _plain(value: Any) -> float | None:
    number: float = value.item()
    return None if math.isnan(number) else number
