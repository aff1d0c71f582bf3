"""The charts of what models do on the items: who solves which, transfer rates, answer lengths."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import numpy as np

from l2s_hpc.analysis.figures import Key
from l2s_hpc.analysis.items import ItemMatrix
from l2s_hpc.analysis.look import COLOURS, SERIES, coloured, rows_chart, styled
from l2s_hpc.analysis.transfer import Row

KEPT, LOST, GAINED, MISSED = "kept", "lost", "gained", "missed"
RIGHT, WRONG = "right", "wrong"
_MATRIX_COLOURS = {
    KEPT: "#8db8e3", LOST: "#b8487a", GAINED: "#2f9467", MISSED: "#b9bec5",
    RIGHT: "#8db8e3", WRONG: "#b8487a",
}  # fmt: skip
_LABELS = {
    KEPT: "kept: right, as some parent",
    LOST: "lost: wrong, and some parent right",
    GAINED: "gained: right, and no parent",
    MISSED: "missed: wrong, as all parents",
}
_RATES = {"NTR": SERIES[3], "PTR": SERIES[2]}
_MOST_CELLS = 6000
_ROW = 19
"""Height of a model's row in pixels."""


def matrix_rows(
    found: ItemMatrix, models: Sequence[str], names: Sequence[str]
) -> tuple[list[Row], int]:
    """Return a row for each cell of models by items, and on how many items these models differ.

    Items on which they agree are left out; of the others at most so many are taken, evenly, that a
    browser can draw the cells. Items are in the order of the matrix.
    """
    columns = [found.candidates.index(candidate) for candidate in models]
    values = found.values[:, columns] == 1
    differing = np.flatnonzero(values.any(axis=1) & ~values.all(axis=1))
    count = int(differing.size)
    most = max(_MOST_CELLS // max(len(models), 1), 1)
    if differing.size > most:
        differing = differing[np.linspace(0, differing.size - 1, most).round().astype(int)]
    parents = any(found.solved_by)
    rows = []
    for place, item in enumerate(differing.tolist()):
        solved = bool(found.solved_by[item])
        for name, right in zip(names, values[item].tolist(), strict=True):
            kinds = (KEPT, LOST) if solved else (GAINED, MISSED)
            kind = kinds[not right] if parents else (RIGHT, WRONG)[not right]
            rows.append(
                {
                    "kind": kind,
                    "model": name,
                    "place": place,
                    "end": place + 1,
                    "item": " ".join(found.items[item]),
                    "solved_by": ", ".join(found.solved_by[item]) or "no parent",
                }
            )
    return rows, count


def matrix_chart(rows: Sequence[Row], names: Sequence[str]) -> alt.LayerChart:
    """Return cells, a row for each model."""
    kinds = _kinds(rows)
    chart = rows_chart(rows).mark_rect(stroke=None)
    chart = chart.encode(
        x=alt.X(
            "place:Q",
            title="items",
            axis=alt.Axis(grid=False, tickCount=6, format="d"),
            scale=alt.Scale(nice=False),
        ),
        x2="end:Q",
        y=_models(names),
        color=coloured(kinds, [_MATRIX_COLOURS[kind] for kind in kinds]),
        tooltip=["kind:N", "model:N", "item:N", alt.Tooltip("solved_by:N", title="solved by")],
    )
    return styled([chart], _ROW * len(names))


def matrix_keys(rows: Sequence[Row]) -> list[Key]:
    """Return the legend of `matrix_chart`."""
    return [Key(kind, _MATRIX_COLOURS[kind], _LABELS.get(kind, kind)) for kind in _kinds(rows)]


def rates_chart(rows: Sequence[Row], names: Sequence[str]) -> alt.LayerChart:
    """Return NTR and PTR of models with their intervals; rows are a table's, and have `model`."""
    points: list[Row] = [
        {
            "kind": kind,
            "model": row["model"],
            "rate": row[name],
            "low": row[f"{name}_low"],
            "high": row[f"{name}_high"],
            "candidate": row["candidate"],
        }
        for row in rows
        for kind, name in (("NTR", "ntr"), ("PTR", "ptr"))
        if row[name] is not None
    ]
    offset = alt.YOffset("kind:N", scale=alt.Scale(domain=list(_RATES), paddingOuter=0.3))
    base = rows_chart(points).encode(
        y=_models(names),
        yOffset=offset,
        color=coloured(list(_RATES), list(_RATES.values())),
        tooltip=[
            "kind:N",
            "model:N",
            "candidate:N",
            *(alt.Tooltip(f"{name}:Q", format=".1%") for name in ("rate", "low", "high")),
        ],
    )
    axis = alt.Axis(format=".0%", tickCount=6)
    bars = base.mark_rule(strokeWidth=2, opacity=0.5).encode(
        x=alt.X("low:Q", title="share of the items that it can be of", axis=axis), x2="high:Q"
    )
    return styled([bars, base.mark_circle(size=45, opacity=1).encode(x="rate:Q")], 22 * len(names))


def rates_keys() -> list[Key]:
    """Return the legend of `rates_chart`."""
    labels = {"NTR": "NTR: lost", "PTR": "PTR: gained"}
    return [Key(kind, colour, labels[kind]) for kind, colour in _RATES.items()]


def lengths_chart(rows: Sequence[Row], names: Sequence[str]) -> alt.LayerChart:
    """Return where the lengths of models' answers lie; rows have `model`, `kind` and quantiles."""
    kinds = [kind for kind in COLOURS if any(row["kind"] == kind for row in rows)]
    told: list[Row] = [
        {name: row[name] for name in _LENGTHS}
        | {"note": f"{row['cut']:.1%} cut" if row["cut"] else ""}
        for row in rows
    ]
    base = rows_chart(told).encode(
        y=_models(names),
        color=coloured(kinds),
        tooltip=[
            "model:N",
            *(alt.Tooltip(f"{name}:Q", format=".1f") for name in _LENGTHS[2:-1]),
            alt.Tooltip("cut:Q", format=".1%"),
        ],
    )
    axis = alt.X("q05:Q", title="tokens of an answer", axis=alt.Axis(tickCount=6))
    layers = [
        base.mark_rule(strokeWidth=1.5, opacity=0.6).encode(x=axis, x2="q95:Q"),
        base.mark_bar(height=9, opacity=0.55).encode(x="q25:Q", x2="q75:Q"),
        base.mark_tick(thickness=2.5, size=13, opacity=1).encode(x="median:Q"),
        base.mark_circle(size=34, opacity=1).encode(x="mean:Q"),
        base.mark_text(align="left", dx=6, fontSize=11).encode(x="q95:Q", text="note:N"),
    ]
    return styled(layers, _ROW * len(names))


_LENGTHS = ("kind", "model", "q05", "q25", "median", "q75", "q95", "mean", "cut")


def _kinds(rows: Sequence[Row]) -> list[str]:
    there = {row["kind"] for row in rows}
    return [kind for kind in _MATRIX_COLOURS if kind in there]


def _models(names: Sequence[str]) -> alt.Y:
    return alt.Y(
        "model:N",
        title=None,
        sort=list(names),
        scale=alt.Scale(domain=list(names)),
        axis=alt.Axis(grid=False, labelOverlap=False, labelLimit=130),
    )
