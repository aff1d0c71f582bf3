"""The front: who stands on it, by which measures, and whether its figures chose it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from l2s_hpc.analysis.bands import bands
from l2s_hpc.analysis.candidates import front_row
from l2s_hpc.analysis.compared import UNCOUNTED, best_measured
from l2s_hpc.analysis.fitness import Measures
from l2s_hpc.analysis.tradeoff import feasible, search_front
from l2s_hpc.analysis.transfer import parents_among
from l2s_hpc.analysis.verdicts import read_verdicts
from l2s_hpc.errors import UserError, did_you_mean
from l2s_hpc.measures.tradeoff import non_dominated

if TYPE_CHECKING:
    from l2s_hpc.analysis.run import Run

MAXIMISED = {
    "accuracy": True,
    "accuracy_gradable": True,
    "ptr": True,
    "tokens": False,
    "tokens_right": False,
    "ntr": False,
    "truncation": False,
    "undecided": False,
}
"""The measures by which a front may be taken, and whether more is better."""


def front_rows(
    run: Run, split: str | None, on: Iterable[str] | None, without: Iterable[str]
) -> list[dict[str, Any]]:
    """Return the front as rows, the shortest answers first; arguments are those of `Run.front`.

    A row holds candidate, label, generation, genome (in the order of `Run.genes`), picks (the names
    under which it was picked), optimistic, n, n_gradable, the measures of `fitness.RATES`, every
    objective and what `on` names; of accuracy, tokens, ntr and these also `_low` and `_high`, the
    ends of 95 % intervals that hold for all rows and measures at once (see `bands`). `optimistic`
    says that the figures come from the items that chose the front. On the report split a front is
    always chosen on the selection split.
    """
    split = split or run.best_evaluation()
    searched = run.info.purpose == "search"
    if searched and split != "search" and run.state.front is None:
        raise UserError(
            "the final front is not fixed yet",
            hint="front('search') is that of the search so far",
            path=run.folder,
        )
    without = tuple(without)
    measured = run.measures(split, without)
    names = () if on is None else tuple(dict.fromkeys(on))
    if on is not None:
        chosen = _by(run, split, names, without)
    elif not searched:
        chosen = best_measured(measured, run.parents.values())
        apart = set(run.parents.values())
        if any(row["tokens"] is None for c, row in measured.items() if c not in apart):
            text = f"tokens are not known: this front is by accuracy alone; {UNCOUNTED}"
            warnings.warn(text, stacklevel=3)
    else:
        chosen = search_front(run.state) if split == "search" else list(run.state.front or ())
    chosen = [candidate for candidate in chosen if candidate in measured]
    telling = names or run.config["objectives"]
    ends = _ends(run, split, without, chosen, ["accuracy", "tokens", "ntr", *telling])
    optimistic = chosen_on(run, split) == split
    rows = [
        front_row(run, candidate, measured[candidate])
        | {name: measured[candidate][name] for name in names}
        | ends[candidate]
        | {"optimistic": optimistic}
        for candidate in chosen
    ]
    return sorted(rows, key=lambda row: (row["tokens"] or 0.0, row["candidate"]))


def _ends(
    run: Run, split: str, without: Iterable[str], chosen: Sequence[str], names: Iterable[str]
) -> dict[str, dict[str, float | None]]:
    """Return the ends of the simultaneous intervals by candidate."""
    if not chosen:
        return {}
    frames, known = run.comparable(split, without)
    parents = [*parents_among(run, known).values()]
    verdicts = read_verdicts(frames, split, list(dict.fromkeys([*chosen, *parents])))
    transfer = verdicts.shares(parents, chosen) if parents else None
    found = bands(verdicts, transfer, chosen, list(dict.fromkeys(names)))
    return dict(zip(chosen, found, strict=True))


def chosen_on(run: Run, split: str) -> str:
    """Return the evaluation that chooses between candidates whose figures come from another.

    The selection split chooses for the report split; there is no other choice for any other.
    """
    return "selection" if split == "report" and "selection" in run.evaluations else split


def eligible(run: Run, split: str, measured: Mapping[str, Measures]) -> list[str]:
    """Return the candidates that may be chosen on a split: no bare reference, none infeasible."""
    if run.info.purpose != "search":
        parents = set(run.parents.values())
        return [candidate for candidate in measured if candidate not in parents]
    meets = feasible(run.state)
    return [candidate for candidate in measured if meets.get(candidate, False)]


def check_measures(names: Sequence[str], measured: Mapping[str, Measures]) -> None:
    """Check the names of measures by which a front is asked for.

    Raises:
        UserError: there is none, or one is unknown.
    """
    if not names:
        raise UserError("a front needs at least one measure", hint="for instance accuracy, tokens")
    parts = {key.partition(".")[2] for found in measured.values() for key in found} - {""}
    for name in names:
        kind, _, part = name.partition(".")
        if kind not in MAXIMISED:
            raise UserError(f"unknown measure '{name}'", hint=did_you_mean(kind, MAXIMISED))
        if (part and part not in parts) or name.endswith("."):
            raise UserError(f"unknown part '{part}' of '{name}'", hint=did_you_mean(part, parts))


def _by(run: Run, split: str, names: Sequence[str], without: Sequence[str]) -> list[str]:
    """Return the candidates with a table in a split that none dominates by some measures."""
    there = run.measures(split, without)
    if not there:
        return []
    check_measures(names, there)
    deciding = run.measures(chosen_on(run, split), without)
    able = [candidate for candidate in eligible(run, split, there) if candidate in deciding]
    points = {c: _point(deciding[c], names) for c in able}
    known = {c: point for c, point in points.items() if point is not None}
    if len(known) < len(able):
        missing = f"{len(able) - len(known)} of {len(able)} candidates"
        lacking = [name for name in names if any(deciding[c][name] is None for c in able)]
        text = f"{' or '.join(lacking)} is not known of {missing} of evaluation '{split}'"
        if not known:
            hint = f"transfer rates need the parents' tables; {UNCOUNTED}"
            raise UserError(text, hint=hint)
        warnings.warn(f"left off the front: {text}", stacklevel=4)
    if not known:
        return []
    mask = non_dominated(list(known.values()))
    return [candidate for candidate, on_front in zip(known, mask, strict=True) if on_front]


def _point(found: Measures, names: Sequence[str]) -> list[float] | None:
    """Return the measures as numbers that are better when smaller; None if one is not known."""
    point = []
    for name in names:
        value = found[name]
        if value is None:
            return None
        point.append(-value if MAXIMISED[name.partition(".")[0]] else value)
    return point
