"""The part of a report that shows existing checkpoints: mean@n and pass@k by evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from l2s_hpc.analysis.figures import Figures
from l2s_hpc.analysis.page import Child, Html, el, join, table
from l2s_hpc.analysis.run import Run
from l2s_hpc.analysis.samples import Row
from l2s_hpc.analysis.words import (
    GRADABLE,
    IF_RIGHT,
    UNDECIDED,
    benchmark_words,
    grading_words,
    idle_columns,
    known,
)
from l2s_hpc.records import Evaluation
from l2s_hpc.store.run import read_evaluation

_WORDS = (
    "mean@n is the share of right answers among n samples of each item; pass@k the chance that one "
    "of k samples is right, estimated without bias. In brackets 95% intervals over items."
)


def evaluated(run: Run, figures: Figures) -> Html:
    """Return a section for each evaluation of a run that has tables."""
    parts = [_section(run, name) for name in run.evaluations]
    return join([el("h2", "Scores"), el("p", _WORDS if parts else "Nothing yet."), *parts])


def _section(run: Run, name: str) -> Html:
    described = read_evaluation(run.folder, name)
    rows = run.samples(name)
    names = dict.fromkeys(row["benchmark"] for row in rows)
    parts = []
    for benchmark in names:
        found = _table([row for row in rows if row["benchmark"] == benchmark])
        heading = benchmark_words(benchmark)
        parts.append(
            join([el("h4", heading), found])
            if benchmark == "all"
            else el("details", el("summary", heading), found)
        )
    return join([el("h3", name), el("p", _protocol(described)), *parts])


def _table(rows: Sequence[Row]) -> Html:
    first = rows[0]
    items, gradable = first["items"], first["gradable"]
    undecided = any(row["undecided"] for row in rows)
    hidden = idle_columns(items, gradable, undecided)
    cells: list[dict[str, Child]] = [
        {
            "model": str(row["label"] or row["candidate"]),
            f"mean@{row['samples']}": _rate(row["mean"], row["mean_low"], row["mean_high"]),
            GRADABLE: known(row["mean_gradable"], "{:.1%}"),
            **{
                f"pass@{e['k']}": _rate(e["value"], e["low"], e["high"])
                for e in row["pass"]
                if e["k"] > 1
            },
            "mean tokens": f"{row['tokens']:.1f}",
            IF_RIGHT: known(row["tokens_right"], "{:.1f}"),
            "cut off": f"{row['truncation']:.1%}",
            UNDECIDED: f"{row['undecided']:.1%}",
        }
        for row in rows
    ]
    head = [name for name in cells[0] if name not in hidden]
    drawn = table(head, [[row[name] for name in head] for row in cells], {0})
    note = f"{items} items.{grading_words(items, gradable, undecided)}"
    return join([el("p", note, class_="note"), drawn])


def _protocol(evaluation: Evaluation) -> str:
    protocol: Mapping[str, Any] = evaluation.protocol.model_dump()
    return (
        f"Prompt {protocol['prompt']}, temperature {protocol['temperature']:g}, top-p "
        f"{protocol['top_p']:g}, at most {protocol['max_tokens']} tokens, {protocol['samples']} "
        f"sample(s) an item, seed {protocol['seed']}, engine {protocol['engine']}; each model with "
        "its own tokenizer and stop ids."
    )


def _rate(value: float, low: float, high: float) -> Html:
    return join([f"{value:.1%}", el("small", f" [{100 * low:.1f},\u00a0{100 * high:.1f}]")])
