"""Which candidates and benchmarks take part in a comparison.

An imported candidate may lack a benchmark, because its file was torn or never there. It is compared
on all benchmarks of an evaluation or on none: whoever wants its figures leaves the benchmark out
for all.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from l2s_hpc.analysis.frames import Frames
from l2s_hpc.errors import UserError, did_you_mean
from l2s_hpc.measures.tradeoff import non_dominated

COUNTED = (
    "tokens were counted anew from the texts, with a tokenizer and without special tokens: "
    "approximately those that were generated"
)
UNCOUNTED = "`l2s import --tokenizer FOLDER` counts the tokens of imported texts"
"""What is said of answer lengths where a tokenizer told them, or might."""

Lacks = Mapping[str, Collection[str]]
"""By candidate, the benchmarks that an import found no sound file of."""


def comparable(
    frames: Frames, evaluation: str, without: Collection[str], lacks: Lacks
) -> tuple[Frames, list[str]]:
    """Return the tables without some benchmarks, and the candidates that have all the others.

    A candidate that is left out for want of a benchmark is named in a warning.

    Raises:
        UserError: a benchmark that is to be left out is unknown, or none is left; or each candidate
            lacks one.
    """
    known = frames.usable(evaluation)
    if without and known:
        _check(frames.benchmarks(evaluation), without)
    lacking = by_lack({c: lacks.get(c, ()) for c in known}, without)
    whole = lacking.pop((), [])
    if lacking and not whole:
        hint = _enough(lacking, without, frames.benchmarks(evaluation))
        raise UserError(_nobody(lacking), hint=hint, path=frames.folder)
    for benchmarks, candidates in lacking.items():
        warnings.warn(left_out(benchmarks, candidates), stacklevel=4)
    return frames.leaving_out(without), whole


def by_lack(lacks: Lacks, without: Collection[str] = ()) -> dict[tuple[str, ...], list[str]]:
    """Return the candidates by the benchmarks that they lack, beside those that are left out."""
    found: dict[tuple[str, ...], list[str]] = {}
    for candidate, benchmarks in lacks.items():
        found.setdefault(tuple(sorted({*benchmarks} - {*without})), []).append(candidate)
    return found


def left_out(benchmarks: Collection[str], candidates: Collection[str]) -> str:
    """Return a sentence on candidates that lack some benchmarks."""
    names = " and ".join(benchmarks)
    return (
        f"{', '.join(candidates)} {'lacks' if len(candidates) == 1 else 'lack'} {names}: compared "
        f"with the others only where --without leaves {names} out for all"
    )


def not_comparable(candidate: str, evaluation: str, folder: Path) -> UserError:
    """Return the error that a candidate which has a table is not among those compared."""
    return UserError(
        f"{candidate} cannot be compared in '{evaluation}'",
        hint="it lacks a benchmark (--without leaves that out), or its table is damaged",
        path=folder,
    )


def best_measured(
    measured: Mapping[str, Mapping[str, float | None]], references: Iterable[str]
) -> list[str]:
    """Return the candidates that no other dominates: the front where there was no search.

    By accuracy and tokens, or by accuracy alone where somebody's tokens are unknown. References
    are what the others are compared with, and stand on no front.
    """
    apart = set(references)
    rows = {candidate: row for candidate, row in measured.items() if candidate not in apart}
    if not rows:
        return []
    points = [(-(row["accuracy"] or 0.0), row["tokens"]) for row in rows.values()]
    if any(tokens is None for _, tokens in points):
        points = [(accuracy, 0.0) for accuracy, _ in points]
    mask = non_dominated([(accuracy, float(tokens or 0.0)) for accuracy, tokens in points])
    return [candidate for candidate, on_front in zip(rows, mask, strict=True) if on_front]


def _nobody(lacking: Mapping[tuple[str, ...], list[str]]) -> str:
    """Say that each candidate lacks some benchmark, and which lacks which."""
    parts = [
        f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} lacking in {', '.join(found)}"
        for names, found in lacking.items()
    ]
    return f"no candidate has all benchmarks: {'; '.join(parts)}"


def _enough(
    lacking: Mapping[tuple[str, ...], list[str]], without: Collection[str], known: list[str]
) -> str:
    """Return a hint that lets as many candidates as possible be compared."""
    ways = {
        names: sum(len(found) for others, found in lacking.items() if {*others} <= {*names})
        for names in lacking
        if not {*without, *names}.issuperset(known)
    }
    if not ways:
        return "leave fewer benchmarks out"
    best = max(ways, key=lambda names: ways[names])
    return f"--without {','.join(sorted({*without, *best}))} compares {ways[best]} of them"


def _check(known: list[str], without: Collection[str]) -> None:
    for name in without:
        if name not in known:
            raise UserError(f"no benchmark '{name}' here", hint=did_you_mean(name, known))
    if not set(known) - set(without):
        raise UserError("no benchmark is left to compare on")
