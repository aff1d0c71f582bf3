"""Score tables -> rows of accuracy, tokens and transfer by benchmark, each with its interval."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from l2s_hpc.analysis.fitness import RATES
from l2s_hpc.analysis.frames import Frames
from l2s_hpc.analysis.items import groups_of
from l2s_hpc.analysis.names import resolve
from l2s_hpc.analysis.verdicts import Verdicts, read_verdicts
from l2s_hpc.errors import UserError
from l2s_hpc.measures.intervals import (
    Interval,
    macro_interval,
    mean_interval,
    rate_interval,
    transfer_intervals,
)
from l2s_hpc.measures.transfer import Shares

if TYPE_CHECKING:
    from l2s_hpc.analysis.run import Run

Row = dict[str, Any]
"""One candidate on one benchmark; `all` pools over items, `macro` is the unweighted mean over
benchmarks. `solved` is how many of the `n` items some parent solves, and `u` their share: NTR is a
share of those, PTR of the others. `accuracy_gradable` is the accuracy on the `n_gradable` items
whose gold a rule can judge, `undecided` the share of answers without a decision, which count as
wrong. Rates lie in [0, 1], `tokens` and those of right answers (`tokens_right`) are means; `_low`
and `_high` are the ends of a 95 % interval. None is a rate without denominator, or one whose
parents have no table, or what an import could not know."""

TRANSFER_KEYS = (
    "candidate", "benchmark", "n", "accuracy", "ntr", "ntr_low", "ntr_high", "ptr", "ptr_low",
    "ptr_high", "label", "accuracy_low", "accuracy_high", "solved", "u", "n_gradable",
    "accuracy_gradable", "undecided",
)  # fmt: skip
"""The columns of `l2s ntr`: those that are promised, then those that explain them."""


def ntr_rows(
    run: Run,
    evaluation: str,
    parents: Iterable[str] | None,
    by: str | None,
    without: Iterable[str],
) -> list[Row]:
    """Return the transfer rates of a run's candidates; see `Run.ntr`."""
    frames, known = run.comparable(evaluation, without)
    if parents is None:
        chosen = parents_among(run, known)
    else:
        chosen = {name: resolve(run, name) for name in parents}
        for name, candidate in chosen.items():
            if candidate not in known:
                raise UserError(f"parent {name} has no table in '{evaluation}'", path=run.folder)
    if not known:
        return []
    if not chosen:
        warnings.warn(_no_parents(run, evaluation, known), stacklevel=3)
    keys = list(TRANSFER_KEYS)
    if by in (None, "benchmark"):
        rows = transfer_rows(frames, evaluation, known, chosen, lengths=False)
    else:
        groups = groups_of(run, evaluation, str(by))
        rows = grouped_rows(frames, evaluation, known, chosen, groups, str(by))
        keys.insert(2, str(by))
    labelled = [row | {"label": run.labels.get(row["candidate"])} for row in rows]
    return [{key: row[key] for key in keys} for row in labelled]


def table_rows(run: Run, evaluation: str, without: Iterable[str]) -> list[Row]:
    """Return the rows of all of a run's candidates, with their labels; see `Run.table`."""
    frames, known = run.comparable(evaluation, without)
    found = transfer_rows(frames, evaluation, known, parents_among(run, known)) if known else []
    return [{"label": run.labels.get(row["candidate"]), **row} for row in found]


def parents_among(run: Run, known: Iterable[str]) -> dict[str, str]:
    """Return the parents if all of them are known: what some of them solve is no reference."""
    return run.parents if set(run.parents.values()) <= set(known) else {}


