"""The charts of a search: front, hypervolume by generation, genes."""

from __future__ import annotations

import altair as alt

from l2s_hpc.analysis.look import (
    AVERAGE,
    COLOURS,
    FRONT,
    INK,
    OTHER,
    PARENT,
    SEARCHED,
    SWEEP,
    coloured,
    measure_axis,
    measure_tooltips,
    rows_chart,
    styled,
    whole_numbers,
)
from l2s_hpc.analysis.placement import Align, Mark, place
from l2s_hpc.analysis.run import Run
from l2s_hpc.analysis.tradeoff import Hypervolume
from l2s_hpc.analysis.transfer import Row

_SHAPES = {
    SEARCHED: "circle", OTHER: "circle", FRONT: "circle", SWEEP: "circle",
    AVERAGE: "square", PARENT: "diamond",
}  # fmt: skip
SEARCH, PLAIN = "search", "plain average and parents"
HYPERVOLUME_COLOURS = (COLOURS[FRONT], COLOURS[SWEEP], COLOURS[PARENT])
"""Of the search, the sweep and plain average with parents."""
_AREAS = {SEARCHED: 40, OTHER: 40, FRONT: 95, SWEEP: 40, AVERAGE: 95, PARENT: 120}
_CLOUD = (SEARCHED, OTHER)
"""What lies behind the front: candidates of the search, or imported models."""
_HEIGHT = 400
_NARROW = (640, _HEIGHT)
"""Width and height in pixels for which words are placed: most plots are wider, a phone's is not."""
_ENDS = ("accuracy_low", "accuracy_high", "tokens_low", "tokens_high")
_ON_POINT = ("candidate", "accuracy", "tokens", "n", *_ENDS)


def front_chart(run: Run, evaluation: str) -> alt.LayerChart:
    """Return accuracy against mean tokens in one evaluation."""
    return styled(_front_layers(front_points(run, evaluation)), _HEIGHT)


def front_points(run: Run, evaluation: str) -> list[Row]:
    """Return a row for each point of the front plot; a candidate that plays two parts has two.

    Rows have kind, candidate, name (what stands beside it; may be empty), called (all its names, or
    a dash), genome (as text), order (along its line), accuracy and tokens with their intervals, and
    n, pooled over items.
    """
    measured = run.measures(evaluation)
    pooled = {row["candidate"]: row for row in run.table(evaluation) if row["benchmark"] == "all"}
    # The front's own rows have intervals that hold for all of it at once.
    on_front = {row["candidate"]: row for row in run.front(evaluation)}
    kinds = [(FRONT, candidate, pick_names(run, candidate)) for candidate in on_front]
    references = run.info.reference_ids()
    for label, candidate in references.items():
        kind, _, name = label.partition(".")
        kinds.append(
            {
                "sweep": (SWEEP, candidate, ""),
                "average": (AVERAGE, candidate, label),
                "parent": (PARENT, candidate, name),
            }[kind]
        )
    placed = {*on_front, *references.values()}
    cloud, others = (OTHER, measured) if run.info.imported else (SEARCHED, run.state.genomes)
    kinds = [(cloud, c, "") for c in others if c not in placed] + kinds
    return [
        {
            **{name: pooled[candidate][name] for name in _ON_POINT},
            **({name: on_front[candidate][name] for name in _ENDS} if kind == FRONT else {}),
            "kind": kind,
            "name": name.partition(", ")[0],
            "called": name or "–",
            "genome": genome_text(run, candidate),
            "order": order,
        }
        for order, (kind, candidate, name) in enumerate(_by_share(kinds, references))
        if candidate in measured
    ]


def hypervolume_chart(run: Run, evaluation: str) -> alt.LayerChart:
    """Return the hypervolume by generation, and what sweep and plain average reach, as lines."""
    found = run.hypervolume(evaluation)
    values = [
        {"kind": SEARCH, "generation": n, "hypervolume": value}
        for n, value in enumerate(found.generations)
    ]
    colour = coloured([SEARCH, SWEEP, PLAIN], HYPERVOLUME_COLOURS)
    base = rows_chart(values).encode(
        x=alt.X("generation:Q", title="generation", axis=whole_numbers(len(values))),
        y=alt.Y("hypervolume:Q", title="hypervolume", scale=alt.Scale(zero=False, padding=12)),
        color=colour,
        tooltip=["generation:Q", alt.Tooltip("hypervolume:Q", format=".4f")],
    )
    layers = reference_rules(found, colour)
    layers.append(base.mark_line(strokeWidth=2))
    layers.append(base.mark_circle(size=55, opacity=1))
    return styled(layers, 260)


def reference_rules(found: Hypervolume, colour: alt.Color) -> list[alt.Chart]:
    """Return what the sweep and the plain average reach, as level lines."""
    layers = []
    for kind, value, dash in ((SWEEP, found.sweep, [6, 4]), (PLAIN, found.average, [2, 3])):
        if value is not None:
            mark = rows_chart([{"value": value, "kind": kind}]).mark_rule(
                strokeDash=dash, strokeWidth=1.8
            )
            tooltip = ["kind:N", alt.Tooltip("value:Q", format=".4f")]
            layers.append(mark.encode(y="value:Q", color=colour, tooltip=tooltip))
    return layers


def gene_rows(run: Run) -> list[Row]:
    """Return the rows that all charts of genes share: each candidate on the search items."""
    on_front = {row["candidate"] for row in run.front("search")}
    measures = ("accuracy", "tokens")
    frame = run.candidates("search").select("candidate", *run.genes, *measures).drop_nulls()
    rows = sorted(frame.iter_rows(), key=lambda row: row[0] in on_front)
    names = ("candidate", *_gene_fields(run).values(), *measures)
    return [
        {"kind": FRONT if row[0] in on_front else SEARCHED, **dict(zip(names, row, strict=True))}
        for row in rows
    ]


