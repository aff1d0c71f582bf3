"""What a step may do; `decide` chooses, `Controller` carries out."""

from __future__ import annotations

from dataclasses import dataclass

from l2s_hpc.records import Receipt
from l2s_hpc.store.state import AttemptState


@dataclass(frozen=True)
class Adopt:
    """Record the job that was found under a batch's name."""

    batch: str
    job: str


@dataclass(frozen=True)
class Abandon:
    """Give up a batch that was never submitted."""

    batch: str


@dataclass(frozen=True)
class End:
    """End jobs of a batch that has no use for them any more."""

    batch: str
    jobs: tuple[str, ...]


@dataclass(frozen=True)
class Close:
    """Record that a batch is settled and its jobs are gone."""

    batch: str


@dataclass(frozen=True)
class Accept:
    """Verify an attempt's score table and let it count."""

    attempt: AttemptState
    receipt: Receipt


@dataclass(frozen=True)
class Fail:
    """Record that an attempt left no score table; `counted` ones lead to a penalty."""

    attempt: AttemptState
    kind: str
    message: str
    counted: bool
    node: str = ""
    seconds: float = 0.0
    chunks: int = 0


@dataclass(frozen=True)
class Penalise:
    """Give a candidate up in an evaluation."""

    evaluation: str
    candidate: str
    reason: str


@dataclass(frozen=True)
class Submit:
    """Evaluate candidates: (candidate, generation, next attempt), elsewhere than on some nodes."""

    evaluation: str
    candidates: tuple[tuple[str, int, int], ...]
    avoid: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ask:
    """Ask the algorithm for this generation."""

    generation: int


@dataclass(frozen=True)
class Tell:
    """Record a generation's objectives."""

    generation: int


@dataclass(frozen=True)
class Stage:
    """Go on to the evaluation of this split."""

    evaluation: str


@dataclass(frozen=True)
class Fix:
    """Fix the final front and the named picks on the selection split."""


@dataclass(frozen=True)
class Complete:
    """All is done."""


Action = (
    Adopt
    | Abandon
    | End
    | Close
    | Accept
    | Fail
    | Penalise
    | Submit
    | Ask
    | Tell
    | Stage
    | Fix
    | Complete
)
