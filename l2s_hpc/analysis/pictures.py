"""The charts of a report as SVG and PNG pictures, without a browser."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from l2s_hpc.analysis.figures import Figure
from l2s_hpc.store.files import write_durably
from l2s_hpc.store.layout import file_name

Format = Literal["svg", "png"]

_WIDTH, _SMALL = 760, 280
_LEGEND = {"title": None, "orient": "bottom", "symbolOpacity": 1, "symbolStrokeWidth": 2}


def save_pictures(figures: Iterable[Figure], folder: Path, kind: Format) -> list[Path]:
    """Write each figure as `<name>.svg` or `.png` into a folder; return the paths.

    A PNG has double resolution.
    """
    return [
        save_picture(figure, folder / f"{file_name(figure.name)}.{kind}", kind)
        for figure in figures
    ]


def save_picture(figure: Figure, path: Path, kind: Format) -> Path:
    """Write one figure; return its path."""
    import vl_convert

    drawn = json.dumps(picture(figure))
    if kind == "svg":
        content = vl_convert.vegalite_to_svg(drawn).encode()
    else:
        content = vl_convert.vegalite_to_png(drawn, scale=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, lambda temporary: _fill(temporary, content))
    return path


def picture(figure: Figure) -> dict[str, Any]:
    """Return a figure's specification with title, legend and a size of its own."""
    drawn: dict[str, Any] = _with_legend(figure.spec) if figure.keys else dict(figure.spec)
    drawn.pop("autosize", None)
    return drawn | {
        "datasets": figure.spec["datasets"],
        "width": _SMALL if figure.small else _WIDTH,
        "title": {"text": figure.title, "subtitle": figure.note},
        "background": "white",
        "padding": 16,
    }


def _with_legend(part: Any) -> Any:
    """Return a specification whose colours and shapes by kind have a legend."""
    if isinstance(part, list):
        return [_with_legend(inner) for inner in part]
    if not isinstance(part, dict):
        return part
    found = {name: _with_legend(inner) for name, inner in part.items() if name != "datasets"}
    for channel in ("color", "shape"):
        encoded = found.get(channel)
        if isinstance(encoded, dict) and encoded.get("field") == "kind":
            found[channel] = encoded | {"legend": _LEGEND}
    return found


def _fill(temporary: Path, content: bytes) -> None:
    temporary.write_bytes(content)