def gene_chart(run: Run, rows: list[Row], gene: str, measure: str) -> alt.LayerChart:
    """Return a measure against the value of one gene, small; rows are those of `gene_rows`."""
    field = f"{_gene_fields(run)[gene]}:Q"
    chart = rows_chart(rows).mark_circle(size=32 if len(rows) < 200 else 16, opacity=0.7)
    tooltip = ["candidate:N", alt.Tooltip(field, title=gene), *measure_tooltips()]
    chart = chart.encode(
        x=alt.X(field, title=None, axis=alt.Axis(tickCount=3), scale=alt.Scale(zero=False)),
        y=measure_axis(measure, title=None, ticks=4),
        color=coloured([SEARCHED, FRONT]),
        tooltip=tooltip,
    )
    return styled([chart], 120)


def genome_text(run: Run, candidate: str) -> str:
    """Return a candidate's genome with the genes' names, or the label of a reference."""
    genome = run.state.genomes.get(candidate)
    if genome is None:
        return run.labels.get(candidate, "")
    return ", ".join(f"{name} {value:g}" for name, value in zip(run.genes, genome, strict=True))


def pick_names(run: Run, candidate: str) -> str:
    """Return under which names a candidate was picked, in words."""
    names = [name for name, pick in run.state.picks.items() if pick == candidate]
    return ", ".join(name.replace("_", " ") for name in names)


def _by_share(
    kinds: list[tuple[str, str, str]], references: dict[str, str]
) -> list[tuple[str, str, str]]:
    """Return the same, the sweep's points first, in the order of their share, for its line."""
    sweep = {c: label for label, c in references.items() if label.startswith("sweep.")}
    share = {candidate: float(label.removeprefix("sweep.")) for candidate, label in sweep.items()}
    ordered = sorted((k for k in kinds if k[0] == SWEEP), key=lambda kind: share[kind[1]])
    return ordered + [k for k in kinds if k[0] != SWEEP]


def _gene_fields(run: Run) -> dict[str, str]:
    """Return a name for each gene that means nothing to Vega: a dot would be a path."""
    return {gene: f"g{index}" for index, gene in enumerate(run.genes)}


def _front_layers(points: list[Row]) -> list[alt.Chart]:
    """Return the layers from back to front: cloud, lines, intervals, points, words."""
    shown = [row for row in points if row["kind"] not in _CLOUD]
    cloud = [row for row in points if row["kind"] in _CLOUD]
    there = {row["kind"] for row in points}
    kinds = [kind for kind in COLOURS if kind in there]
    layers = [_points(cloud, kinds, opacity=0.6)] if cloud else []
    for kind, dash in ((SWEEP, [6, 4]), (FRONT, [1, 0])):
        line = [row for row in points if row["kind"] == kind]
        mark = _on(line).mark_line(color=COLOURS[kind], strokeDash=dash, strokeWidth=2)
        layers += [mark.encode(order="order:Q")] if line else []
    layers += _intervals([row for row in shown if row["kind"] != SWEEP], kinds)
    for kind in (kind for kind in kinds if kind not in _CLOUD):
        layers.append(_points([row for row in shown if row["kind"] == kind], kinds, opacity=1))
    return layers + _words(points)


def _on(rows: list[Row]) -> alt.Chart:
    return rows_chart(rows).encode(
        x=alt.X(
            "tokens:Q",
            title="mean tokens of an answer",
            scale=alt.Scale(zero=True, nice=True),
            axis=alt.Axis(tickCount=8),
        ),
        y=measure_axis("accuracy", title="accuracy", ticks=6),
    )


def _points(rows: list[Row], kinds: list[str], opacity: float) -> alt.Chart:
    """Return points of one kind."""
    # Colour and shape share one legend only if their scales have the same domain.
    shapes = alt.Scale(domain=kinds, range=[_SHAPES[kind] for kind in kinds])
    tooltip = [
        alt.Tooltip("kind:N", title="part"),
        alt.Tooltip("called:N"),
        alt.Tooltip("candidate:N"),
        alt.Tooltip("genome:N"),
        *measure_tooltips(),
        alt.Tooltip("n:Q", title="items"),
    ]
    area = _AREAS[rows[0]["kind"]]
    chart: alt.Chart = _on(rows).mark_point(filled=True, opacity=opacity, size=area)
    return chart.encode(
        color=coloured(kinds),
        shape=alt.Shape("kind:N", scale=shapes, legend=None),
        tooltip=tooltip,
    )


def _intervals(rows: list[Row], kinds: list[str]) -> list[alt.Chart]:
    base = _on(rows).mark_rule(opacity=0.45, strokeWidth=1.2).encode(color=coloured(kinds))
    return [
        base.encode(y="accuracy_low:Q", y2="accuracy_high:Q"),
        base.encode(x="tokens_low:Q", x2="tokens_high:Q"),
    ]


def _words(points: list[Row]) -> list[alt.Chart]:
    """Return a text layer for each place that a word may have beside its point."""
    marks = [Mark(row["tokens"], row["accuracy"], row["name"], row["kind"]) for row in points]
    by_place: dict[tuple[Align, int, int], list[Row]] = {}
    for row, where in zip(points, place(marks, (FRONT, SWEEP), _NARROW), strict=True):
        if row["name"]:
            by_place.setdefault((where.align, where.dx, where.dy), []).append(row)
    return [
        _on(rows)
        .mark_text(align=align, baseline="middle", dx=dx, dy=dy, fontSize=12, color=INK)
        .encode(text="name:N")
        for (align, dx, dy), rows in by_place.items()
    ]
