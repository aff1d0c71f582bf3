"""The figures of a report, collected: one list that the page and the pictures are made from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from l2s_hpc.analysis.look import spec
from l2s_hpc.analysis.page import Child, Html, el, join


@dataclass(frozen=True)
class Key:
    """One entry of a legend: the kind that a click switches off, its colour, and its words."""

    kind: str
    colour: str
    label: str = ""


@dataclass(frozen=True)
class Figure:
    """One chart.

    Attributes:
        name: what its picture is called, without a suffix.
        title: what it shows. note: where from, with n.
        spec: its Vega-Lite specification, as wide as its place.
        keys: its legend; none where it needs none.
        small: it stands in a grid.
    """

    name: str
    title: str
    note: str
    spec: dict[str, Any]
    keys: tuple[Key, ...]
    small: bool = False


class Figures:
    """Takes the charts of one report in their order, and gives their places on the page.

    Attributes:
        all: the figures taken so far.
    """

    def __init__(self) -> None:
        self.all: list[Figure] = []
        self._numbered = 0

    def specs(self) -> dict[str, Any]:
        """Return the specifications by name."""
        return {figure.name: figure.spec for figure in self.all}

    def number(self) -> str:
        """Return the words with which the next caption begins."""
        self._numbered += 1
        return f"Figure {self._numbered}."

    def place(
        self,
        name: str,
        chart: alt.TopLevelMixin,
        words: Child,
        *,
        title: str,
        note: str,
        keys: Sequence[Key] = (),
    ) -> Html:
        """Take a chart; return its legend, its place and its numbered caption."""
        self.all.append(Figure(name, title, note, spec(chart), tuple(keys)))
        caption = el("figcaption", f"{self.number()} ", words)
        return el("figure", legend(keys), _place(name), caption, data_group="")

    def grid(
        self,
        charts: Iterable[tuple[str, str, alt.TopLevelMixin]],
        *,
        title: str,
        note: str,
        keys: Sequence[Key] = (),
    ) -> Html:
        """Take small charts (name, words below it, chart) that share a title and a legend."""
        places = []
        for name, words, chart in charts:
            found = Figure(name, f"{title}: {words}", note, spec(chart), tuple(keys), small=True)
            self.all.append(found)
            places.append(el("figure", _place(name), el("figcaption", words)))
        return el("div", *places, class_="grid")


def legend(keys: Iterable[Key]) -> Html:
    """Return a legend; a click on a key hides its kind in the charts of the same group."""
    entries = [
        el(
            "li",
            el(
                "button",
                el("i", style=f"background:{key.colour}"),
                key.label or key.kind,
                type="button",
                aria_pressed="true",
                data_kind=key.kind,
            ),
        )
        for key in keys
    ]
    return el("ul", *entries, class_="legend") if entries else Html("")


def group(children: Iterable[Child]) -> Html:
    """Return sections of a page whose charts one legend among them is for."""
    return el("div", join(children), data_group="")


def _place(name: str) -> Html:
    return el("div", class_="chart", data_spec=name)
