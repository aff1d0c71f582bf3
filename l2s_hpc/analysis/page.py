"""One HTML page that opens offline: escaped elements, its look, and the policy that it lives by.

Every text that becomes part of the page goes through `el`, which escapes it; figures are data that
a script of the page draws. The policy forbids every request and `eval`: the figures' expressions
are interpreted.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters that a page must not hold, and those that reorder what is read after them."""


class Html(str):
    """Text that is markup already."""


Child = str | Html


def el(tag: str, *children: Child, **attributes: str) -> Html:
    """Return an element; a child that is not `Html` is text and escaped, as attributes are.

    A trailing underscore of an attribute's name is dropped (`class_`), others become hyphens.
    """
    words = [
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(_CONTROL.sub("", value))}"'
        for name, value in attributes.items()
    ]
    return Html(f"<{tag}{''.join(words)}>{''.join(map(_text, children))}</{tag}>")


def join(children: Iterable[Child]) -> Html:
    """Return children one after another."""
    return Html("".join(map(_text, children)))


def table(head: Sequence[Child], rows: Sequence[Sequence[Child]], words: Collection[int]) -> Html:
    """Return a table that scrolls sideways where it is too wide.

    Args:
        head: the columns' names; none gives a table without a head.
        rows: cells.
        words: the indices of the columns that hold words; the others hold numbers.
    """
    body = join(el("tr", *_cells("td", row, words)) for row in rows)
    top = el("thead", el("tr", *_cells("th", head, words))) if head else Html("")
    return el("div", el("table", top, el("tbody", body)), class_="wide")


def _cells(tag: str, cells: Sequence[Child], words: Collection[int]) -> list[Html]:
    kinds = ["word" if index in words else "number" for index in range(len(cells))]
    return [el(tag, cell, class_=kind) for cell, kind in zip(cells, kinds, strict=True)]


def figure(name: str, words: Child, legend: Iterable[tuple[str, str]] = ()) -> Html:
    """Return the place of a figure: its legend (colour, name), the drawing, and its caption."""
    keys = join(el("li", el("i", style=f"background:{colour}"), label) for colour, label in legend)
    return el(
        "figure",
        el("ul", keys, class_="legend") if keys else Html(""),
        el("div", class_="chart", data_spec=name),
        el("figcaption", words),
    )


