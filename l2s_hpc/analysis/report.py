"""The report of a run: one HTML file that opens offline and says what each figure rests on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from l2s_hpc.analysis.charts import (
    AVERAGE,
    COLOURS,
    FRONT,
    PARENT,
    SEARCHED,
    SWEEP,
    front_chart,
    gene_chart,
    hypervolume_chart,
    save_front_png,
    save_front_svg,
    spec,
)
from l2s_hpc.analysis.evaluated import evaluated
from l2s_hpc.analysis.nodes import differences
from l2s_hpc.analysis.page import Child, Html, el, figure, join, page, table
from l2s_hpc.analysis.run import Run
from l2s_hpc.analysis.settings import settings
from l2s_hpc.analysis.summary import summary
from l2s_hpc.analysis.tradeoff import REFERENCE_TOKENS, Hypervolume, search_front
from l2s_hpc.analysis.words import (
    benchmark_table,
    benchmark_words,
    name_of,
    node_table,
    stretch,
    times,
)
from l2s_hpc.errors import UserError
from l2s_hpc.store.files import write_durably

__all__ = ["save_front_png", "save_front_svg", "write_report"]

_NO_TOKENS = "Nothing to draw: the imported files do not tell how long the answers were."
_NOT_YET = "Nothing to draw yet: no candidate and no parent has a score table."


def write_report(run: Run, path: Path) -> Path:
    """Write the report of a run, finished or not, as one HTML file; return its path.

    Raises:
        DamageError: a score table is damaged or missing (unless the run was opened not strict).
    """
    text = _Report(run).html()
    write_durably(path, lambda temporary: _fill(temporary, text))
    return path


class _Report:
    """Builds the page section by section, and collects the figures' specifications on the way."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._best = run.best_evaluation()
        self._specs: dict[str, Any] = {}
        self._figures = 0

    def html(self) -> str:
        sections: list[Callable[[], Html]] = [
            self._front,
            self._splits,
            self._search,
            self._tables,
            self._hypervolume,
            self._genes,
            self._cost,
            self._nodes,
            self._penalised,
        ]
        foreign = [self._front, self._tables]
        scores: Callable[[], Html] = partial(evaluated, self._run)
        tested = [scores, self._cost, self._nodes, self._penalised]
        chosen = {"search": sections, "import": foreign, "evaluate": tested}
        run = self._run
        body = [section() for section in chosen[run.info.purpose]]
        whole = [summary(run, self._best), *body, settings(run)]
        return page(f"{run.info.name}: report", whole, self._specs)

    def _front(self) -> Html:
        run, best = self._run, self._best
        title = el("h2", "Accuracy against answer length", self._tag(best))
        rows = run.front()
        if not run.measures(best):
            return join([title, el("p", _NOT_YET)])
        if any(row["tokens"] is None for row in run.measures(best).values()):
            return join([title, el("p", _NO_TOKENS)])
        words = (
            f"{self._next()} Each point is one model on the {self._items(best)} items of the "
            f"{best} split; up and to the left is better. Bars are 95% intervals of each point on "
            "its own, by resampling items within benchmarks. "
        )
        words += (
            f"The front holds {len(rows)} candidates, chosen on the selection items."
            if best != "search"
            else f"The front holds the {len(rows)} feasible candidates that none dominates so far."
            if rows
            else "No candidate is known to be feasible yet."
        )
        drawn = self._figure("front", front_chart(run, best), words, best)
        return join([title, drawn, self._recipes()])

    def _recipes(self) -> Html:
        """Return the genomes on the front as a table."""
        run = self._run
        rows: list[list[Child]] = [
            [
                self._named(row["candidate"]),
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

    def _splits(self) -> Html:
        """Say which items chose what, and so which figures flatter the front."""
        run = self._run
        roles = {
            "search": "guided the search and named the candidates of the front",
            "selection": "chose the final front and the picks among those",
            "report": f"looked at {times(run.state.looks)}, after the choice was fixed"
            if run.state.looks
            else "not looked at yet",
        }
        rows: list[list[Child]] = [
            [
                join([name, self._tag(name)]),
                str(self._items(name)),
                str(len(run.measures(name))),
                roles.get(name, "an evaluation of its own"),
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
        title = el("h2", "What the figures rest on")
        return join([title, el("p", words), table(head, rows, {0, 3})])

    def _search(self) -> Html:
        run = self._run
        if self._best == "search" or not run.measures("search"):
            return Html("")
        frame = run.candidates("search")
        asked = frame.filter(frame["generation"].is_not_null())
        words = (
            f"{self._next()} The {asked.height} candidates of {run.state.told} generations on the "
            f"{self._items('search')} search items, which also chose the front shown here: it "
            f"looks better than it is. {int(asked['feasible'].sum())} of them met the constraints."
        )
        chart = front_chart(run, "search")
        return join(
            [
                el("h2", "The search", self._tag("search")),
                self._figure("search", chart, words, "search"),
            ]
        )

    def _tables(self) -> Html:
        """Return accuracy, tokens and transfer of front, picks and references by benchmark."""
        run, best = self._run, self._best
        wanted = [row["candidate"] for row in reversed(run.front())]
        shown = None if run.info.imported else dict.fromkeys([*wanted, *run.labels])
        rows = run.table(best, shown)
        if not rows:
            return Html("")
        names = list(dict.fromkeys(row["benchmark"] for row in rows))
        words = (
            "NTR is the share of the items solved by some parent that the model gets wrong, PTR "
            "the share of the other items that it gets right. A parent's own NTR is not zero: it "
            "loses what only another one solves. In brackets 95% intervals; “–” has no items."
        )
        parts: list[Html] = []
        for name in names:
            part = benchmark_table(run, [row for row in rows if row["benchmark"] == name])
            title = benchmark_words(name)
            parts.append(
                join([el("h3", title), part])
                if name == "all"
                else el("details", el("summary", title), part)
            )
        heading = "Models" if run.info.imported else "Front and references"
        title = el("h2", f"{heading} by benchmark", self._tag(best))
        return join([title, el("p", words), *parts])

    def _hypervolume(self) -> Html:
        run = self._run
        try:
            found = run.hypervolume("search")
        except UserError:
            return Html("")
        if not found.generations:
            return Html("")
        words = (
            f"{self._next()} How much of the plane of accuracy and tokens the feasible candidates "
            f"up to each generation dominate, on the {self._items('search')} search items; 1 is "
            f"ideal, 0 is no answer right at {REFERENCE_TOKENS:g} times the first parent's tokens "
            f"({REFERENCE_TOKENS * found.slow_tokens:.1f}). The search reaches "
            f"{found.generations[-1]:.3f}. {_beside(found)}"
        )
        if self._best == "report":
            reported = run.hypervolume("report")
            words += (
                f" On the {self._items('report')} report items the front reaches "
                f"{reported.generations[-1]:.3f}. {_beside(reported)}"
            )
        legend = [(COLOURS[FRONT], "search"), (COLOURS[SWEEP], "one-parameter sweep (dashed)")]
        legend.append((COLOURS[AVERAGE], "plain average and parents (dotted)"))
        self._specs["hypervolume"] = spec(hypervolume_chart(run, "search"))
        return join(
            [
                el("h2", "Progress by generation", self._tag("search")),
                figure("hypervolume", words, legend),
            ]
        )

    def _genes(self) -> Html:
        run = self._run
        searched = [gene for gene in run.genes if gene not in run.info.frozen]
        if not search_front(run.state):
            return Html("")
        words = (
            f"{self._next()} Each point is a candidate on the {self._items('search')} search "
            "items; its other genes differ too, so a slope is a hint and no effect."
        )
        if run.info.frozen:
            frozen = ", ".join(f"{name} = {value:g}" for name, value in run.info.frozen.items())
            words += f" Genes that do nothing were kept fixed: {frozen}."
        parts: list[Html] = []
        for measure, title in (("accuracy", "Accuracy"), ("tokens", "Mean tokens")):
            charts = []
            for index, gene in enumerate(searched):
                name = f"gene-{measure}-{index}"
                self._specs[name] = spec(gene_chart(run, gene, measure))
                charts.append(figure(name, gene))
            parts.append(join([el("h3", f"{title} by gene"), el("div", *charts, class_="grid")]))
        keys = join(
            el("li", el("i", style=f"background:{COLOURS[kind]}"), kind)
            for kind in (SEARCHED, FRONT)
        )
        title = el("h2", "Genes", self._tag("search"))
        return join([title, el("p", words), el("ul", keys, class_="legend"), *parts])

    def _cost(self) -> Html:
        found = self._run.cost()
        total = 3600 * found.device_hours
        phases = sum(found.seconds.values())
        each = found.seconds_per_candidate
        words = (
            f"{found.accepted} score tables took {stretch(total)} of device time"
            + (f", {stretch(each)} each" if each is not None else "")
            + (f" ({found.gpu_idle:.1%} of it idle)" if found.gpu_idle is not None else "")
            + f", from {found.attempts} attempts: {found.failed} failed, {found.lost} were lost or "
            f"interrupted (their time is not counted), {found.penalised} candidates were given up. "
            f"Of {found.asked} genomes asked for, {found.repeats} gave a known model at no cost."
        )
        rows: list[list[Child]] = [
            [kind, name, stretch(seconds), f"{seconds / whole:.1%}" if whole else "–"]
            for kind, part, whole in (
                ("phase", found.seconds, phases),
                ("evaluation", found.evaluations, total),
            )
            for name, seconds in part.items()
        ]
        parts = table(["by", "", "time", "share"], rows, {0, 1}) if rows else Html("")
        return join([el("h2", "Cost"), el("p", words), parts])

    def _nodes(self) -> Html:
        found = self._run.nodes()
        if not found:
            return Html("")
        words = (
            "Medians over the score tables of each node, peaks of memory over all of them. Start "
            "is that of workers that started; a warm one goes on without."
        )
        odd = [el("p", sentence, class_="notice") for sentence in differences(found)]
        return join([el("h2", "Nodes"), el("p", words), *odd, node_table(found)])

    def _penalised(self) -> Html:
        run = self._run
        rows: list[list[Child]] = [
            [name_of(run, candidate), evaluation, el("span", reason, class_="wrap")]
            for (evaluation, candidate), reason in run.state.penalised.items()
        ]
        if not rows:
            return join([el("h2", "Given up"), el("p", "No candidate was given up.")])
        words = "These failed as often as the site allows, and count as the worst possible."
        head = ["candidate", "evaluation", "reason"]
        return join([el("h2", "Given up"), el("p", words), table(head, rows, range(3))])

    def _next(self) -> str:
        self._figures += 1
        return f"Figure {self._figures}."

    def _figure(self, name: str, chart: Any, words: str, evaluation: str) -> Html:
        self._specs[name] = spec(chart)
        keys = {
            FRONT: FRONT,
            SWEEP: f"{SWEEP} (dashed)",
            AVERAGE: f"{AVERAGE} (square)",
            PARENT: f"{PARENT} (diamond)",
        }
        if evaluation == "search":
            keys = {SEARCHED: SEARCHED} | keys
        return figure(name, words, [(COLOURS[kind], label) for kind, label in keys.items()])

    def _named(self, candidate: str) -> Html:
        return el("code", name_of(self._run, candidate))

    def _items(self, evaluation: str) -> int:
        measured = self._run.measures(evaluation)
        return int(next(iter(measured.values()))["n"] or 0) if measured else 0

    def _tag(self, evaluation: str) -> Html:
        if self._run.info.purpose == "search" and evaluation in ("search", "selection"):
            return el("span", "optimistic", class_="tag warn")
        return Html("")


def _beside(found: Hypervolume) -> str:
    sweep = f"{found.sweep:.3f}" if found.sweep is not None else "nothing"
    average = f"{found.average:.3f}" if found.average is not None else "nothing"
    return f"The one-parameter sweep reaches {sweep}, plain average and parents {average}."


def _fill(temporary: Path, text: str) -> None:
    temporary.write_text(text, encoding="utf-8")
