"""How far scores differ where nothing does: candidates that answered the same items twice.

A noise twin answers the selection items once more, in another order: chunks hold other items and
other prompts share running batches, which changes low bits of the sums on a device and with them
greedy tokens, but favours nobody. All that differs between its two tables is noise.

Under such a change either table might have been the first, so each item's difference d_i is as
likely as -d_i, and with independent items var(Σ d_i / n) = Σ d_i² / n²: the sign-flip distribution
(R. A. Fisher 1935, The Design of Experiments, §21). For verdicts Σ d_i² is the number of flips, so
sd = √(flips / n), as in McNemar's test (Q. McNemar 1947, Psychometrika 12, 153-157): 4.4 % flips of
5,614 items mean .28 points. Twins are averaged as variances. With F flips in all such a sd is good
to about 1 / (2 √F), 6 % for 66; that of three differences would be good to 40 %, and a front that
was chosen on these items shifts it. The sd of two candidates' difference, each evaluated once, is
the same: each contributes half of the variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from l2s_hpc.analysis.transfer import Row, parents_among
from l2s_hpc.analysis.verdicts import Verdicts, read_verdicts
from l2s_hpc.errors import DamageError
from l2s_hpc.measures.intervals import rate_interval
from l2s_hpc.measures.transfer import Shares, shares

if TYPE_CHECKING:
    from l2s_hpc.analysis.frames import Frames
    from l2s_hpc.analysis.run import Run

Measure = Literal["accuracy", "tokens", "ntr"]

FIRST, AGAIN = "selection", "noise"
"""The evaluations that hold a twin's two tables."""


@dataclass(frozen=True)
class Noise:
    """What differs between two evaluations of the same models, by a neutral change.

    Attributes:
        evaluation: the one whose items were answered again.
        candidates: the twins, the slow parent first.
        n: number of items, each answered twice by every twin.
        flips: share of the answers whose verdict changed. flips_low, flips_high: the ends of its
            95 % interval, items resampled as clusters.
        sd_accuracy, sd_tokens, sd_ntr: of a difference between two figures on these items by noise
            alone: accuracy and NTR in [0, 1], tokens in mean tokens an answer. NTR is of the twins
            that are no parents (a parent's own answers decide what counts as solved) or, where
            there are none, of the parent. None: unknown, or without denominator.
        rows: for each twin, pooled (`all`) and for each benchmark, its second evaluation under the
            names of `transfer.Row`, parents as they were at first; beside them `flips` (a share)
            and, second minus first, `delta_accuracy`, `delta_tokens` and `delta_ntr`.
    """

    evaluation: str
    candidates: tuple[str, ...]
    n: int
    flips: float
    flips_low: float
    flips_high: float
    sd_accuracy: float
    sd_tokens: float | None
    sd_ntr: float | None
    rows: tuple[Row, ...]

    def sd(self, measure: Measure, n: int | None = None) -> float | None:
        """Return the sd of a difference on `n` items of this kind (None: on these items).

        It shrinks with √n. NTR is a share of the items that some parent solves, whose part is taken
        to be the same.
        """
        found: float | None = getattr(self, f"sd_{measure}")
        return found if found is None or n is None else found * math.sqrt(self.n / n)

    def most(self, n: int) -> float:
        """Return the sd of accuracy on `n` items if as many flip as the interval allows."""
        if not self.flips:
            return math.sqrt(self.flips_high / n)
        return (self.sd("accuracy", n) or 0.0) * math.sqrt(self.flips_high / self.flips)


def noise(run: Run, frames: Frames) -> Noise | None:
    """Return the noise that a search has measured; None before a twin has both tables.

    Twins of an earlier front, from before a search has grown, count too.

    Raises:
        DamageError: a table is damaged (unless not strict), or the two tables of a twin differ in
            their items.
    """
    if run.info.purpose != "search":  # there these names may mean anything
        return None
    before = set(frames.usable(FIRST))
    again = [c for c in frames.usable(AGAIN) if c in before]
    twins = sorted(again, key=lambda c: c not in run.parents.values())
    if not twins:
        return None
    parents = [*parents_among(run, before).values()]
    first = read_verdicts(frames, FIRST, list(dict.fromkeys([*parents, *twins])))
    second = read_verdicts(frames, AGAIN, twins)
    if first.items != second.items or len(first.samples) != len(second.samples):
        raise DamageError(
            f"the evaluations '{FIRST}' and '{AGAIN}' do not have the same items and samples",
            hint="run `l2s verify`; noise is a difference on the same items",
            path=run.folder,
        )
    return _compare(run, twins, parents, first, second)


