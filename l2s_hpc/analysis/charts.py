"""The figures of a run, as Altair charts: front, hypervolume, genes; and the front as a picture.

The colours are of middle lightness, readable on white and on near-black: the report's page sets
only the colours of text and axes anew when it is dark.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import altair as alt

from l2s_hpc.analysis.placement import Align, Mark, place
from l2s_hpc.analysis.run import Run
from l2s_hpc.analysis.transfer import Row
from l2s_hpc.store.files import write_durably

SEARCHED, FRONT, SWEEP = "searched candidate", "front", "one-parameter sweep"
AVERAGE, PARENT = "plain average", "parent"
COLOURS = {
    SEARCHED: "#8f97a1", FRONT: "#2777c9", SWEEP: "#c9821a", AVERAGE: "#c9821a", PARENT: "#b8487a",
}  # fmt: skip
_SHAPES = {
    SEARCHED: "circle", FRONT: "circle", SWEEP: "circle", AVERAGE: "square", PARENT: "diamond",
}  # fmt: skip
_AREAS = {SEARCHED: 40, FRONT: 95, SWEEP: 40, AVERAGE: 95, PARENT: 120}
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_PICTURE = (760, 430)
_ON_PAGE = (940, 400)
"""Width and height of the plot in pixels; a page's may be narrower."""
_INK, _MUTED, _LINE = "#1c2127", "#626a73", "#e4e7ea"
_CONFIG: dict[str, Any] = {
    "font": _FONT,
    "background": "transparent",
    "view": {"stroke": None},
    "axis": {
        "domain": False,
        "ticks": False,
        "gridColor": _LINE,
        "labelColor": _MUTED,
        "labelFontSize": 11,
        "labelPadding": 6,
        "titleColor": _MUTED,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 10,
    },
    "legend": {"labelColor": _INK, "labelFontSize": 12, "columnPadding": 18, "padding": 8},
    "title": {
        "anchor": "start",
        "color": _INK,
        "fontSize": 17,
        "offset": 14,
        "subtitleColor": _MUTED,
        "subtitleFontSize": 12,
        "subtitlePadding": 5,
    },
}


def spec(chart: alt.TopLevelMixin) -> dict[str, Any]:
    """Return a chart's Vega-Lite specification."""
    # Altair's own check costs a tenth of a second a chart; the tests make it.
    found: dict[str, Any] = chart.to_dict(validate=False)
    return found


def front_chart(run: Run, evaluation: str) -> alt.LayerChart:
    """Return accuracy against mean tokens in one evaluation, as wide as its container."""
    points = front_points(run, evaluation)
    return _styled(_front_layers(points, None, _ON_PAGE), "container", _ON_PAGE[1])


