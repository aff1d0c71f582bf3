"""The charts of how a search went: time by phase, genomes by generation, progress by the hour."""

from __future__ import annotations

import altair as alt

from l2s_hpc.analysis.charts import HYPERVOLUME_COLOURS, PLAIN, SEARCH, reference_rules
from l2s_hpc.analysis.figures import Key
from l2s_hpc.analysis.forensics import KINDS, Forensics
from l2s_hpc.analysis.look import SERIES, SWEEP, coloured, rows_chart, series, styled
from l2s_hpc.analysis.nodes import PHASES
from l2s_hpc.analysis.tradeoff import Hypervolume
from l2s_hpc.analysis.transfer import Row

_GENOME_COLOURS = dict(zip(KINDS, (SERIES[0], SERIES[1], SERIES[3], SERIES[6]), strict=True))


def time_chart(found: Forensics) -> alt.LayerChart:
    """Return the seconds of each generation's accepted attempts by phase, stacked."""
    colours = _phases(found)
    rows: list[Row] = [
        {
            "kind": phase,
            "generation": generation.number,
            "minutes": generation.seconds.get(phase, 0.0) / 60,
            "order": order,
        }
        for generation in found.generations
        for order, phase in enumerate(colours)
    ]
    return _columns(rows, "minutes", "minutes of all devices", colours)


def phase_keys(found: Forensics) -> list[Key]:
    """Return the legend of `time_chart`."""
    return [Key(phase, colour) for phase, colour in _phases(found).items()]


def genomes_chart(found: Forensics) -> alt.LayerChart:
    """Return what the genomes of each generation gave, stacked."""
    rows: list[Row] = [
        {
            "kind": kind,
            "generation": generation.number,
            "genomes": generation.genomes[kind],
            "order": order,
        }
        for generation in found.generations
        for order, kind in enumerate(KINDS)
    ]
    return _columns(rows, "genomes", "genomes asked for", _GENOME_COLOURS)


def genome_keys(found: Forensics) -> list[Key]:
    """Return the legend of `genomes_chart`: the kinds that occurred."""
    return [Key(kind, _GENOME_COLOURS[kind]) for kind in KINDS if found.genomes[kind]]


def hours_chart(found: Hypervolume) -> alt.LayerChart:
    """Return the hypervolume against the device hours that the search had spent."""
    reached = zip(found.device_hours, found.generations, strict=True)
    rows: list[Row] = [
        {"kind": SEARCH, "generation": number, "hours": hours, "hypervolume": value}
        for number, (hours, value) in enumerate(reached)
    ]
    colour = coloured([SEARCH, SWEEP, PLAIN], HYPERVOLUME_COLOURS)
    base = rows_chart(rows).encode(
        x=alt.X("hours:Q", title="device hours", axis=alt.Axis(tickCount=8)),
        y=alt.Y("hypervolume:Q", title="hypervolume", scale=alt.Scale(zero=False, padding=12)),
        color=colour,
        tooltip=[
            "generation:Q",
            alt.Tooltip("hours:Q", format=".3~r"),
            alt.Tooltip("hypervolume:Q", format=".4f"),
        ],
    )
    line = base.mark_line(strokeWidth=2, interpolate="step-after")
    points = base.mark_circle(size=55, opacity=1)
    return styled([*reference_rules(found, colour), line, points], 260)


def _phases(found: Forensics) -> dict[str, str]:
    there = dict.fromkeys(phase for g in found.generations for phase in g.seconds)
    ordered = [phase for phase in PHASES if phase in there]
    return series([*ordered, *(phase for phase in there if phase not in PHASES)])


def _columns(rows: list[Row], field: str, title: str, colours: dict[str, str]) -> alt.LayerChart:
    numbers = sorted({row["generation"] for row in rows})
    every = max(-(-len(numbers) // 10), 1)
    chart = rows_chart(rows).mark_bar()
    chart = chart.encode(
        x=alt.X(
            "generation:O",
            title="generation",
            axis=alt.Axis(values=numbers[::every], labelAngle=0, grid=False),
            scale=alt.Scale(domain=numbers, paddingInner=0.25),
        ),
        y=alt.Y(f"{field}:Q", title=title, axis=alt.Axis(tickCount=5)),
        color=coloured(list(colours), list(colours.values())),
        order="order:Q",
        tooltip=["generation:O", "kind:N", alt.Tooltip(f"{field}:Q", format=".4~r")],
    )
    return styled([chart], 240)
