"""The part of a report on the search's course: hypervolume and genes."""

from __future__ import annotations

from l2s_hpc.analysis.chart_time import hours_chart
from l2s_hpc.analysis.charts import (
    HYPERVOLUME_COLOURS,
    PLAIN,
    SEARCH,
    gene_chart,
    gene_rows,
    hypervolume_chart,
)
from l2s_hpc.analysis.figures import Figures, Key, group, legend
from l2s_hpc.analysis.look import COLOURS, FRONT, SEARCHED, SWEEP
from l2s_hpc.analysis.page import Child, Html, el, join, table
from l2s_hpc.analysis.run import Run
from l2s_hpc.analysis.tradeoff import REFERENCE_TOKENS, Hypervolume, search_front
from l2s_hpc.analysis.words import items_of, known, optimistic
from l2s_hpc.errors import UserError

_KEYS = [
    Key(SEARCH, HYPERVOLUME_COLOURS[0]),
    Key(SWEEP, HYPERVOLUME_COLOURS[1], f"{SWEEP} (dashed)"),
    Key(PLAIN, HYPERVOLUME_COLOURS[2], f"{PLAIN} (dotted)"),
]


def hypervolume_section(run: Run, figures: Figures) -> Html:
    """Return the hypervolume by generation, and by the device hours spent."""
    try:
        found = run.hypervolume("search")
    except UserError:
        return Html("")
    if not found.generations:
        return Html("")
    n = items_of(run, "search")
    words = (
        "How much of the plane of accuracy and tokens the feasible candidates "
        f"up to each generation dominate, on the {n} search items; 1 is "
        f"ideal, 0 is no answer right at {REFERENCE_TOKENS:g} times the first parent's tokens "
        f"({REFERENCE_TOKENS * found.slow_tokens:.1f}). The search reaches "
        f"{found.generations[-1]:.3f}. {_beside(found)} One search, so there is no interval."
    )
    if run.best_evaluation() == "report":
        reported = run.hypervolume("report")
        words += (
            f" On the {items_of(run, 'report')} report items the front reaches "
            f"{reported.generations[-1]:.3f}. {_beside(reported)}"
        )
    drawn = figures.place(
        "hypervolume",
        hypervolume_chart(run, "search"),
        words,
        title=f"{run.info.name}: hypervolume by generation",
        note=f"search split, {n} items, which guided the search",
        keys=_KEYS,
    )
    title = el("h2", "Progress by generation", optimistic(run, "search"))
    return join([title, drawn, _by_the_hour(run, figures, found, n)])


def genes_section(run: Run, figures: Figures) -> Html:
    """Return accuracy and tokens by gene, and how each gene goes with them."""
    searched = [gene for gene in run.genes if gene not in run.info.frozen]
    if not search_front(run.state):
        return Html("")
    n = items_of(run, "search")
    words = (
        f"{figures.number()} Each point is a candidate on the {n} search items; its other genes "
        "differ too, so a slope is a hint and no effect."
    )
    if run.info.frozen:
        frozen = ", ".join(f"{name} = {value:g}" for name, value in run.info.frozen.items())
        words += f" Genes that do nothing were kept fixed: {frozen}."
    keys = [Key(kind, COLOURS[kind]) for kind in (SEARCHED, FRONT)]
    parts: list[Html] = []
    rows = gene_rows(run)
    for measure, title in (("accuracy", "Accuracy"), ("tokens", "Mean tokens")):
        charts = figures.grid(
            [(f"gene-{measure}-{g}", g, gene_chart(run, rows, g, measure)) for g in searched],
            title=title,
            note=f"search split, {n} items",
            keys=keys,
        )
        parts.append(join([el("h3", f"{title} by gene"), charts]))
    title = el("h2", "Genes", optimistic(run, "search"))
    return group([title, el("p", words), legend(keys), *parts, _genes(run)])


def _genes(run: Run) -> Html:
    found = run.forensics().genes
    if not found:
        return Html("")
    rows: list[list[Child]] = [
        [
            el("code", gene.name),
            "fixed: it does nothing" if gene.frozen is not None else "searched",
            str(gene.values),
            known(gene.low, "{:g}"),
            known(gene.high, "{:g}"),
            known(gene.front_low, "{:g}"),
            known(gene.front_high, "{:g}"),
            known(gene.accuracy, "{:+.2f}"),
            known(gene.tokens, "{:+.2f}"),
        ]
        for gene in found
    ]
    words = (
        "What each gene was set to, on the front also, and Spearman's rank correlation with both "
        f"measures over {found[0].n} candidates with a score table: a description of what was "
        "tried, which was not drawn at random, so without an interval."
    )
    head = ["gene", "", "values tried", "lowest", "highest", "lowest on the front",
            "highest on the front", "with accuracy", "with tokens"]  # fmt: skip
    return join([el("h3", "Genes in figures"), el("p", words), table(head, rows, {0, 1})])


def _by_the_hour(run: Run, figures: Figures, found: Hypervolume, n: int) -> Html:
    spent = found.device_hours[-1]
    if not spent:
        return Html("")
    first, last = found.generations[0], found.generations[-1]
    words = (
        f"The same hypervolume on {n} search items against the device hours that the search had "
        f"spent, references and failed attempts included: {first:.3f} after "
        f"{found.device_hours[0]:.3g} hours, {last:.3f} after {spent:.3g}."
    )
    return figures.place(
        "hypervolume-hours",
        hours_chart(found),
        words,
        title=f"{run.info.name}: hypervolume by device hours",
        note=f"search split, {n} items, which guided the search",
        keys=_KEYS,
    )


def _beside(found: Hypervolume) -> str:
    sweep = f"{found.sweep:.3f}" if found.sweep is not None else "nothing"
    average = f"{found.average:.3f}" if found.average is not None else "nothing"
    return f"The one-parameter sweep reaches {sweep}, plain average and parents {average}."
