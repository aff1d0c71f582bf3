"""How the charts look, and what they share: colours, axes, tooltips, the legend's filter.

The colours are of middle lightness, readable on white and on near-black: the report's page sets
only the colours of text, axes and rules anew when it is dark.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import altair as alt

from l2s_hpc.analysis.transfer import Row

SEARCHED, FRONT, SWEEP = "searched candidate", "front", "one-parameter sweep"
AVERAGE, PARENT, OTHER = "plain average", "parent", "other model"
COLOURS = {
    SEARCHED: "#8f97a1", OTHER: "#8f97a1", FRONT: "#2777c9", SWEEP: "#c9821a",
    AVERAGE: "#c9821a", PARENT: "#b8487a",
}  # fmt: skip
SERIES = (
    "#2777c9", "#c9821a", "#2f9467", "#b8487a", "#7d68c4", "#3a9fb0", "#8f97a1", "#a0713f",
)  # fmt: skip
"""The colours of what has no colour of its own, in order."""
INK, MUTED, LINE = "#1c2127", "#626a73", "#e4e7ea"
HIDDEN = "hidden"
"""The signal of a chart that holds the kinds which its legend has switched off."""

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_CONFIG: dict[str, Any] = {
    "font": _FONT,
    "background": "transparent",
    "view": {"stroke": None},
    "axis": {
        "domain": False,
        "ticks": False,
        "gridColor": LINE,
        "labelColor": MUTED,
        "labelFontSize": 11,
        "labelPadding": 6,
        "labelOverlap": "greedy",
        "labelSeparation": 8,
        "titleColor": MUTED,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 10,
    },
    "legend": {"labelColor": INK, "labelFontSize": 12, "columnPadding": 18, "padding": 8},
    "title": {
        "anchor": "start",
        "color": INK,
        "fontSize": 17,
        "offset": 14,
        "subtitleColor": MUTED,
        "subtitleFontSize": 12,
        "subtitlePadding": 5,
    },
}


def spec(chart: alt.TopLevelMixin) -> dict[str, Any]:
    """Return a chart's Vega-Lite specification."""
    # Altair's own check costs a tenth of a second a chart; the tests make it.
    found: dict[str, Any] = chart.to_dict(validate=False)
    return found


def rows_chart(rows: Sequence[Row]) -> alt.Chart:
    """Return a chart without marks on rows, but for those whose `kind` the legend switched off.

    Rows without a kind are always drawn.
    """
    # Not as `InlineData`, which compares every row with the schema.
    chart = alt.Chart({"values": list(rows)})
    if rows and "kind" in rows[0]:
        chart = chart.transform_filter(f"indexof({HIDDEN}, datum.kind) < 0")
    return chart


def styled(layers: Sequence[alt.Chart], height: int, width: Any = "container") -> alt.LayerChart:
    """Return layers as one chart; without a width it is as wide as its place on the page."""
    chart = alt.LayerChart(layer=list(layers), width=width, height=height, config=_CONFIG)
    chart = chart.add_params(alt.param(name=HIDDEN, value=[]))
    if width == "container":
        chart.autosize = alt.AutoSizeParams(type="fit-x", contains="padding")
    return chart


def coloured(
    kinds: Sequence[str], colours: Sequence[str] = (), legend: alt.Legend | None = None
) -> alt.Color:
    """Return the colour of each kind; without colours those of `COLOURS`."""
    chosen = list(colours) or [COLOURS[kind] for kind in kinds]
    return alt.Color(
        "kind:N", scale=alt.Scale(domain=list(kinds), range=chosen), legend=legend, sort=list(kinds)
    )


def series(kinds: Collection[str]) -> dict[str, str]:
    """Return a colour for each of some kinds; from the ninth on they repeat."""
    return {kind: SERIES[index % len(SERIES)] for index, kind in enumerate(kinds)}


def whole_numbers(count: int) -> alt.Axis:
    """Return an axis that marks the whole numbers below a count, at most ten of them."""
    every = max(math.ceil(count / 10), 1)
    return alt.Axis(values=list(range(0, count, every)), format="d")


def measure_axis(measure: str, title: str | None, ticks: int) -> alt.Y:
    """Return the axis of a measure that need not begin at zero."""
    return alt.Y(
        f"{measure}:Q",
        title=title,
        scale=alt.Scale(zero=False, nice=True),
        axis=alt.Axis(format=".0%" if measure == "accuracy" else "~s", tickCount=ticks),
    )


def measure_tooltips() -> list[alt.Tooltip]:
    """Return the tooltips of accuracy and tokens."""
    return [alt.Tooltip("accuracy:Q", format=".1%"), alt.Tooltip("tokens:Q", format=".1f")]
