"""The reports as a browser shows them: nothing asked for, nothing said, all drawn and legible."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from l2s_hpc import open_run
from l2s_hpc.analysis.report import write_report
from l2s_hpc.analysis.report_runs import RunsReport
from l2s_hpc.analysis.runs import open_runs
from l2s_hpc.store.files import read_json, write_json
from tests.browser import PROGRAM, Chromium
from tests.unit.test_analysis_builder import complete

WIDTHS, THEMES = (390, 1400), (False, True)
DRAWN = (
    "[...document.querySelectorAll('[data-spec]')].every("
    "  (place) => place.querySelector('svg .role-mark path, svg .role-mark text'))"
)
"""Whether each figure has a mark."""

HELPERS = """
function channel(value) {
  value /= 255;
  return value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
}
function light(colour) {
  const [r, g, b] = colour.match(/[\\d.]+/g).map(Number);
  return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
}
function behind(element) {
  for (let e = element; e; e = e.parentElement) {
    const colour = getComputedStyle(e).backgroundColor;
    if (colour && !/, 0\\)$|transparent/.test(colour)) return colour;
  }
  return "rgb(255, 255, 255)";
}
function visible(element) {
  return element.getClientRects().length && getComputedStyle(element).visibility === "visible";
}
function texts() {
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.closest("script, style")) continue;
    if (!visible(element)) continue;
    const style = getComputedStyle(element);
    const colour = element.closest("svg") ? style.fill : style.color;
    const [a, b] = [light(colour), light(behind(element))].sort((x, y) => y - x);
    const text = walker.currentNode.data.trim().slice(0, 40);
    const size = parseFloat(style.fontSize);
    found.push({text, size, contrast: (a + 0.05) / (b + 0.05), colour});
  }
  return found;
}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    if not PROGRAM:
        reason = "no Chromium on this machine (Debian: apt-get install chromium)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    with Chromium() as found:
        yield found


