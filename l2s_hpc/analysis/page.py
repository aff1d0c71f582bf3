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

from l2s_hpc.analysis.page_script import SCRIPT
from l2s_hpc.analysis.page_style import LOOK

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
    return [
        el(tag, cell, class_="word") if index in words else el(tag, cell)
        for index, cell in enumerate(cells)
    ]


def sorted_by(value: float | None, shown: Child) -> Html:
    """Return a cell that a click on its column's head sorts by a value, not by what it shows."""
    return join([shown]) if value is None else el("data", shown, value=f"{value:.9g}")


def page(title: str, body: Iterable[Child], specs: Mapping[str, Any]) -> str:
    """Return the whole page; `specs` are the Vega-Lite specifications of its figures by name."""
    lean, tables = _apart(specs)
    head = join(
        [
            Html('<meta charset="utf-8">'),
            Html(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
            Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            Html('<meta name="color-scheme" content="light dark">'),
            el("title", title),
            Html(f"<style>{LOOK}</style>"),
        ]
    )
    data = f"const specs = {_script_json(lean)}, tables = {_script_json(tables)};"
    scripts = f"<script>{_vega()}</script><script>{data}{SCRIPT}</script>"
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n'
        f"<body><main>{join(body)}</main>\n{scripts}</body></html>\n"
    )


def _apart(
    specs: Mapping[str, Any],
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, list[Any]]]]:
    """Return specifications that only name their rows, and these rows by name, as columns.

    Altair names rows by their hash, so that rows which several charts draw are kept once.
    """
    lean: dict[str, dict[str, Any]] = {}
    tables: dict[str, dict[str, list[Any]]] = {}
    for name, spec in specs.items():
        found = spec.get("datasets", {})
        tables |= {key: _columns(rows) for key, rows in found.items() if key not in tables}
        lean[name] = {**spec, "datasets": list(found)}
    return lean, tables


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    fields = dict.fromkeys(name for row in rows for name in row)
    return {name: [_short(row.get(name)) for row in rows] for name in fields}


def _short(value: Any) -> Any:
    """Return a number with six digits: a drawing shows no more."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _script_json(value: Any) -> str:
    """Return JSON in which no text can end the script or begin a comment in it."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


@cache
def _vega() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _text(child: Child) -> str:
    return child if isinstance(child, Html) else html.escape(_CONTROL.sub("", child))