def front_points(run: Run, evaluation: str) -> list[Row]:
    """Return a row for each point of the front plot; a candidate that plays two parts has two.

    Rows have kind, candidate, name (what stands beside it; may be empty), called (the same, or a
    dash), genome (as text), order (along its line), and the columns of `transfer.Row` pooled over
    items.
    """
    measured = run.measures(evaluation)
    pooled = {row["candidate"]: row for row in run.table(evaluation) if row["benchmark"] == "all"}
    on_front = [row["candidate"] for row in run.front(evaluation)]
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
    kinds = [(SEARCHED, c, "") for c in run.state.genomes if c not in placed] + kinds
    return [
        {
            **pooled[candidate],
            "kind": kind,
            "name": name,
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
    values = [{"generation": n, "hypervolume": v} for n, v in enumerate(found.generations)]
    base = _chart(values).encode(
        x=alt.X("generation:Q", title="generation", axis=_whole_numbers(len(values))),
        y=alt.Y("hypervolume:Q", title="hypervolume", scale=alt.Scale(zero=False, padding=12)),
        tooltip=["generation:Q", alt.Tooltip("hypervolume:Q", format=".4f")],
    )
    layers: list[alt.Chart] = []
    for kind, value, dash in ((SWEEP, found.sweep, [6, 4]), (AVERAGE, found.average, [2, 3])):
        if value is not None:
            rule = _chart([{"value": value, "kind": kind}])
            mark = rule.mark_rule(color=COLOURS[kind], strokeDash=dash, strokeWidth=1.8)
            layers.append(
                mark.encode(y="value:Q", tooltip=["kind:N", alt.Tooltip("value:Q", format=".4f")])
            )
    layers.append(base.mark_line(color=COLOURS[FRONT], strokeWidth=2))
    layers.append(base.mark_circle(color=COLOURS[FRONT], size=55, opacity=1))
    return _styled(layers, "container", 260)


def gene_chart(run: Run, gene: str, measure: str) -> alt.LayerChart:
    """Return a measure on the search items against the value of one gene, small."""
    on_front = {row["candidate"] for row in run.front("search")}
    frame = run.candidates("search").select("candidate", gene, "accuracy", "tokens").drop_nulls()
    rows = sorted(frame.iter_rows(named=True), key=lambda row: row["candidate"] in on_front)
    values = [
        {
            "candidate": row["candidate"],
            "gene": row[gene],
            "accuracy": row["accuracy"],
            "tokens": row["tokens"],
            "kind": FRONT if row["candidate"] in on_front else SEARCHED,
        }
        for row in rows
    ]
    chart = _chart(values).mark_circle(size=32, opacity=0.75)
    tooltip = ["candidate:N", alt.Tooltip("gene:Q", title=gene), *_measure_tooltips()]
    chart = chart.encode(
        x=alt.X("gene:Q", title=None, axis=alt.Axis(tickCount=3), scale=alt.Scale(zero=False)),
        y=_measure_axis(measure, title=None, ticks=4),
        color=_colour(None, [SEARCHED, FRONT]),
        tooltip=tooltip,
    )
    return _styled([chart], "container", 120)


def save_front_svg(run: Run, path: Path) -> Path:
    """Write the front plot as an SVG picture, without a browser; return its path."""
    import vl_convert

    return _write(path, vl_convert.vegalite_to_svg(_picture(run)).encode())


def save_front_png(run: Run, path: Path) -> Path:
    """Write the front plot as a PNG picture of double resolution; return its path."""
    import vl_convert

    return _write(path, vl_convert.vegalite_to_png(_picture(run), scale=2))


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


def _picture(run: Run) -> str:
    evaluation = run.best_evaluation()
    points = front_points(run, evaluation)
    n = points[0]["n"] if points else 0
    width, height = _PICTURE
    legend = alt.Legend(title=None, orient="bottom", symbolOpacity=1)
    title = alt.Title(
        f"{run.info.name}: accuracy against answer length",
        subtitle=f"{evaluation} split, {n} items; bars are 95% intervals",
    )
    chart = _styled(_front_layers(points, legend, _PICTURE), width, height)
    chart = chart.properties(title=title, background="white", padding=16)
    return json.dumps(spec(chart))


def _front_layers(
    points: list[Row], legend: alt.Legend | None, size: tuple[int, int]
) -> list[alt.Chart]:
    """Return the layers from back to front: cloud, lines, intervals, points, words."""
    shown = [row for row in points if row["kind"] != SEARCHED]
    searched = [row for row in points if row["kind"] == SEARCHED]
    there = {row["kind"] for row in points}
    kinds = [kind for kind in COLOURS if kind in there]
    layers = [_points(searched, kinds, legend, opacity=0.6)] if searched else []
    for kind, dash in ((SWEEP, [6, 4]), (FRONT, [1, 0])):
        line = [row for row in points if row["kind"] == kind]
        mark = _on(line).mark_line(color=COLOURS[kind], strokeDash=dash, strokeWidth=2)
        layers += [mark.encode(order="order:Q")] if line else []
    layers += _intervals([row for row in shown if row["kind"] != SWEEP], kinds, legend)
    for kind in (kind for kind in kinds if kind != SEARCHED):
        rows = [row for row in shown if row["kind"] == kind]
        layers.append(_points(rows, kinds, legend, opacity=1))
    return layers + _words(points, size)


def _chart(rows: list[Row]) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=rows))