@pytest.fixture(scope="module", params=["one", "several"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    complete(folder / "a")
    if request.param == "one":
        return write_report(open_run(folder / "a"), folder / "report.html")
    other = complete(folder / "b")
    told = read_json(other.paths.run_json)
    told["science"]["search.algorithm"] = "random"
    write_json(other.paths.run_json, told)
    return RunsReport(open_runs([folder / "a", folder / "b"])).write(folder / "report.html")


def shown(
    browser: Chromium, report: Path, width: int = 1400, dark: bool = False, media: str = "screen"
) -> Chromium:
    browser.errors.clear()
    browser.requests.clear()
    browser.look(width, dark=dark, media=media)
    browser.open(report)
    browser.wait(DRAWN)
    return browser


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dark", THEMES)
def test_it_opens_silently_whole_and_alone(
    browser: Chromium, report: Path, width: int, dark: bool
) -> None:
    page = shown(browser, report, width, dark)
    assert page.errors == []
    assert page.requests == [report.as_uri()]
    assert page.ask("document.querySelectorAll('[data-spec] svg').length") >= 2
    page.ask("(document.querySelectorAll('details').forEach((d) => { d.open = true; }), 0)")
    assert page.ask("document.documentElement.scrollWidth") == width
    # What is wider than the page scrolls within itself; a chart never is.
    wide = (
        "[...document.querySelectorAll('.chart svg')].map((s) => s.getBoundingClientRect().right)"
    )
    assert max(page.ask(wide)) <= width


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dark", THEMES)
def test_it_is_legible(browser: Chromium, report: Path, width: int, dark: bool) -> None:
    page = shown(browser, report, width, dark)
    page.ask("(document.querySelectorAll('details').forEach((d) => { d.open = true; }), 0)")
    texts: list[dict[str, Any]] = page.ask(f"(() => {{ {HELPERS} return texts(); }})()")
    assert len(texts) > 100
    assert [t for t in texts if t["size"] < 10.5] == []
    assert [t for t in texts if t["contrast"] < 4.5] == []
    paper = page.ask("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") != dark


def test_it_prints_light_with_all_parts_open(browser: Chromium, report: Path) -> None:
    page = shown(browser, report, dark=True, media="print")
    assert page.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf().startswith(b"%PDF")
    assert page.ask("[...document.querySelectorAll('details')].every((part) => part.open)")
    texts = page.ask(f"(() => {{ {HELPERS} return texts(); }})()")
    assert [t for t in texts if t["contrast"] < 4.5] == []


def test_a_click_on_a_head_sorts(browser: Chromium, report: Path) -> None:
    page = shown(browser, report)
    page.ask(
        "window.heads = [...document.querySelectorAll('th')].filter((h) => h.checkVisibility()"
        "  && ['front', 'accuracy'].includes(h.textContent)); 0"
    )
    cells = (
        "[...heads[0].closest('table').tBodies[0].rows].map("
        "  (r) => parseFloat(r.cells[heads[0].cellIndex].textContent))"
    )
    before = page.ask(cells)
    assert len(before) > 1
    page.ask("(heads[0].querySelector('button').click(), 0)")
    assert page.ask("heads[0].getAttribute('aria-sort')") == "ascending"
    assert page.ask(cells) == sorted(before)
    # By the keyboard it goes the other way.
    page.ask("(heads[0].querySelector('button').focus(), 0)")
    page.press("Enter")
    assert page.ask("heads[0].getAttribute('aria-sort')") == "descending"
    assert page.ask(cells) == sorted(before, reverse=True)
    assert page.ask("heads[0].closest('table').querySelectorAll('[aria-sort]').length") == 1


def test_a_key_of_the_legend_hides_its_kind(browser: Chromium, report: Path) -> None:
    page = shown(browser, report)
    marks = "document.querySelectorAll('[data-spec]')[0].querySelectorAll('.role-mark path').length"
    key = "document.querySelector('.legend button')"
    before = page.ask(marks)
    page.ask(f"({key}.click(), 0)")
    assert page.ask(f"{key}.getAttribute('aria-pressed')") == "false"
    page.wait(f"{marks} < {before}")
    page.ask(f"({key}.focus(), 0)")
    page.press("Enter")
    assert page.ask(f"{key}.getAttribute('aria-pressed')") == "true"
    page.wait(f"{marks} === {before}")
    assert page.errors == []


def test_a_point_tells_what_it_is(browser: Chromium, report: Path) -> None:
    page = shown(browser, report)
    page.ask("(document.querySelector('[data-spec]').scrollIntoView(), 0)")
    points = (
        "[...document.querySelector('[data-spec]').querySelectorAll('.mark-symbol path')]"
        ".map((point) => point.getBoundingClientRect())"
        ".map(({x, y, width, height}) => [x + width / 2, y + height / 2])"
    )
    tooltip = "document.querySelector('#vg-tooltip-element.visible')"
    # A word or a bar may lie on a point: some point answers.
    for x, y in page.ask(points):
        page.point_at(x - 1, y)
        page.point_at(x, y)
        if page.ask(f"{tooltip} !== null"):
            break
    told = page.ask(f"{tooltip}.innerText")
    assert "accuracy" in told and "tokens" in told and "candidate" in told


def test_the_browser_would_tell(browser: Chromium, tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text(
        "<script>console.error('said'); fetch('https://example.invalid/x');"
        "undefined.thrown</script>"
        "<p style='width:2000px;color:#aaa;font-size:8px'>text</p>",
        encoding="utf-8",
    )
    browser.errors.clear()
    browser.requests.clear()
    browser.look(390)
    browser.open(path)
    assert any("said" in error for error in browser.errors)
    assert any("thrown" in error for error in browser.errors)
    assert "https://example.invalid/x" in browser.requests
    assert browser.ask("document.documentElement.scrollWidth") > 390
    (text,) = browser.ask(f"(() => {{ {HELPERS} return texts(); }})()")
    assert text["size"] == 8 and text["contrast"] < 4.5
