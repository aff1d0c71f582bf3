"""The part of a report on the trade-off: the front, what it rests on, and the whole search."""

from __future__ import annotations

from l2s_hpc.analysis.charts import front_chart
from l2s_hpc.analysis.compared import UNCOUNTED
from l2s_hpc.analysis.figures import Figures, Key
from l2s_hpc.analysis.look import AVERAGE, COLOURS, FRONT, OTHER, PARENT, SEARCHED, SWEEP
from l2s_hpc.analysis.page import Child, Html, el, join, table
from l2s_hpc.analysis.run import Run
from l2s_hpc.analysis.tradeoff import saving
from l2s_hpc.analysis.words import items_of, known, name_of, optimistic, times
from l2s_hpc.errors import UserError

_NO_TOKENS = (
    f"Nothing to draw: the imported files do not tell how long the answers were; {UNCOUNTED}."
)
_NOT_YET = "Nothing to draw yet: no candidate and no parent has a score table."
_BARS = (
    "Bars are 95% intervals by resampling items within benchmarks: those of the front hold for all "
    "of its points at once, the others for each point on its own."
)
_OTHER_ROLES = {"noise": "the selection items once more, in another order, for noise twins"}
_FEASIBLE = {True: "yes", False: "no", None: "–"}
_LABELS = {
    FRONT: FRONT,
    SWEEP: f"{SWEEP} (dashed)",
    AVERAGE: f"{AVERAGE} (square)",
    PARENT: f"{PARENT} (diamond)",
}


def front_section(run: Run, figures: Figures) -> Html:
    """Return the front on the items that flatter it least, and its recipes."""
    best = run.best_evaluation()
    title = el("h2", "Accuracy against answer length", optimistic(run, best))
    measured = run.measures(best)
    if not measured:
        return join([title, el("p", _NOT_YET)])
    if any(row["tokens"] is None for row in measured.values()):
        return join([title, el("p", _NO_TOKENS)])
    rows, n = run.front(), items_of(run, best)
    words = (
        f"Each point is one model on the {n} items of the {best} split; up and to the left is "
        f"better. {_BARS} "
    )
    words += (
        f"The front holds the {len(rows)} candidates, parents aside, that none dominates."
        if run.info.imported
        else f"The front holds {len(rows)} candidates, chosen on the selection items."
        if best != "search"
        else f"The front holds the {len(rows)} feasible candidates that none dominates so far."
        if rows
        else "No candidate is known to be feasible yet."
    )
    drawn = figures.place(
        "front",
        front_chart(run, best),
        words,
        title=f"{run.info.name}: accuracy against answer length",
        note=f"{best} split, {n} items; bars are 95% intervals",
        keys=_keys(run, best == "search"),
    )
    return join([title, drawn, *_shortest(run), _attained(run), _recipes(run)])


def splits_section(run: Run, figures: Figures) -> Html:
    """Say which items chose what, and so which figures flatter the front."""
    roles = {
        "search": "guided the search and named the candidates of the front",
        "selection": "chose the final front and the picks among those",
        "report": f"looked at {times(run.state.looks)}, after the choice was fixed"
        if run.state.looks
        else "not looked at yet",
    }
    rows: list[list[Child]] = [
        [
            join([name, optimistic(run, name)]),
            str(items_of(run, name)),
            str(len(run.measures(name))),
            roles.get(name, _OTHER_ROLES.get(name, "an evaluation of its own")),
        ]
        for name in dict.fromkeys([*roles, *run.evaluations])
    ]
    words = (
        "The items are split three ways by their question. Figures from items that chose the "
        "front flatter it, because the choice favours luck: they are marked optimistic. "
    )
    if run.state.looks > 1:
        words += (
            f"The report items were looked at {times(run.state.looks)}: the search went "
            "on after a look, so what was chosen later may owe something to an earlier look."
        )
    head = ["split", "items", "models", "role"]
    return join([el("h2", "What the figures rest on"), el("p", words), table(head, rows, {0, 3})])


def search_section(run: Run, figures: Figures) -> Html:
    """Return all candidates of a search whose front is drawn on other items."""
    if run.best_evaluation() == "search" or not run.measures("search"):
        return Html("")
    frame, n = run.candidates("search"), items_of(run, "search")
    asked = frame.filter(frame["generation"].is_not_null())
    words = (
        f"The {asked.height} candidates of {run.state.told} generations on the {n} search items, "
        "which also chose the front shown here: it looks better than it is. "
        f"{int(asked['feasible'].sum())} of them met the constraints. {_BARS}"
    )
    drawn = figures.place(
        "search",
        front_chart(run, "search"),
        words,
        title=f"{run.info.name}: all candidates of the search",
        note=f"search split, {n} items, which chose this front; bars are 95% intervals",
        keys=_keys(run, True),
    )
    return join([el("h2", "The search", optimistic(run, "search")), drawn, _everybody(run)])


