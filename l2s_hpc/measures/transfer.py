"""Negative and positive transfer: what a merge loses and gains against its parents.

An item counts as solved when at least one parent solves it. The negative transfer rate (NTR) is
the share of the solved items that the merge gets wrong, the positive transfer rate (PTR) the share
of the other items that it gets right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2s_hpc.errors import UserError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Shares:
    """Transfer item by item: the shares of its samples, or 0 and 1 where there is one sample.

    Summed over items, NTR = Σ lost / Σ solved and PTR = Σ gained / Σ unsolved. The merge solves an
    item as often as solved - lost + gained says; never is `lost` above `solved`, nor `gained` above
    `unsolved`.

    Attributes:
        solved: how often some parent solves the item, shape `[items]`.
        unsolved: how often none does, same shape.
        lost: how often some parent does and the merge, in another sample, does not, shape
            `[candidates, items]`.
        gained: how often no parent does and the merge, in another sample, does; shape of `lost`.
    """

    solved: Floats
    unsolved: Floats
    lost: Floats
    gained: Floats

    @property
    def rates(self) -> dict[str, tuple[Floats, Floats]]:
        """Numerator `[candidates, items]` and denominator `[items]` of NTR and PTR, by name."""
        return {"ntr": (self.lost, self.solved), "ptr": (self.gained, self.unsolved)}


def shares(parents: NDArray[Any], merged: NDArray[Any]) -> Shares:
    """Compare merges with their parents on each item, by one sample or several.

    With o_i = max_j Y_ij over parents j: NTR = Σ o_i (1 - Y_im) / Σ o_i and
    PTR = Σ (1 - o_i) Y_im / Σ (1 - o_i), as the published evaluations of these merges define them,
    so that accuracy = u (1 - NTR) + (1 - u) PTR with u = Σ o_i / n.

    With n > 1 samples, o (what some parent solves in a sample) and Y (what the merge solves) come
    from disjoint halves of the samples, averaged over all ways to halve them. That is the average
    over all pairs of different samples, lost = Σ_{a≠b} o_a (1 - Y_b) / n (n - 1), which needs no
    even n, keeps the identity over all samples, and estimates the same rate for every n.

    Args:
        parents: 0/1 or bool, shape `[samples, parents, items]`.
        merged: 0/1 or bool, shape `[samples, candidates, items]`, in the same item order.

    Raises:
        UserError: the shapes do not fit, there is nothing to compare, or a score is not 0 or 1.
    """
    if parents.ndim != 3 or merged.ndim != 3 or parents.shape[::2] != merged.shape[::2]:
        raise UserError(
            f"parents have shape {list(parents.shape)} and merges {list(merged.shape)}, but "
            "[samples, parents, items] and [samples, candidates, items] are needed",
            hint="evaluate parents and merges on the same items; none is dropped silently",
        )
    if parents.size == 0:
        raise UserError("transfer needs at least one parent and one item")
    solved: NDArray[np.bool_] = np.any(_as_bool(parents), axis=1)
    right, samples = _as_bool(merged), parents.shape[0]
    if samples == 1:
        once, y = solved[0].astype(np.float64), right[0].astype(np.float64)
        return Shares(once, 1 - once, lost=once * (1 - y), gained=(1 - once) * y)
    # Whole numbers up to samples², so exact; as few bytes as hold them, for there are many.
    counts = np.min_scalar_type(-(samples**2))
    by_some = solved.sum(axis=0, dtype=counts)
    by_merge = right.sum(axis=0, dtype=counts)
    together = np.zeros_like(by_merge)
    for o, y in zip(solved, right, strict=True):
        together += o & y
    both = by_some * by_merge - together  # pairs of different samples
    pairs = samples * (samples - 1)
    return Shares(
        solved=by_some / samples,
        # 1 - solved would miss it by a rounding step, and some `gained` would be above it.
        unsolved=(samples - by_some) / samples,
        lost=(by_some * (samples - 1) - both) / pairs,
        gained=(by_merge * (samples - 1) - both) / pairs,
    )


def _as_bool(scores: NDArray[Any]) -> NDArray[np.bool_]:
    """Return 0/1 scores as bool; anything else (a NaN, a percentage) is refused, not rounded."""
    right: NDArray[np.bool_] = scores == 1
    if not np.all(right | (scores == 0)):
        raise UserError("scores must be 0 or 1", hint="one declared sample per item, graded")
    return right
