"""The part of a report on answer lengths: how long they are, what was cut, what a merge saves."""

from __future__ import annotations

from l2s_hpc.analysis.chart_items import lengths_chart
from l2s_hpc.analysis.figures import Figures, Key
from l2s_hpc.analysis.look import AVERAGE, COLOURS, FRONT, OTHER, PARENT, SEARCHED, SWEEP
from l2s_hpc.analysis.page import Child, Html, el, join, sorted_by, table
from l2s_hpc.analysis.run import Run
from l2s_hpc.analysis.transfer import Row
from l2s_hpc.analysis.words import (
    benchmark_words,
    items_of,
    known,
    number,
    optimistic,
    short_names,
    shown_models,
)

_WORDS = (
    "Tokens as the objective charges them. An answer that the token budget cut counts as long as "
    "it was, so that its model's mean is a lower bound. Saved is by how much an answer is shorter "
    "than the first parent's to the same problem, with its paired 95% interval."
)


def lengths_section(run: Run, figures: Figures) -> Html:
    """Return where the lengths of the front's and the references' answers lie."""
    best = run.best_evaluation()
    names = short_names(run, shown_models(run))
    if not names:
        return Html("")
    frame = run.lengths(best, list(names))
    rows = [
        {**row, "model": names[row["candidate"]], "kind": _kind(run, row["candidate"])}
        for row in frame.iter_rows(named=True)
        if row["mean"] is not None
    ]
    pooled = [row for row in rows if row["benchmark"] == "all"]
    if not pooled:
        return Html("")
    n, kinds = items_of(run, best), [row["kind"] for row in pooled]
    drawn = figures.place(
        "lengths",
        lengths_chart(pooled, [row["model"] for row in pooled]),
        f"Where the lengths of {pooled[0]['n']} answers of each model lie, on the {n} items of the "
        f"{best} split: the line holds 90% of them, the box half, the bar is the median and the "
        "point the mean. These are shares of the answers, no intervals of an estimate; those of "
        "the means stand in the table.",
        title=f"{run.info.name}: answer lengths",
        note=f"{best} split, {n} items; line 90%, box 50% of the answers",
        keys=[Key(kind, COLOURS[kind]) for kind in COLOURS if kind in kinds],
    )
    parts = []
    for name in dict.fromkeys(row["benchmark"] for row in rows):
        found = _table([row for row in rows if row["benchmark"] == name])
        parts.append(el("details", el("summary", benchmark_words(name)), found))
    title = el("h2", "Answer lengths", optimistic(run, best))
    return join([title, drawn, el("p", _WORDS), *parts])


def _table(rows: list[Row]) -> Html:
    cells: list[list[Child]] = [
        [
            row["model"], str(row["n"]), sorted_by(row["mean"], _mean(row)),
            f"{row['median']:.0f}", f"{row['q05']:.0f}", f"{row['q95']:.0f}",
            known(row["mean_right"], "{:.1f}"), known(row["mean_wrong"], "{:.1f}"),
            known(row["cut"], "{:.1%}"), number(row, "saved"),
        ]
        for row in rows
    ]  # fmt: skip
    head = ["model", "answers", "mean", "median", "5% below", "5% above", "mean if right",
            "mean if wrong", "cut off", "saved"]  # fmt: skip
    return table(head, cells, {0})


def _mean(row: Row) -> str:
    return f"{'≥ ' if row['lower_bound'] else ''}{row['mean']:.1f}"


def _kind(run: Run, candidate: str) -> str:
    label = run.labels.get(candidate, "").partition(".")[0]
    by_label = {"parent": PARENT, "average": AVERAGE, "sweep": SWEEP}
    on_front = {row["candidate"] for row in run.front()}
    others = OTHER if run.info.imported else SEARCHED
    return by_label.get(label) or (FRONT if candidate in on_front else others)