def _on(rows: list[Row]) -> alt.Chart:
    return _chart(rows).encode(
        x=alt.X(
            "tokens:Q",
            title="mean tokens of an answer",
            scale=alt.Scale(zero=True, nice=True),
            axis=alt.Axis(tickCount=8),
        ),
        y=_measure_axis("accuracy", title="accuracy", ticks=6),
    )


def _points(
    rows: list[Row], kinds: list[str], legend: alt.Legend | None, opacity: float
) -> alt.Chart:
    """Return points of one kind."""
    # Colour and shape share one legend only if their scales have the same domain.
    shapes = alt.Scale(domain=kinds, range=[_SHAPES[kind] for kind in kinds])
    tooltip = [
        alt.Tooltip("kind:N", title="part"),
        alt.Tooltip("called:N"),
        alt.Tooltip("candidate:N"),
        alt.Tooltip("genome:N"),
        *_measure_tooltips(),
        alt.Tooltip("n:Q", title="items"),
    ]
    area = _AREAS[rows[0]["kind"]]
    chart: alt.Chart = _on(rows).mark_point(filled=True, opacity=opacity, size=area)
    return chart.encode(
        color=_colour(legend, kinds),
        shape=alt.Shape("kind:N", scale=shapes, legend=legend),
        tooltip=tooltip,
    )


def _intervals(rows: list[Row], kinds: list[str], legend: alt.Legend | None) -> list[alt.Chart]:
    base = _on(rows).mark_rule(opacity=0.45, strokeWidth=1.2).encode(color=_colour(legend, kinds))
    return [
        base.encode(y="accuracy_low:Q", y2="accuracy_high:Q"),
        base.encode(x="tokens_low:Q", x2="tokens_high:Q"),
    ]


def _words(points: list[Row], size: tuple[int, int]) -> list[alt.Chart]:
    """Return a text layer for each place that a word may have beside its point."""
    marks = [Mark(row["tokens"], row["accuracy"], row["name"], row["kind"]) for row in points]
    by_place: dict[tuple[str, Align, int, int], list[Row]] = {}
    for row, where in zip(points, place(marks, (FRONT, SWEEP), size), strict=True):
        if row["name"]:
            by_place.setdefault((row["kind"], where.align, where.dx, where.dy), []).append(row)
    return [
        _on(rows)
        .mark_text(align=align, baseline="middle", dx=dx, dy=dy, fontSize=12, color=COLOURS[kind])
        .encode(text="name:N")
        for (kind, align, dx, dy), rows in by_place.items()
    ]


def _whole_numbers(count: int) -> alt.Axis:
    """Return an axis that marks whole numbers only, at most twenty of them."""
    every = max(math.ceil(count / 20), 1)
    return alt.Axis(values=list(range(0, count, every)), format="d")


def _measure_axis(measure: str, title: str | None, ticks: int) -> alt.Y:
    form = ".0%" if measure == "accuracy" else "~s"
    return alt.Y(
        f"{measure}:Q",
        title=title,
        scale=alt.Scale(zero=False, nice=True),
        axis=alt.Axis(format=form, tickCount=ticks),
    )


def _measure_tooltips() -> list[alt.Tooltip]:
    return [alt.Tooltip("accuracy:Q", format=".1%"), alt.Tooltip("tokens:Q", format=".1f")]


def _colour(legend: alt.Legend | None, kinds: list[str]) -> alt.Color:
    scale = alt.Scale(domain=kinds, range=[COLOURS[kind] for kind in kinds])
    return alt.Color("kind:N", scale=scale, legend=legend)


def _styled(layers: list[alt.Chart], width: Any, height: int) -> alt.LayerChart:
    chart = alt.LayerChart(layer=layers, width=width, height=height, config=_CONFIG)
    if width == "container":
        chart.autosize = alt.AutoSizeParams(type="fit-x", contains="padding")
    return chart


def _write(path: Path, content: bytes) -> Path:
    write_durably(path, lambda temporary: _fill(temporary, content))
    return path


def _fill(temporary: Path, content: bytes) -> None:
    temporary.write_bytes(content)
