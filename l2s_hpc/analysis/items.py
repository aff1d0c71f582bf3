"""Items one by one: their levels, which a merge lost and gained, and who solves which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from l2s_hpc.analysis.names import resolve
from l2s_hpc.errors import DamageError, UserError, did_you_mean
from l2s_hpc.evaluation.manifests import sources
from l2s_hpc.store.files import read_json
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.store.run import undescribed

if TYPE_CHECKING:
    from l2s_hpc.analysis.run import Run

Key = tuple[str, str]
"""An item: its benchmark and its id."""

GROUPS = ("level", "subject")
"""By what a benchmark may group its items."""


@dataclass(frozen=True)
class ItemMatrix:
    """Who solves which item, ordered so that structure shows.

    Attributes:
        values: uint8 `[item, candidate]`, 1 = right, of the first sample.
        items: the pairs (benchmark, item) along the first axis: those that the parents solve in the
            same way stand together, and of these the easiest first.
        candidates: the ids along the second axis, by the first principal axis.
        labels: the name of each reference among the candidates, else None.
        solved_by: the parents that solve each item, by name; empty where the parents are unknown.
    """

    values: NDArray[np.uint8]
    items: tuple[Key, ...]
    candidates: tuple[str, ...]
    labels: tuple[str | None, ...]
    solved_by: tuple[tuple[str, ...], ...]


def groups_of(run: Run, evaluation: str, by: str) -> dict[Key, str]:
    """Return the level or the subject of each item of an evaluation that has one.

    It stands in the evaluation's description, or else in the benchmark's manifest. What a benchmark
    has is one of both; a benchmark of one's own has levels.

    Raises:
        UserError: `by` is neither `level` nor `subject`, or no item has one.
        DamageError: the evaluation's description is missing or damaged.
    """
    if by not in GROUPS:
        hint = did_you_mean(by, ("benchmark", *GROUPS))
        raise UserError(f"transfer cannot be told by '{by}'", hint=hint)
    found = _groups(run, evaluation)[by]
    if not found:
        other = GROUPS[1 - GROUPS.index(by)]
        raise UserError(
            f"no item of evaluation '{evaluation}' has a {by}",
            hint=f"its benchmarks may have a {other}, or neither; bare scores get their items from "
            "`l2s import --benchmarks`",
            path=run.folder,
        )
    return found


def transferred(run: Run, candidate: str, evaluation: str | None = None) -> pl.DataFrame:
    """Return the items that a candidate lost and gained against the run's parents.

    Columns: benchmark, item, level, subject, change (`lost`: some parent solves it and the
    candidate does not; `gained`: the reverse), solved_by (the names of the parents that do; empty
    for a gain). All by the first sample of each item.

    Args:
        run: the run.
        candidate: as `names.resolve` understands it.
        evaluation: None means `best_evaluation()`.

    Raises:
        UserError: the candidate or a parent has no table there.
        DamageError: a table or the evaluation's description is damaged.
    """
    evaluation = evaluation or run.best_evaluation()
    merged = resolve(run, candidate)
    frames, known = run.comparable(evaluation)
    absent = [c for c in (merged, *run.parents.values()) if c not in known]
    if absent or not run.parents:
        text = f"{', '.join(absent)} has no table" if absent else "the run has no parents"
        raise UserError(f"{text} in evaluation '{evaluation}'", path=run.folder)
    tensor = frames.tensor(evaluation, list(dict.fromkeys([*run.parents.values(), merged])))
    row = {name: tensor.values[tensor.candidates.index(c)] for name, c in run.parents.items()}
    right = tensor.values[tensor.candidates.index(merged)]
    groups = _groups(run, evaluation)
    rows = []
    for place, key in enumerate(tensor.items):
        solved_by = [name for name, values in row.items() if values[place]]
        if bool(right[place]) == bool(solved_by):
            continue
        rows.append(
            {
                "benchmark": key[0],
                "item": key[1],
                **{by: groups[by].get(key) for by in GROUPS},
                "change": "lost" if solved_by else "gained",
                "solved_by": solved_by,
            }
        )
    schema: dict[str, Any] = dict.fromkeys(("benchmark", "item", *GROUPS, "change"), pl.String)
    return pl.DataFrame(rows, schema=schema | {"solved_by": pl.List(pl.String)})


def matrix(run: Run, benchmark: str | None = None, evaluation: str | None = None) -> ItemMatrix:
    """Return who solves which item of a benchmark, or of all; see `ItemMatrix`."""
    tensor = run.tensor(benchmark, evaluation)
    values = tensor.values
    of_parents = [
        (name, tensor.candidates.index(c))
        for name, c in run.parents.items()
        if c in tensor.candidates
    ]
    pattern = [
        tuple(name for name, row in of_parents if values[row, i]) for i in range(len(tensor.items))
    ]
    order = {names: -len(names) for names in pattern}
    places = [name for name, _ in of_parents]
    solved = values.sum(axis=0)
    items = sorted(
        range(len(tensor.items)),
        key=lambda i: (
            order[pattern[i]],
            [places.index(name) for name in pattern[i]],
            -int(solved[i]),
            tensor.items[i],
        ),
    )
    first = of_parents[0][1] if of_parents else int(values.sum(axis=1).argmax())
    columns = _by_principal_axis(values, first)
    return ItemMatrix(
        values=np.ascontiguousarray(values[columns][:, items].T),
        items=tuple(tensor.items[i] for i in items),
        candidates=tuple(tensor.candidates[c] for c in columns),
        labels=tuple(run.labels.get(tensor.candidates[c]) for c in columns),
        solved_by=tuple(pattern[i] for i in items),
    )


def _by_principal_axis(values: NDArray[np.uint8], first: int) -> list[int]:
    """Return the rows in the order of their scores on the first principal axis.

    Rows that solve the same items come to stand together (M. Friendly and E. Kwan 2003, "Effect
    ordering for data displays", Computational Statistics and Data Analysis 43, 509-539). Of its two
    directions the axis takes the one on which row `first` stands in the first half.
    """
    centred = values - values.mean(axis=0)
    _, vectors = np.linalg.eigh(centred @ centred.T)
    # Rounded, for a tie must not be broken by the last digit, which depends on the machine.
    scores = np.round(vectors[:, -1], 9)
    if scores[first] > 0:
        scores = -scores
    return sorted(range(len(values)), key=lambda row: (scores[row], row != first, row))


def _groups(run: Run, evaluation: str) -> dict[str, dict[Key, str]]:
    """Return the level and the subject of each item of an evaluation that has one."""
    path = RunPaths(run.folder).evaluation(evaluation)
    try:
        items = [(one["benchmark"], one["item"], one["level"]) for one in read_json(path)["items"]]
    except (OSError, KeyError, TypeError, DamageError):
        raise undescribed(path) from None
    known = sources()
    found: dict[str, dict[Key, str]] = {by: {} for by in GROUPS}
    for benchmark, item, level in items:
        source = known.get(benchmark)
        if level is None and source is not None and item in source.items:
            level = source.items[item].level
        if level is not None:
            by = source.level if source is not None and source.level in GROUPS else "level"
            found[by][benchmark, item] = str(level)
    return found
