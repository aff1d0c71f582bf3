"""The charts of several runs: their fronts overlaid, and mean and spread of their hypervolume."""

from __future__ import annotations

import altair as alt

from l2s_hpc.analysis.figures import Key
from l2s_hpc.analysis.look import (
    coloured,
    measure_axis,
    measure_tooltips,
    rows_chart,
    series,
    styled,
    whole_numbers,
)
from l2s_hpc.analysis.runs import Runs
from l2s_hpc.analysis.transfer import Row


def kind_of(runs: Runs, name: str) -> str:
    """Return what a run is drawn as: its group, or itself where there is one group."""
    return runs.group_of(name) if len(runs.groups) > 1 else name


def keys(runs: Runs) -> list[Key]:
    """Return the legend of all charts of several runs."""
    return [Key(kind, colour) for kind, colour in _colours(runs).items()]


def fronts_chart(runs: Runs, evaluation: str) -> alt.LayerChart:
    """Return the front of each run in an evaluation, and each run's parents."""
    rows: list[Row] = [
        {
            "kind": kind_of(runs, name),
            "run": name,
            "candidate": row["candidate"],
            "accuracy": row["accuracy"],
            "tokens": row["tokens"],
            "n": row["n"],
        }
        for name, run in runs.runs.items()
        for row in run.front(evaluation)
    ]
    base = rows_chart(rows).encode(
        x=alt.X("tokens:Q", title="mean tokens of an answer", axis=alt.Axis(tickCount=8)),
        y=measure_axis("accuracy", title="accuracy", ticks=6),
        color=_colour(runs),
        detail="run:N",
        tooltip=["kind:N", "run:N", "candidate:N", *measure_tooltips(), alt.Tooltip("n:Q")],
    )
    line = base.mark_line(strokeWidth=1.6, opacity=0.7).encode(order="tokens:Q")
    return styled([line, base.mark_circle(size=50, opacity=0.9)], 400)


def course_chart(runs: Runs, by_hours: bool) -> alt.LayerChart:
    """Return the hypervolume of each run, by generation or by device hours.

    By generation each group has its mean as a thick line, and the ends of its runs as a band.
    """
    rows: list[Row] = [
        {
            "kind": kind_of(runs, name),
            "run": name,
            "generation": generation,
            "hours": hours,
            "hypervolume": value,
        }
        for name in runs.runs
        for generation, (value, hours) in enumerate(
            zip(runs.reached(name).generations, runs.reached(name).device_hours, strict=True)
        )
    ]
    last = max(row["generation"] for row in rows)
    x = (
        alt.X("hours:Q", title="device hours", axis=alt.Axis(tickCount=8))
        if by_hours
        else alt.X("generation:Q", title="generation", axis=whole_numbers(last + 1))
    )
    y = alt.Y("hypervolume:Q", title="hypervolume", scale=alt.Scale(zero=False, padding=12))
    base = rows_chart(rows).encode(
        x=x,
        y=y,
        color=_colour(runs),
        detail="run:N",
        tooltip=["kind:N", "run:N", "generation:Q", alt.Tooltip("hypervolume:Q", format=".4f")],
    )
    several = any(len(members) > 1 for members in runs.groups.values())
    if by_hours or not several or len(runs.groups) == 1:
        lines = base.mark_line(strokeWidth=1.8, interpolate="step-after" if by_hours else "linear")
        return styled([lines, base.mark_circle(size=40, opacity=1)], 300)
    return styled([*_spread(runs, x), base.mark_line(strokeWidth=1, opacity=0.5)], 300)


def _spread(runs: Runs, x: alt.X) -> list[alt.Chart]:
    rows = [{**row, "kind": row["group"], "hypervolume": row["mean"]} for row in runs.hypervolume()]
    base = rows_chart(rows).encode(x=x, color=_colour(runs))
    band = base.mark_area(opacity=0.18).encode(y=alt.Y("low:Q", title="hypervolume"), y2="high:Q")
    line = base.mark_line(strokeWidth=2.6, point=alt.OverlayMarkDef(size=45)).encode(
        y="hypervolume:Q",
        tooltip=[
            "kind:N", "generation:Q", "runs:Q", alt.Tooltip("mean:Q", format=".4f"),
            alt.Tooltip("sd:Q", format=".4f"),
        ],
    )  # fmt: skip
    return [band, line]


def _colour(runs: Runs) -> alt.Color:
    colours = _colours(runs)
    return coloured(list(colours), list(colours.values()))


def _colours(runs: Runs) -> dict[str, str]:
    return series(dict.fromkeys(kind_of(runs, name) for name in runs.runs))
