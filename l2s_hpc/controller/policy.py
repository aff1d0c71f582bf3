"""The settings that decisions depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from l2s_hpc.controller.budget import Budget


@dataclass(frozen=True)
class Policy:
    """The settings that decisions depend on.

    `only` is a single evaluation of some candidates in place of a search (`l2s run --smoke`);
    `twins` is how many candidates are evaluated again to measure the noise, see `course.twins`.
    """

    generations: int
    attempts: int
    failures: float
    references: Mapping[str, str]
    parents: Mapping[str, str]
    only: tuple[str, tuple[str, ...]] | None = None
    resubmit_cancelled: int = 0
    node_faults: int = 3
    allow_mixed_gpus: bool = False
    twins: int = 0
    budget: Budget = field(default_factory=Budget)