def _shortest(run: Run) -> list[Html]:
    """Return a sentence on the shortest model that keeps the first parent's accuracy."""
    if run.info.purpose != "search" or run.state.front is None:
        return []
    try:
        found = run.shortest(0.01)
    except UserError as error:
        words = f"{error.message}: {error.hint}." if error.hint else f"{error.message}."
        return [el("p", f"{words[0].upper()}{words[1:]}")]
    lost, saved = found["difference"], found["tokens_saved"]
    words = (
        f"The shortest model within 1 point of {found['of_label'] or found['of']} on the "
        f"{found['chosen_on']} items is {name_of(run, found['candidate'])}: on the {found['n']} "
        f"{found['evaluation']} items it differs by {100 * lost:+.1f} points "
        f"[{100 * found['difference_low']:+.1f}, {100 * found['difference_high']:+.1f}] and saves "
        f"{saved:.1f} tokens an answer [{found['tokens_saved_low']:.1f}, "
        f"{found['tokens_saved_high']:.1f}] (paired 95% intervals)."
    )
    return [el("p", words)]


def _attained(run: Run) -> Html:
    """Return what the front needs to reach each reference, and reaches at its cost."""
    rows: list[list[Child]] = [
        [
            row["label"], f"{row['accuracy']:.1%}", f"{row['tokens']:.1f}",
            known(row["front_tokens"], "{:.1f}"), known(saving(row), "{:.1%}"),
            known(row["front_accuracy"], "{:.1%}"), known(row["accuracy_gained"], "{:+.1%}"),
        ]
        for row in run.attainment()
    ]  # fmt: skip
    if not rows:
        return Html("")
    head = ["reference", "accuracy", "tokens", "front needs", "saved", "front reaches", "gained"]
    words = (
        "The fewest tokens of a point on the front that is at least as accurate as the reference, "
        "and the best accuracy of one that spends no more; “–” where no point does, or saves "
        f"nothing. These are estimates on {items_of(run, run.best_evaluation())} items, whose "
        "intervals stand in the figure and the tables."
    )
    title = el("summary", "What the front needs to reach each reference")
    return el("details", title, el("p", words, class_="note"), table(head, rows, {0}))


def _recipes(run: Run) -> Html:
    """Return the genomes on the front as a table."""
    rows: list[list[Child]] = [
        [
            el("code", name_of(run, row["candidate"])),
            f"{row['accuracy']:.1%}",
            f"{row['tokens']:.1f}",
            *(f"{value:g}" for value in row["genome"] or ()),
        ]
        for row in run.front()
    ]
    if not rows:
        return Html("")
    head = ["candidate", "accuracy", "tokens", *run.genes]
    return el("details", el("summary", "The recipes on the front"), table(head, rows, {0}))


def _everybody(run: Run) -> Html:
    """Return every candidate of the search with its figures on the search items, as a table."""
    rows: list[list[Child]] = [
        [
            el("code", row["candidate"]),
            str(row["generation"]),
            known(row["accuracy"], "{:.1%}"),
            known(row["tokens"], "{:.1f}"),
            known(row["ntr"], "{:.1%}"),
            known(row["truncation"], "{:.1%}"),
            "given up" if row["penalised"] else _FEASIBLE[row["feasible"]],
            *(known(row[gene], "{:g}") for gene in run.genes),
        ]
        for row in run.candidates("search").iter_rows(named=True)
        if row["generation"] is not None
    ]
    names = ["candidate", "generation", "accuracy", "tokens", "NTR", "cut off", "feasible"]
    drawn = table([*names, *run.genes], rows, {0, 6})
    return el("details", el("summary", f"All {len(rows)} candidates"), drawn)


def _keys(run: Run, with_search: bool) -> list[Key]:
    labels = ({SEARCHED: SEARCHED} if with_search else {}) | _LABELS
    if run.info.imported:
        labels = {OTHER: OTHER} | {kind: _LABELS[kind] for kind in (FRONT, PARENT)}
    return [Key(kind, COLOURS[kind], label) for kind, label in labels.items()]
