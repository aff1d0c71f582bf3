"""The part of a report on transfer: who keeps, loses and gains what, by model and benchmark."""

from __future__ import annotations

from l2s_hpc.analysis.chart_items import (
    matrix_chart,
    matrix_keys,
    matrix_rows,
    rates_chart,
    rates_keys,
)
from l2s_hpc.analysis.figures import Figures
from l2s_hpc.analysis.items import GROUPS
from l2s_hpc.analysis.page import Child, Html, el, join, table
from l2s_hpc.analysis.run import Run
from l2s_hpc.analysis.transfer import Row
from l2s_hpc.analysis.words import (
    benchmark_table,
    benchmark_words,
    items_of,
    known,
    optimistic,
    rate,
    short_names,
    shown_models,
)
from l2s_hpc.errors import DamageError, UserError

_WORDS = (
    "NTR is the share of the items solved by some parent that the model gets wrong, PTR "
    "the share of the other items that it gets right. A parent's own NTR need not be zero: "
    "another one may solve items that it does not. In brackets 95% intervals; “–” has no items."
)


def tables_section(run: Run, figures: Figures) -> Html:
    """Return accuracy, tokens and transfer of front, picks and references by benchmark."""
    best = run.best_evaluation()
    rows = run.table(best, shown_models(run))
    # What existing checkpoints scored stands above already: only transfer is new.
    if not rows or (run.info.purpose == "evaluate" and not run.parents):
        return Html("")
    parts: list[Html] = []
    for name in dict.fromkeys(row["benchmark"] for row in rows):
        part = benchmark_table(run, [row for row in rows if row["benchmark"] == name])
        title = benchmark_words(name)
        parts.append(
            join([el("h3", title), part])
            if name == "all"
            else el("details", el("summary", title), part)
        )
    heading = "Front and references" if run.info.purpose == "search" else "Models"
    where = f" in {best}" if run.info.purpose == "evaluate" else ""
    title = el("h2", f"{heading} by benchmark{where}", optimistic(run, best))
    drawn = _rates(run, figures, [row for row in rows if row["benchmark"] == "all"])
    groups = [_grouped(run, by) for by in GROUPS]
    return join([title, el("p", _WORDS), drawn, *parts, *groups])


def matrix_section(run: Run, figures: Figures) -> Html:
    """Return which model solves which item."""
    best = run.best_evaluation()
    if not run.measures(best):
        return Html("")
    found = run.matrix(None, best)
    shown = set(shown_models(run))
    models = [candidate for candidate in found.candidates if candidate in shown]
    names = list(short_names(run, models).values())
    rows, differing = matrix_rows(found, models, names)
    if not rows:
        return Html("")
    drawn_items, n = rows[-1]["end"], len(found.items)
    few = drawn_items < differing
    words = (
        f"{len(models)} models on {drawn_items} of the {n} items of the {best} split: those on "
        "which they differ"
        + (f", drawn evenly from {differing} of them" if few else "")
        + ". Items that the same parents solve stand together, the easiest first; models that "
        "solve the same items stand together. Shown is the first answer to an item, so there is no "
        "interval."
    )
    drawn = figures.place(
        "items",
        matrix_chart(rows, names),
        words,
        title=f"{run.info.name}: who solves which item",
        note=f"{best} split, {drawn_items} of {n} items",
        keys=matrix_keys(rows),
    )
    return join([el("h2", "Items", optimistic(run, best)), drawn])


def noise_section(run: Run, figures: Figures) -> Html:
    """Return how far figures differ by noise alone, and the twins that tell it."""
    found = run.noise()
    if found is None:
        return Html("")
    best = run.best_evaluation()
    n = items_of(run, best)
    tokens, ntr = found.sd("tokens", n), found.sd("ntr", n)
    words = (
        f"{len(found.candidates)} models answered the {found.n} {found.evaluation} items once more "
        f"in another order, which favours nobody. {found.flips:.1%} [{100 * found.flips_low:.1f}, "
        f"{100 * found.flips_high:.1f}] of the verdicts changed (95% interval over items). On "
        f"{n} items like those of the {best} split a difference of two models by noise alone has "
        f"the sd {100 * (found.sd('accuracy', n) or 0):.2f} points of accuracy (at the upper end "
        f"of that interval {100 * found.most(n):.2f})"
        + (f", {tokens:.1f} tokens" if tokens is not None else "")
        + (f", {100 * ntr:.2f} points of NTR" if ntr is not None else "")
        + ": up to about two sd a difference may be noise."
    )
    names = short_names(run, found.candidates)
    rows: list[list[Child]] = [
        [
            f"{names[row['candidate']]}, again", rate(row, "accuracy"),
            known(row["tokens"], "{:.1f}"), rate(row, "ntr"), rate(row, "ptr"),
            known(row["flips"], "{:.1%}"), known(row["delta_accuracy"], "{:+.1%}"),
            known(row["delta_tokens"], "{:+.1f}"), known(row["delta_ntr"], "{:+.1%}"),
        ]
        for row in found.rows
        if row["benchmark"] == "all"
    ]  # fmt: skip
    head = ["twin", "accuracy", "mean tokens", "NTR", "PTR", "flips", "Δ accuracy", "Δ tokens",
            "Δ NTR"]  # fmt: skip
    return join([el("h2", "Noise"), el("p", words), table(head, rows, {0})])


def _rates(run: Run, figures: Figures, rows: list[Row]) -> Html:
    if all(row["ntr"] is None and row["ptr"] is None for row in rows):
        return Html("")
    names = short_names(run, [row["candidate"] for row in rows])
    best, first = run.best_evaluation(), rows[0]
    shown = [{**row, "model": names[row["candidate"]]} for row in rows]
    return figures.place(
        "transfer",
        rates_chart(shown, list(names.values())),
        f"NTR is of the {first['solved']:g} items that some parent solves, PTR of the other "
        f"{first['n'] - first['solved']:g}, on the {best} split; bars are 95% intervals of each "
        "rate on its own.",
        title=f"{run.info.name}: transfer",
        note=f"{best} split; NTR of {first['solved']:g}, PTR of {first['n'] - first['solved']:g} "
        "items; bars are 95% intervals",
        keys=rates_keys(),
    )


def _grouped(run: Run, by: str) -> Html:
    """Return NTR and PTR by level or subject; nothing where no benchmark has any."""
    try:
        found = run.ntr(run.best_evaluation(), by=by)
    except (UserError, DamageError):
        return Html("")
    names = short_names(run, shown_models(run))
    rows: list[list[Child]] = [
        [
            names[row["candidate"]], row["benchmark"], str(row[by]), str(row["n"]),
            known(row["solved"], "{:g}"), rate(row, "ntr"), rate(row, "ptr"), rate(row, "accuracy"),
        ]
        for row in found
        if row["candidate"] in names
    ]  # fmt: skip
    head = ["model", "benchmark", by, "items", "solved", "NTR", "PTR", "accuracy"]
    return el("details", el("summary", f"By {by}"), table(head, rows, {0, 1, 2}))