def page(title: str, body: Iterable[Child], specs: Mapping[str, Any]) -> str:
    """Return the whole page; `specs` are the Vega-Lite specifications of its figures by name."""
    # Escaped so that no text in the data can end the script or begin a comment in it.
    data = json.dumps(specs, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")
    head = join(
        [
            Html('<meta charset="utf-8">'),
            Html(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
            Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            Html('<meta name="color-scheme" content="light dark">'),
            el("title", title),
            Html(f"<style>{_LOOK}</style>"),
        ]
    )
    scripts = f"<script>{_vega()}</script><script>const specs = {data};{_DRAW}</script>"
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n'
        f"<body><main>{join(body)}</main>\n{scripts}</body></html>\n"
    )


@cache
def _vega() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _text(child: Child) -> str:
    return child if isinstance(child, Html) else html.escape(_CONTROL.sub("", child))


_DRAW = """
for (const place of document.querySelectorAll("[data-spec]")) {
  vegaEmbed(place, specs[place.dataset.spec], {ast: true, actions: false, renderer: "svg"})
    .catch((error) => { place.textContent = "This figure could not be drawn: " + error.message; });
}
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
});
"""

_LOOK = """
:root { --ink: #1c2127; --muted: #626a73; --line: #e4e7ea; --paper: #fff; --soft: #f6f7f8;
  --accent: #2777c9; --warn: #8a5a00; --warn-soft: #fdf3df; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e3e6e9; --muted: #9aa3ad; --line: #2f353c; --paper: #15181c; --soft: #1c2025;
    --accent: #6aa9e9; --warn: #e3b35c; --warn-soft: #2c2415; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
  sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 3.5rem 1.5rem 6rem; }
h1 { font-size: 2.1rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.015em; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 3.6rem 0 .6rem; letter-spacing: -.005em; }
h3 { font-size: 1rem; margin: 2rem 0 .4rem; }
p, figcaption, ul.words { max-width: 44rem; }
p { margin: .6rem 0; }
.kicker { color: var(--muted); font-size: .85rem; margin: 0 0 .4rem; }
.lead { font-size: 1.1rem; color: var(--muted); }
.finding { font-size: 1.1rem; margin: .9rem 0; }
.lead + .finding { margin-top: 1.8rem; }
.note { color: var(--muted); font-size: .92rem; }
code { font: .86em/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  overflow-wrap: anywhere; }
figure { margin: 1.4rem 0 0; }
figcaption { color: var(--muted); font-size: .92rem; margin-top: .8rem; }
.chart { width: 100%; min-width: 0; }
.chart.vega-embed { display: block; padding: 0; }
.chart .role-axis text, .chart .role-axis-title text { fill: var(--muted); }
.chart .role-axis-grid line { stroke: var(--line); }
.chart .mark-text.role-mark text { paint-order: stroke; stroke: var(--paper); stroke-width: 4px;
  stroke-linejoin: round; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.3rem; padding: 0;
  margin: 0 0 .8rem; font-size: .88rem; color: var(--muted); }
.legend i { display: inline-block; width: .7rem; height: .7rem; border-radius: 50%;
  margin-right: .45rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(13rem, 44%), 1fr));
  gap: 1.2rem 1.6rem; }
.grid figure { margin: 0; min-width: 0; }
.grid figcaption { margin: 0; font-size: .8rem; text-align: center; overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: 1.2rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums;
  min-width: 100%; }
th { font-weight: 600; color: var(--muted); font-size: .82rem; }
th, td { padding: .42rem 1.1rem .42rem 0; border-bottom: 1px solid var(--line);
  text-align: left; vertical-align: top; white-space: nowrap; }
.number { text-align: right; }
td small, th small { color: var(--muted); font-size: .86em; }
td .wrap { display: block; white-space: normal; min-width: 12rem; max-width: 44rem;
  overflow-wrap: anywhere; }
.tag { display: inline-block; font-size: .76rem; line-height: 1.5; padding: 0 .5em;
  border-radius: .7em; background: var(--soft); color: var(--muted); margin-left: .45rem;
  font-weight: 400; letter-spacing: 0; vertical-align: .12em; white-space: nowrap; }
.tag.warn { background: var(--warn-soft); color: var(--warn); }
.notice { background: var(--warn-soft); color: var(--warn); padding: .8rem 1.1rem;
  border-radius: .4rem; max-width: none; }
details { margin: .9rem 0; }
summary { cursor: pointer; color: var(--accent); }
#vg-tooltip-element { background: var(--paper) !important; color: var(--ink) !important;
  border: 1px solid var(--line) !important; max-width: min(24rem, 92vw);
  font-family: inherit !important; font-size: .82rem !important; }
#vg-tooltip-element td.value { display: table-cell !important; white-space: normal !important;
  max-width: 17rem !important; max-height: none !important; overflow-wrap: anywhere; }
#vg-tooltip-element table { min-width: 0; }
#vg-tooltip-element td { border: 0; padding: .1rem .5rem .1rem 0; }
#vg-tooltip-element td.key { color: var(--muted) !important; }
@media (max-width: 40rem) {
  body { font-size: 15px; } main { padding: 2rem 1rem 4rem; }
  h1 { font-size: 1.7rem; } h2 { margin-top: 2.8rem; }
  th:first-child, td:first-child { position: sticky; left: 0; background: var(--paper);
    white-space: normal; min-width: 6.5rem; } }
@media print {
  main { max-width: none; padding: 0; } h2 { break-after: avoid; }
  figure, tr { break-inside: avoid; } .wide { overflow: visible; }
  html { font-size: 11px; } body { font-size: 1rem; }
  th, td { padding-right: .6rem; white-space: normal; } }
"""