def _compare(
    run: Run, twins: Sequence[str], parents: Sequence[str], first: Verdicts, second: Verdicts
) -> Noise:
    places = [first.row(twin) for twin in twins]
    pairs = zip(first.samples, second.samples, strict=True)
    flipped = np.mean([a.values[places] != b.values for a, b in pairs], axis=0)
    moved = second.right - first.right[places]
    longer = second.tokens - first.tokens[places]
    transfers = _transfers(parents, twins, first, second) if parents else None
    n = len(first.items)
    interval = rate_interval(flipped.mean(axis=0), np.ones(n), first.benchmarks)
    return Noise(
        evaluation=FIRST,
        candidates=tuple(twins),
        n=n,
        flips=float(flipped.mean()),
        flips_low=float(interval.low),
        flips_high=float(interval.high),
        sd_accuracy=_sd(moved) / n,
        sd_tokens=_sd(longer) / n if np.isfinite(longer).all() else None,
        sd_ntr=_sd_ntr(transfers, [twin in parents for twin in twins]) if transfers else None,
        rows=tuple(_rows(run, twins, second, flipped, moved, longer, transfers)),
    )


def _transfers(
    parents: Sequence[str], twins: Sequence[str], first: Verdicts, second: Verdicts
) -> tuple[Shares, Shares]:
    """Return the transfer of the twins' first and second answers, from the parents' first ones."""
    of_parents = [first.row(parent) for parent in parents]
    solved = np.stack([sample.values[of_parents] for sample in first.samples])
    again = np.stack([sample.values for sample in second.samples])
    return first.shares(parents, twins), shares(solved, again)


def _sd(differences: NDArray[np.float64]) -> float:
    """Return the sd of the sum over items under random signs, twins averaged as variances."""
    return math.sqrt((differences**2).sum(axis=1).mean())


def _sd_ntr(transfers: tuple[Shares, Shares], is_parent: Sequence[bool]) -> float | None:
    first, second = transfers
    merged = ~np.array(is_parent)
    moved = (second.lost - first.lost)[merged if merged.any() else ~merged]
    solved = float(first.solved.sum())
    return _sd(moved) / solved if solved else None


def _rows(
    run: Run,
    twins: Sequence[str],
    second: Verdicts,
    flipped: NDArray[np.float64],
    moved: NDArray[np.float64],
    longer: NDArray[np.float64],
    transfers: tuple[Shares, Shares] | None,
) -> list[Row]:
    benchmarks = second.benchmarks
    parts = {"all": np.ones(len(benchmarks), dtype=np.bool_)}
    parts |= {name: benchmarks == name for name in sorted(set(benchmarks.tolist()))}
    return [
        {
            "candidate": twin,
            "label": f"noise twin of {_name(run, twin)}",
            "benchmark": name,
            **_answers(second, row, part),
            **_transfer(transfers, row, part, benchmarks),
            "flips": float(flipped[row, part].mean()),
            "delta_accuracy": float(moved[row, part].mean()),
            "delta_tokens": _known(longer[row, part].mean()),
        }
        for row, twin in enumerate(twins)
        for name, part in parts.items()
    ]


def _name(run: Run, candidate: str) -> str:
    """Return a reference's label, or under which name a candidate was picked, or else its id."""
    picked = [pick for pick, chosen in run.state.picks.items() if chosen == candidate]
    return run.labels.get(candidate) or next(iter(picked), candidate)


def _answers(second: Verdicts, row: int, part: NDArray[np.bool_]) -> Row:
    """Return the columns that need no parents."""
    right, gradable = second.right[row, part], second.gradable[row, part]
    interval = rate_interval(right, np.ones(right.size), second.benchmarks[part])
    return {
        "n": right.size,
        "n_gradable": int(gradable.sum()),
        "accuracy": float(right.mean()),
        "accuracy_low": float(interval.low),
        "accuracy_high": float(interval.high),
        "accuracy_gradable": float(right[gradable].mean()) if gradable.any() else None,
        "undecided": float(second.undecided[row, part].mean()),
        "tokens": _known(second.tokens[row, part].mean()),
    }


def _transfer(
    transfers: tuple[Shares, Shares] | None,
    row: int,
    part: NDArray[np.bool_],
    benchmarks: NDArray[np.str_],
) -> Row:
    """Return the columns of transfer; all of them None where a parent has no table."""
    if transfers is None:
        names = [f"{rate}{end}" for rate in ("ntr", "ptr") for end in ("", "_low", "_high")]
        return dict.fromkeys(["solved", "u", *names, "delta_ntr"])
    first, second = transfers
    solved = second.solved[part]
    found: Row = {"solved": float(solved.sum()), "u": float(solved.mean())}
    for name, sides in second.rates.items():
        hit, base = sides[0][row, part], sides[1][part]
        interval = rate_interval(hit, base, benchmarks[part])
        found |= {
            name: float(hit.sum() / base.sum()) if base.any() else None,
            f"{name}_low": _known(interval.low),
            f"{name}_high": _known(interval.high),
        }
    moved = (second.lost[row, part] - first.lost[row, part]).sum()
    return found | {"delta_ntr": float(moved / solved.sum()) if solved.any() else None}


def _known(value: Any) -> float | None:
    return None if math.isnan(value) else float(value)
