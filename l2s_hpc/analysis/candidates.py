"""A run's candidates as rows: what they are, and their measures in an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from l2s_hpc.analysis.fitness import RATES, Measures
from l2s_hpc.analysis.tradeoff import feasible

if TYPE_CHECKING:
    from l2s_hpc.analysis.run import Run


def candidate_frame(run: Run, evaluation: str) -> pl.DataFrame:
    """Return one row for each candidate of a run; see `Run.candidates`."""
    state, genes = run.state, run.genes
    measured = run.measures(evaluation)
    meets = feasible(state)
    rows = []
    for candidate in dict.fromkeys([*state.genomes, *run.labels, *measured]):
        found = measured.get(candidate, {})
        genome = state.genomes.get(candidate, (None,) * len(genes))
        rows.append(
            {
                "candidate": candidate,
                "generation": state.first_seen[candidate] if candidate in state.genomes else None,
                "label": run.labels.get(candidate),
                **dict(zip(genes, genome, strict=True)),
                "feasible": meets.get(candidate),
                "penalised": state.penalised.get((evaluation, candidate)),
                **{name: found.get(name) for name in ("n", "n_gradable", *_shown(run))},
            }
        )
    return pl.DataFrame(rows, schema=_schema(run))


def front_row(run: Run, candidate: str, found: Measures) -> dict[str, Any]:
    """Return a row of the front; see `Run.front`."""
    asked = candidate in run.state.genomes
    return {
        "candidate": candidate,
        "label": run.labels.get(candidate),
        "generation": run.state.first_seen[candidate] if asked else None,
        "genome": list(run.state.genomes[candidate]) if asked else None,
        "picks": picks_of(run, candidate),
        **{name: found[name] for name in ("n", "n_gradable", *_shown(run))},
    }


def picks_of(run: Run, candidate: str) -> list[str]:
    """Return the names under which a candidate was picked."""
    return [name for name, pick in run.state.picks.items() if pick == candidate]


def known_as(picks: Sequence[str], label: str | None) -> str | None:
    """Return a candidate's names in a table: its picks, else its label; None if it has neither.

    A command takes each of these words in the place of the id.
    """
    return ", ".join(picks) or label


def short_name(run: Run, candidate: str) -> str:
    """Return one word for a candidate that a command takes: a pick, else its label, else its id."""
    return known_as(picks_of(run, candidate)[:1], run.labels.get(candidate)) or candidate


def telling(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rows for a narrow table, without columns that tell nothing in any of them.

    `n_gradable` and `accuracy_gradable` tell something where an item is not gradable, `undecided`
    where a verdict is.
    """
    idle = set()
    if all(row["n_gradable"] == row["n"] for row in rows):
        idle |= {"n_gradable", "accuracy_gradable"}
    if not any(row["undecided"] for row in rows):
        idle.add("undecided")
    return [{name: value for name, value in row.items() if name not in idle} for row in rows]


def _shown(run: Run) -> list[str]:
    return list(dict.fromkeys([*RATES, *run.config["objectives"]]))


def _schema(run: Run) -> dict[str, pl.DataType]:
    return {
        "candidate": pl.String(),
        "generation": pl.Int64(),
        "label": pl.String(),
        **{gene: pl.Float64() for gene in run.genes},
        "feasible": pl.Boolean(),
        "penalised": pl.String(),
        "n": pl.Int64(),
        "n_gradable": pl.Int64(),
        **{name: pl.Float64() for name in _shown(run)},
    }
