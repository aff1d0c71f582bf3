"""How candidates differ from one of them on the same items, with paired intervals and tests."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from l2s_hpc.analysis.compared import not_comparable
from l2s_hpc.analysis.names import check_table, resolve, usual_evaluation
from l2s_hpc.analysis.transfer import mean_ends, parents_among
from l2s_hpc.analysis.verdicts import Verdicts, read_verdicts
from l2s_hpc.errors import UserError
from l2s_hpc.measures.intervals import Interval, holm, mcnemar
from l2s_hpc.measures.paired import difference_interval, mean_of_estimates
from l2s_hpc.measures.transfer import Shares

if TYPE_CHECKING:
    from l2s_hpc.analysis.noise import Measure
    from l2s_hpc.analysis.run import Run

Row = dict[str, Any]
"""One candidate `b` against candidate `a` on one benchmark, `all` (pooled) or `macro` (mean).

- `n`: items; `accuracy_a`, `accuracy_b`, `tokens_a`, `tokens_b`, `ntr_a`, `ntr_b`: of each
- `difference`: accuracy of b less that of a; `tokens_difference` and `ntr_difference` likewise;
  `_low` and `_high` are the ends of paired 95 % intervals over items
- `only_a`, `only_b`: items that only one of both solves in its first sample
- `p`: McNemar's exact test of those; `p_holm`: adjusted for the `tests` that were made at once:
  the pooled ones of all candidates, or those of all candidates on all benchmarks
- `noise`, `tokens_noise`, `ntr_noise`: the standard deviation of such a difference if nothing but
  batching changed, as the run's noise twins tell; it falls with the root of `n`

