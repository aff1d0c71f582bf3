"""What candidates did on each item, over all of its samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2s_hpc.analysis.frames import Frames, ScoreTensor
from l2s_hpc.measures.transfer import Shares, shares

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Verdicts:
    """The answers of candidates as arrays `[candidate, item]`, each a mean over the item's samples.

    Attributes:
        samples: a tensor for each sample, with the names of the two axes.
        right: the share of samples that are right.
        tokens: the tokens that the objective charges; NaN where one is unknown.
        tokens_of_right: those of right samples, the others as 0; `right` has their number.
        truncated: the share that the token budget cut; NaN where one is unknown.
        undecided: the share without a decision.
        gradable: bool, whether a rule can judge answers to the item.
        benchmarks: the benchmark of each item.
    """

    samples: tuple[ScoreTensor, ...]
    right: Floats
    tokens: Floats
    tokens_of_right: Floats
    truncated: Floats
    undecided: Floats
    gradable: NDArray[np.bool_]
    benchmarks: NDArray[np.str_]

    @property
    def items(self) -> tuple[tuple[str, str], ...]:
        """The pairs (benchmark, item) along the second axis."""
        return self.samples[0].items

    def row(self, candidate: str) -> int:
        """Return the place of a candidate along the first axis."""
        return self.samples[0].candidates.index(candidate)

    def shares(self, parents: Sequence[str], merged: Sequence[str]) -> Shares:
        """Return the transfer of each item; rows are those of `merged`."""
        of_parents = [self.row(parent) for parent in parents]
        of_merged = [self.row(candidate) for candidate in merged]
        values = [sample.values for sample in self.samples]
        return shares(
            np.stack([sample[of_parents] for sample in values]),
            np.stack([sample[of_merged] for sample in values]),
        )


def read_verdicts(frames: Frames, evaluation: str, candidates: Sequence[str]) -> Verdicts:
    """Return the answers of candidates in an evaluation, items sorted by benchmark and id.

    Raises:
        DamageError: a table is damaged, or a candidate lacks an item or a sample that another has.
        UserError: nothing was accepted there.
    """
    tensors = frames.samples(evaluation, candidates)
    return Verdicts(
        samples=tensors,
        right=_mean([t.values for t in tensors]),
        tokens=_mean([t.tokens for t in tensors]),
        tokens_of_right=_mean([t.tokens * t.values for t in tensors]),
        truncated=_mean([t.truncated for t in tensors]),
        undecided=_mean([t.undecided for t in tensors]),
        gradable=tensors[0].gradable,
        benchmarks=tensors[0].benchmarks,
    )


def _mean(samples: Sequence[NDArray[Any]]) -> Floats:
    return np.asarray(np.mean(samples, axis=0, dtype=np.float64))