def transfer_rows(
    frames: Frames,
    evaluation: str,
    candidates: Sequence[str],
    parents: Mapping[str, str],
    lengths: bool = True,
) -> list[Row]:
    """Return the rows of candidates in an evaluation: per candidate `all`, `macro`, benchmarks.

    Everything comes from all samples of each item (see `measures.transfer.shares`), so that in
    every row but `macro` accuracy = u (1 - NTR) + (1 - u) PTR, where a rate of None has no weight.

    Args:
        frames: the run's tables.
        evaluation: its name.
        candidates: candidate ids, all with a table there.
        parents: the parents' candidate ids by name; none gives rows without transfer rates.
        lengths: with the intervals of tokens, which take as long as those of all rates.

    Raises:
        DamageError: a table is damaged, or a candidate lacks items of its parents.
    """
    verdicts = read_verdicts(frames, evaluation, _ids(candidates, parents))
    transfer = verdicts.shares([*parents.values()], candidates) if parents else None
    wanted = np.array([verdicts.row(candidate) for candidate in candidates])
    names = sorted(set(verdicts.benchmarks.tolist()))
    parts = {"all": np.ones(len(verdicts.items), dtype=np.bool_)}
    parts |= {name: verdicts.benchmarks == name for name in names}
    found = {name: _part(verdicts, wanted, transfer, part, lengths) for name, part in parts.items()}
    each = {name: parts[name] for name in names}
    found["macro"] = _macro(verdicts, wanted, transfer, each, found, lengths)
    plain = {name: _plain(columns) for name, columns in found.items()}
    return [
        {"candidate": candidate, "benchmark": name, **_at(plain[name], index)}
        for index, candidate in enumerate(candidates)
        for name in ("all", "macro", *names)
    ]


def grouped_rows(
    frames: Frames,
    evaluation: str,
    candidates: Sequence[str],
    parents: Mapping[str, str],
    groups: Mapping[tuple[str, str], str],
    by: str,
) -> list[Row]:
    """Return the rows of candidates on each group of items of each benchmark.

    Args:
        frames, evaluation, candidates, parents: as for `transfer_rows`.
        groups: the group of each (benchmark, item); items without one are in no row.
        by: the name of the column that holds a row's group, such as `level`.

    Raises:
        DamageError: as `transfer_rows`.
    """
    verdicts = read_verdicts(frames, evaluation, _ids(candidates, parents))
    transfer = verdicts.shares([*parents.values()], candidates) if parents else None
    wanted = np.array([verdicts.row(candidate) for candidate in candidates])
    places: dict[tuple[str, str], list[int]] = {}
    for place, item in enumerate(verdicts.items):
        if item in groups:
            places.setdefault((item[0], groups[item]), []).append(place)
    found = {}
    for group in sorted(places):
        chosen = np.zeros(len(verdicts.items), dtype=np.bool_)
        chosen[places[group]] = True
        found[group] = _plain(_part(verdicts, wanted, transfer, chosen, lengths=False))
    return [
        {"candidate": candidate, "benchmark": benchmark, by: group, **_at(columns, index)}
        for index, candidate in enumerate(candidates)
        for (benchmark, group), columns in found.items()
    ]


def _ids(candidates: Sequence[str], parents: Mapping[str, str]) -> list[str]:
    return list(dict.fromkeys([*parents.values(), *candidates]))


def _part(
    verdicts: Verdicts,
    wanted: NDArray[np.int64],
    transfer: Shares | None,
    chosen: NDArray[np.bool_],
    lengths: bool,
) -> Row:
    """Return the columns of one benchmark, or of all; each an array `[wanted]` or a number."""
    at = np.ix_(wanted, np.flatnonzero(chosen))

    def of(values: NDArray[Any]) -> NDArray[Any]:
        return values[at]

    right, tokens, gradable = of(verdicts.right), of(verdicts.tokens), of(verdicts.gradable)
    strata = verdicts.benchmarks[chosen]
    row = {
        "n": int(chosen.sum()),
        "n_gradable": gradable.sum(axis=1),
        "solved": None,
        "u": None,
        "accuracy": right.mean(axis=1),
        "tokens": tokens.mean(axis=1),
        "accuracy_gradable": _ratio((right * gradable).sum(axis=1), gradable.sum(axis=1)),
        "undecided": of(verdicts.undecided).mean(axis=1),
        "tokens_right": _ratio(of(verdicts.tokens_of_right).sum(axis=1), right.sum(axis=1)),
        "truncation": of(verdicts.truncated).mean(axis=1),
    }
    if lengths:
        row |= _ends("tokens", mean_ends(tokens, strata))
    if transfer is None:
        row |= _no_transfer(len(wanted))
        ends = {"accuracy": rate_interval(right, np.ones(strata.size), strata)}
    else:
        rates = {
            name: (hit[:, chosen], base[chosen]) for name, (hit, base) in transfer.rates.items()
        }
        for name, (hit, base) in rates.items():
            row[name] = _ratio(hit.sum(axis=1), np.full(len(hit), base.sum()))
        total = float(rates["ntr"][1].sum())
        row |= {"solved": int(total) if total.is_integer() else total, "u": total / strata.size}
        ends = transfer_intervals(*rates["ntr"], *rates["ptr"], strata)
    for name, interval in ends.items():
        row |= _ends(name, interval)
    return row


