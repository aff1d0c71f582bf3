"""The report of several runs: their fronts overlaid, mean and spread of hypervolume, a table."""

from __future__ import annotations

from pathlib import Path

from l2s_hpc.analysis.chart_runs import course_chart, fronts_chart, keys
from l2s_hpc.analysis.figures import Figure, Figures
from l2s_hpc.analysis.page import Child, Html, el, join, page, table
from l2s_hpc.analysis.report import write_page
from l2s_hpc.analysis.runs import Runs
from l2s_hpc.analysis.words import known, optimistic
from l2s_hpc.records import canonical_json


class RunsReport:
    """The report of several runs.

    Attributes:
        html: the page.
        figures: its figures, in their order.
    """

    def __init__(self, runs: Runs) -> None:
        taken = Figures()
        self._runs, self._best = runs, runs.best_evaluation()
        body = [
            self._summary(),
            self._fronts(taken),
            self._course(taken),
            self._table(),
            self._settings(),
        ]
        self.figures: list[Figure] = taken.all
        self.html = page(f"{len(runs.runs)} runs: report", body, taken.specs())

    def write(self, path: Path) -> Path:
        """Write the page as one file; return its path."""
        return write_page(path, self.html)

    def _summary(self) -> Html:
        runs = self._runs
        groups = [f"{group} ({_count(len(names))})" for group, names in runs.groups.items()]
        parts: list[Child] = [
            el("p", f"{len(runs.runs)} merge searches compared", class_="kicker"),
            el("h1", " against ".join(runs.groups)),
            el("p", " and ".join(groups), class_="lead"),
            *(el("p", note, class_="notice") for note in runs.notes()),
        ]
        return join([*parts, *self._findings()])

    def _findings(self) -> list[Html]:
        rows = self._runs.hypervolume()
        common = min(
            max(row["generation"] for row in rows if row["group"] == group)
            for group in self._runs.groups
        )
        sentences = []
        for row in (row for row in rows if row["generation"] == common):
            spread = (
                f", sd {row['sd']:.3f}, from {row['low']:.3f} to {row['high']:.3f}"
                if row["sd"] is not None
                else ""
            )
            sentences.append(
                el(
                    "p",
                    el("strong", row["group"]),
                    f" reaches a hypervolume of {row['mean']:.3f} on the search items by "
                    f"generation {common} (mean of {_count(row['runs'])}{spread}).",
                    class_="finding",
                )
            )
        return sentences

    def _fronts(self, figures: Figures) -> Html:
        runs, best = self._runs, self._best
        rows = runs.table()
        n = sorted({row["n"] for row in rows})
        count = f"{n[0]}" if len(n) == 1 else f"{n[0]} to {n[-1]}"
        mark = optimistic(next(iter(runs.runs.values())), best)
        drawn = figures.place(
            "fronts",
            fronts_chart(runs, best),
            f"The front of each of {len(rows)} runs on the {count} items of its {best} split; up "
            "and to the left is better. The points have no intervals here: each run's own report "
            "has them, and the spread between runs is seen.",
            title="Fronts of the runs",
            note=f"{best} split, {count} items",
            keys=keys(runs),
        )
        return join([el("h2", "Fronts", mark), drawn])

    def _course(self, figures: Figures) -> Html:
        runs = self._runs
        several = len(runs.groups) > 1 and any(len(names) > 1 for names in runs.groups.values())
        how = (
            "Thick lines are means over the runs of a group, bands reach from the lowest to the "
            "highest of them, thin lines are the runs. "
            if several
            else "Each line is one run. "
        )
        first = figures.place(
            "hypervolume",
            course_chart(runs, by_hours=False),
            "How much of the plane of accuracy and tokens the feasible candidates up to each "
            f"generation dominate, on the search items; 1 is ideal. {how}"
            f"{len(runs.runs)} runs; a band over so few is no confidence interval.",
            title="Hypervolume by generation",
            note="search split, which guided the searches",
            keys=keys(runs),
        )
        parts = [el("h2", "Progress", el("span", "optimistic", class_="tag warn")), first]
        if any(runs.reached(name).device_hours[-1:] > (0.0,) for name in runs.runs):
            drawn = figures.place(
                "hypervolume-hours",
                course_chart(runs, by_hours=True),
                f"The same against the device hours that each of {len(runs.runs)} searches had "
                "spent, failed attempts included. Each line is one run.",
                title="Hypervolume by device hours",
                note="search split, which guided the searches",
                keys=keys(runs),
            )
            parts.append(drawn)
        return join([*parts, self._by_group()])

    def _by_group(self) -> Html:
        rows: list[list[Child]] = [
            [
                row["group"], str(row["generation"]), str(row["runs"]), f"{row['mean']:.3f}",
                known(row["sd"], "{:.3f}"), f"{row['low']:.3f}", f"{row['high']:.3f}",
                f"{row['device_hours']:.3g}",
            ]
            for row in self._runs.hypervolume()
        ]  # fmt: skip
        head = ["group", "generation", "runs", "mean", "sd", "lowest", "highest", "device hours"]
        title = el("summary", "Hypervolume in figures, by group and generation")
        return el("details", title, table(head, rows, {0}))

    def _table(self) -> Html:
        rows: list[list[Child]] = [
            [
                row["run"], row["group"], str(row["seed"]), str(row["generations"]),
                str(row["candidates"]), known(row["hypervolume"], "{:.3f}"),
                known(row["sweep"], "{:.3f}"), row["item_set"], str(row["n"]), str(row["front"]),
                known(row["front_hypervolume"], "{:.3f}"), known(row["most_accurate"], "{:.1%}"),
                f"{row['device_hours']:.3g}",
            ]
            for row in self._runs.table()
        ]  # fmt: skip
        best = self._best
        words = (
            "Hypervolumes of the search and of the one-parameter sweep are those on the search "
            f"items; all that comes after the items is measured on the {best} items. Runs with "
            "the same letter have the same of these."
        )
        head = [
            "run", "group", "seed", "generations", "candidates", "search", "sweep",
            f"{best} items", "n", "on the front", "front", "most accurate", "device hours",
        ]  # fmt: skip
        return join([el("h2", "Run by run"), el("p", words), table(head, rows, {0, 1, 7})])

    def _settings(self) -> Html:
        found = self._runs.differences()
        rows: list[list[Child]] = [
            [el("code", key), *(el("span", _told(v), class_="wrap") for v in values.values())]
            for key, values in found.items()
        ]
        title = el("h2", "What differs between the runs")
        if not rows:
            return join([title, el("p", "No setting that decides results.")])
        drawn = table(["setting", *self._runs.runs], rows, range(len(self._runs.runs) + 1))
        return join([title, drawn])


def _count(runs: int) -> str:
    return "1 run" if runs == 1 else f"{runs} runs"


def _told(value: object) -> str:
    return value if isinstance(value, str) else canonical_json(value)