None is what is not defined (macro has no test), not known or not measured."""

Floats = NDArray[np.float64]

_NOISES: tuple[tuple[str, Measure], ...] = (
    ("", "accuracy"),
    ("tokens_", "tokens"),
    ("ntr_", "ntr"),
)

_KINDS = ("difference", "tokens_difference", "ntr_difference")


def comparison_rows(
    run: Run,
    a: str,
    b: Sequence[str],
    evaluation: str | None = None,
    without: Iterable[str] = (),
) -> list[Row]:
    """Return how candidates differ from candidate `a`: for each `all`, `macro`, benchmarks.

    Args:
        run: the run.
        a, b: candidates, as `names.resolve` understands them.
        evaluation: None means the one with the least optimistic figures that has all of them.
        without: benchmarks that are left out.

    Raises:
        UserError: a candidate is unknown, is compared with itself, or has no table there.
        DamageError: a table is damaged, or one lacks items of another.
    """
    reference = resolve(run, a)
    others = list(dict.fromkeys(resolve(run, text) for text in b))
    if not others or reference in others:
        raise UserError(f"'{a}' needs another candidate to be compared with", path=run.folder)
    evaluation = evaluation or usual_evaluation(run, [reference, *others])
    for candidate in (reference, *others):
        check_table(run, candidate, evaluation)
    frames, known = run.comparable(evaluation, without)
    for candidate in (reference, *others):
        if candidate not in known:
            raise not_comparable(candidate, evaluation, run.folder)
    parents = [*parents_among(run, known).values()]
    ids = list(dict.fromkeys([reference, *others, *parents]))
    verdicts = read_verdicts(frames, evaluation, ids)
    transfer = verdicts.shares(parents, [reference, *others]) if parents else None
    names = sorted(set(verdicts.benchmarks.tolist()))
    parts = {name: verdicts.benchmarks == name for name in names}
    found = {name: _part(verdicts, transfer, len(others), part) for name, part in parts.items()}
    everything = np.ones(len(verdicts.items), dtype=np.bool_)
    pooled = _part(verdicts, transfer, len(others), everything)
    found = {"all": pooled, "macro": _macro(pooled, [found[name] for name in names]), **found}
    _adjust([pooled])
    _adjust([found[name] for name in names])
    _put_noise(run, found, names)
    return [
        {
            "a": reference,
            "b": other,
            "label_a": run.labels.get(reference),
            "label_b": run.labels.get(other),
            "benchmark": name,
            **{key: _plain(value, index) for key, value in columns.items()},
        }
        for index, other in enumerate(others)
        for name, columns in found.items()
    ]


def _part(
    verdicts: Verdicts, transfer: Shares | None, count: int, chosen: NDArray[np.bool_]
) -> Row:
    """Return the columns of some items, each an array `[others]`; row 0 of all is the reference."""
    strata, rows = verdicts.benchmarks[chosen], slice(0, count + 1)
    right, tokens = verdicts.right[rows][:, chosen], verdicts.tokens[rows][:, chosen]
    nothing = np.full(count, np.nan)
    row: Row = {"n": int(chosen.sum()), "samples": len(verdicts.samples)}
    row |= _pair("accuracy", right.mean(axis=1))
    row |= _ends("difference", row, "accuracy", difference_interval(right[1:] - right[0], strata))
    row |= _pair("tokens", tokens.mean(axis=1))
    row |= _ends("tokens_difference", row, "tokens", mean_ends(tokens[1:] - tokens[0], strata))
    solved = chosen if transfer is None else chosen & (transfer.solved > 0)
    if transfer is None or not solved.any():
        row |= {f"ntr_{end}": nothing for end in ("a", "b")}
        row |= {f"ntr_difference{end}": nothing for end in ("", "_low", "_high")}
    else:
        # Of the items that count; their number is as good as fixed, for it hits both alike.
        share, lost = transfer.solved[solved].mean(), transfer.lost[:, solved]
        row |= _pair("ntr", lost.mean(axis=1) / share)
        drawn = difference_interval(lost[1:] - lost[0], verdicts.benchmarks[solved])
        ends = (np.clip(end / share, -1.0, 1.0) for end in (drawn.low, drawn.high))
        row |= _ends("ntr_difference", row, "ntr", Interval(*ends))
    first = verdicts.samples[0].values[rows][:, chosen] == 1
    row["only_a"] = (first[0] & ~first[1:]).sum(axis=1)
    row["only_b"] = (~first[0] & first[1:]).sum(axis=1)
    counts = zip(row["only_a"].tolist(), row["only_b"].tolist(), strict=True)
    row["p"] = np.array([mcnemar(only_a, only_b) for only_a, only_b in counts])
    return row


def _pair(name: str, values: Floats) -> Row:
    return {f"{name}_a": np.full(len(values) - 1, values[0]), f"{name}_b": values[1:]}


def _ends(kind: str, row: Row, name: str, interval: Interval) -> Row:
    difference = row[f"{name}_b"] - row[f"{name}_a"]
    return {kind: difference, f"{kind}_low": interval.low, f"{kind}_high": interval.high}


def _macro(pooled: Row, parts: Sequence[Row]) -> Row:
    """Return the unweighted means of the benchmarks' columns; NaN if a benchmark has NaN."""
    row = dict(pooled)
    for name in ("accuracy", "tokens", "ntr"):
        for end in ("a", "b"):
            row[f"{name}_{end}"] = np.mean([part[f"{name}_{end}"] for part in parts], axis=0)
    for kind in _KINDS:
        values, low, high = (
            np.stack([part[f"{kind}{end}"] for part in parts], axis=1)
            for end in ("", "_low", "_high")
        )
        ends = mean_of_estimates(values, Interval(low, high))
        row |= {kind: values.mean(axis=1), f"{kind}_low": ends.low, f"{kind}_high": ends.high}
    return row | {"p": np.full(len(pooled["p"]), np.nan), "p_holm": None, "tests": None}


def _adjust(parts: Sequence[Row]) -> None:
    """Adjust the p-values of all candidates on some benchmarks for their number."""
    adjusted = holm(np.concatenate([part["p"] for part in parts]))
    for part, values in zip(parts, np.split(adjusted, len(parts)), strict=True):
        part |= {"p_holm": values, "tests": adjusted.size}


def _put_noise(run: Run, found: dict[str, Row], names: Sequence[str]) -> None:
    """Put what the noise twins tell beside each difference."""
    twins = run.noise()
    for name in found:
        for prefix, kind in _NOISES:
            sd = None if twins is None or name == "macro" else twins.sd(kind, found[name]["n"])
            found[name][f"{prefix}noise"] = sd
    for prefix, _ in _NOISES:
        each = [found[name][f"{prefix}noise"] for name in names]
        if all(sd is not None for sd in each):
            found["macro"][f"{prefix}noise"] = math.hypot(*each) / len(names)


def _plain(value: Any, index: int) -> Any:
    """Return one candidate's value as a plain number; NaN becomes None."""
    if not isinstance(value, np.ndarray):
        return value
    number = value[index].item()
    return None if isinstance(number, float) and math.isnan(number) else number