def _macro(
    verdicts: Verdicts,
    wanted: NDArray[np.int64],
    transfer: Shares | None,
    each: Mapping[str, NDArray[np.bool_]],
    found: Mapping[str, Row],
    lengths: bool,
) -> Row:
    """Return the columns of the unweighted mean over benchmarks; NaN if a benchmark has NaN."""
    row = {name: found["all"][name] for name in ("n", "n_gradable", "solved", "u")}
    for name in RATES:
        row[name] = np.mean([found[part][name] for part in each], axis=0)
    parts = [*each.values()]
    right = verdicts.right[wanted]
    row |= _ends("accuracy", _macro_interval(right, np.ones(right.shape[1]), parts))
    if lengths:
        # The mean over benchmarks is the mean over items of tokens that are weighted by benchmark.
        weight = sum(part * (part.size / (len(parts) * part.sum())) for part in parts)
        row |= _ends("tokens", mean_ends(verdicts.tokens[wanted] * weight, verdicts.benchmarks))
    if transfer is None:
        return row | _no_transfer(len(wanted))
    for name, (hit, base) in transfer.rates.items():
        row |= _ends(name, _macro_interval(hit, base, parts))
    return row


def _macro_interval(
    hit: NDArray[Any], base: NDArray[Any], parts: Sequence[NDArray[np.bool_]]
) -> Interval:
    counts = np.stack([hit[:, part].sum(axis=1) for part in parts], axis=1)
    totals = np.array([base[part].sum() for part in parts])
    # Sums of many shares may miss the end by a rounding step.
    return macro_interval(np.minimum(counts, totals), totals)


def mean_ends(values: NDArray[np.float64], strata: NDArray[np.str_]) -> Interval:
    """Return the interval of each candidate's mean; NaN where one of its values is unknown."""
    known = np.isfinite(values).all(axis=1)
    low, high = np.full(len(values), np.nan), np.full(len(values), np.nan)
    if known.any():
        found = mean_interval(values[known], strata)
        low[known], high[known] = found.low, found.high
    return Interval(low, high)


def _ratio(above: NDArray[Any], below: NDArray[Any]) -> NDArray[np.float64]:
    """Return each candidate's ratio; NaN where there is nothing below."""
    found = np.full(len(above), np.nan)
    np.divide(above, below, out=found, where=below > 0)
    return found


def _no_parents(run: Run, evaluation: str, known: Collection[str]) -> str:
    """Say why no transfer rates are known, and what to do."""
    absent = [c for c in run.parents.values() if c not in known]
    names = ", ".join(run.labels.get(c, c) for c in absent)
    lacking = sorted({name for c in absent for name in run.info.lacks.get(c, ())})
    why = f"'{evaluation}' lacks tables of {names};" if names else "the run names no parents;"
    if lacking:
        left = ",".join(lacking)
        why = f"{names} lacks {left}; --without {left} leaves it out for all, or"
    return (
        f"NTR and PTR are unknown: {why} say what counts as solved with "
        "`l2s ntr RUN --parents CANDIDATE,CANDIDATE`"
    )


def _no_transfer(candidates: int) -> Row:
    nothing = np.full(candidates, np.nan)
    return {f"{name}{end}": nothing for name in ("ntr", "ptr") for end in ("", "_low", "_high")}


def _ends(name: str, interval: Interval) -> Row:
    return {f"{name}_low": interval.low, f"{name}_high": interval.high}


def _plain(columns: Row) -> Row:
    """Return columns with their arrays as lists of plain numbers; NaN becomes None."""
    return {
        name: [None if math.isnan(number) else number for number in value.tolist()]
        if isinstance(value, np.ndarray)
        else value
        for name, value in columns.items()
    }


def _at(columns: Row, index: int) -> Row:
    """Return one candidate's row of columns that are plain."""
    return {
        name: value[index] if isinstance(value, list) else value for name, value in columns.items()
    }
