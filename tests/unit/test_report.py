"""The report: one safe file that opens offline, of finished and unfinished runs; the picture."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import altair as alt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2s_hpc import Run, open_run
from l2s_hpc.analysis.charts import front_points
from l2s_hpc.analysis.evaluated import evaluated
from l2s_hpc.analysis.figures import Figures
from l2s_hpc.analysis.nodes import Node, differences, node_rows
from l2s_hpc.analysis.page import POLICY, el, page
from l2s_hpc.analysis.pictures import picture, save_pictures
from l2s_hpc.analysis.placement import PLACES, Mark, place
from l2s_hpc.analysis.report import Report, write_report
from l2s_hpc.analysis.settings import settings
from l2s_hpc.cli.report import report as report_verb
from l2s_hpc.errors import UserError
from l2s_hpc.records import Evaluation, Protocol
from l2s_hpc.store.files import read_json, write_json

from .test_analysis_builder import HOSTILE, IDS, Rows, SmallRun, complete, doubtful

Capture = pytest.CaptureFixture[str]


class Page(HTMLParser):
    """Collects what a browser would make of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.words.append(data)


def _data(script: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the specifications and the rows that a page's own script begins with."""
    specs, end = json.JSONDecoder().raw_decode(script.removeprefix("const specs = "))
    rest = script.removeprefix("const specs = ")[end:].removeprefix(", tables = ")
    return specs, json.JSONDecoder().raw_decode(rest)[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return open_run(complete(tmp_path_factory.mktemp("report") / "run").paths.folder)


@pytest.fixture(scope="module")
def report(run: Run) -> str:
    path = run.folder / "report.html"
    assert write_report(run, path) == path
    return path.read_text(encoding="utf-8")


def test_nothing_is_loaded_from_elsewhere(report: str) -> None:
    seen = Page(report)
    assert not [tag for tag, attributes in seen.tags if {"src", "href", "srcset"} & set(attributes)]
    assert not {"link", "img", "iframe", "object", "base", "form"} & {tag for tag, _ in seen.tags}
    styles = "".join(re.findall(r"<style>(.*?)</style>", report, re.DOTALL))
    assert "url(" not in styles
    assert "@import" not in styles


def test_the_policy_stands_before_everything_that_it_governs(report: str) -> None:
    tag = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    assert report.count(tag) == 1
    assert report.index(tag) < report.index("<style")
    assert "unsafe-eval" not in POLICY
    assert POLICY.startswith("default-src 'none'")


def test_hostile_text_stays_text(report: str) -> None:
    seen = Page(report)
    assert HOSTILE in seen.text
    assert "Two <b>parents</b>, two genes" in seen.text
    assert len(seen.scripts) == 2
    assert "alert(" not in "".join(seen.scripts[1:])
    assert "<script>alert" not in report


def test_the_numbers_are_there_with_intervals_and_counts(report: str) -> None:
    text = Page(report).text
    assert re.search(
        r"The parent slow solves 83\.3% \[[\d.]+, [\d.]+\] of the 12 report items", text
    )
    assert "The pick most accurate solves 83.3%" in text
    assert "(−30%), and loses 9.1% [1.6, 37.7]" in text
    assert "12 items, of which some parent solves 11" in text
    assert "looked at once" in text
    assert text.count("optimistic") >= 4
    assert "A parent's own NTR need not be zero" in text
    assert "2 failed" in text
    assert "1 gave a known model" in text


def test_the_length_of_right_answers_stands_beside_the_mean(report: str) -> None:
    text = Page(report).text
    heads = "model accuracy mean tokens tokens if right NTR PTR cut off"
    assert text.count(heads) == 4
    # Right on the report items: a0 to a7, b0 and b2, of which six are a token shorter.
    assert re.search(r"most accurate \w{8} 83\.3% \[[^]]*\] 71\.0 \[[^]]*\] 70\.8 9\.1%", text)
    assert "gradable" not in text and "undecided" not in text


def test_ungradable_items_and_undecided_verdicts_are_told(tmp_path: Path) -> None:
    run = open_run(complete(tmp_path / "run", doubtful).paths.folder)
    text = Page(write_report(run, tmp_path / "r.html").read_text(encoding="utf-8")).text
    both = "model accuracy accuracy, gradable mean tokens tokens if right NTR PTR cut off undecided"
    assert text.count(both) == 2  # all and macro
    assert text.count("No rule can grade 2 of the items") == 3  # and beta
    assert text.count("An undecided verdict counts as wrong.") == 3  # and alpha
    assert re.search(r"knee \w{8} 50\.0% \[[^]]*\] 40\.0% 26\.0 ", text)
    assert re.search(r"knee [^–]* 100\.0% \[[^]]*\] 0\.0% 8\.3%", text)


def test_scores_of_checkpoints_tell_the_same(tmp_path: Path) -> None:
    def scores(name: str, change: Callable[[Rows], Rows] = list) -> str:
        small = SmallRun(tmp_path / name, change)
        small.evaluate("search", "short")
        protocol = Protocol(
            prompt="plain", max_tokens=9, temperature=0, top_p=1, samples=1, seed=0, stop_ids=(),
            tokenizer="", chunk_items=1, engine="scripted", engine_settings={}, merge_device="cpu",
        )  # fmt: skip
        described = Evaluation(name="search", protocol=protocol, items=())
        write_json(small.paths.evaluation("search"), described.model_dump(mode="json"))
        return Page(evaluated(open_run(tmp_path / name), Figures())).text

    text = scores("doubt", doubtful)
    head = "model mean@1 accuracy, gradable mean tokens tokens if right cut off undecided"
    assert text.count(head) == 2
    assert text.count("12 items. No rule can grade 2 of the items") == 2
    assert re.search(r"\w{16} 50\.0% \[[^]]*\] 40\.0% 25\.0 25\.0 0\.0% 8\.3%", text)
    clean = scores("clean")
    assert clean.count("model mean@1 mean tokens tokens if right cut off") == 4
    assert "12 items." in clean and "gradable" not in clean and "undecided" not in clean


def test_every_figure_has_its_specification(report: str) -> None:
    seen = Page(report)
    drawn = [a["data-spec"] for tag, a in seen.tags if tag == "div" and "data-spec" in a]
    specs, tables = _data(seen.scripts[1])
    assert sorted(specs) == sorted(str(name) for name in drawn)
    assert len(specs) == 8 + 2 * 2
    assert re.findall(r"Figure (\d)", seen.text) == [str(n) for n in range(1, 10)]
    used = [name for spec in specs.values() for name in spec["datasets"]]
    assert set(used) == set(tables)
    # The charts of genes share their rows.
    assert len({*specs["gene-tokens-weight.slow"]["datasets"]}) == 1
    assert used.count(specs["gene-tokens-weight.slow"]["datasets"][0]) == 4
    for columns in tables.values():
        assert len({len(column) for column in columns.values()}) == 1


def test_the_charts_are_valid_vega_lite(run: Run) -> None:
    figures = Report(run).figures
    assert [figure.name for figure in figures if not figure.small] == [
        "front", "search", "transfer", "items", "lengths", "hypervolume", "genomes", "time",
    ]  # fmt: skip
    for figure in figures:
        alt.Chart.from_dict(figure.spec)
        alt.Chart.from_dict(picture(figure))


def test_the_points_of_the_front_plot_play_their_parts(run: Run) -> None:
    parts = {(row["kind"], row["candidate"]) for row in front_points(run, "search")}
    assert ("front", IDS["good"]) in parts
    assert ("searched candidate", IDS["beaten"]) in parts
    assert ("parent", IDS["slow"]) in parts
    sweep = [r["candidate"] for r in front_points(run, "report") if r["kind"].endswith("sweep")]
    assert sweep == [IDS["fast"], IDS["average"], IDS["slow"]]


@pytest.mark.parametrize("stage", ["begun", "parents", "search", "selection"])
def test_an_unfinished_run_has_a_report(tmp_path: Path, stage: str) -> None:
    small = SmallRun(tmp_path / "run")
    if stage == "parents":
        small.ask(0)
        small.evaluate("search", "slow")
    elif stage != "begun":
        small.search(generations=1)
    if stage == "selection":
        small.choose()
    path = write_report(open_run(tmp_path / "run"), tmp_path / "report.html")
    text = Page(path.read_text(encoding="utf-8")).text
    assert "This run is not finished" in text
    assert "not looked at yet" in text or stage == "selection"
    assert "NaN" not in text
    assert "None" not in text


def test_noise_twins_stand_beside_the_differences(tmp_path: Path) -> None:
    small = complete(tmp_path / "run")
    small.evaluate("noise", "slow", extra_tokens=2)
    small.evaluate("noise", "good", extra_tokens=1)
    text = Page(Report(open_run(tmp_path / "run")).html).text
    assert "2 models answered the 12 selection items once more in another order" in text
    assert re.search(
        r"0\.0% \[[\d., ]+\] of the verdicts changed \(95% interval over items\)", text
    )
    assert re.search(r"parent\.slow, again 83\.3% .* \+0\.0% \+2\.0 ", text)
    assert "the selection items once more, in another order, for noise twins" in text


def test_nodes_are_compared(tmp_path: Path) -> None:
    small = SmallRun(tmp_path / "run")
    small.search(generations=1)
    for number, path in enumerate(sorted((tmp_path / "run" / "receipts").rglob("*.json"))):
        usage = {"tokens_per_second": 11_234.5, "gpu_idle": 0.0625, "peak_gpu_gb": 31.25}
        prints = "0123456789" if number else HOSTILE
        told = {"host": f"n{number}", "usage": usage, "fingerprint": prints, "device": "H100 <i>"}
        write_json(path, read_json(path) | told)
    run = open_run(tmp_path / "run")
    seen = Page(write_report(run, tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "took 24.0 s of device time, 4.0 s each (6.2% of it idle)" in seen.text
    assert (
        "node device candidates tokens/s GPU idle GPU peak merge generate canary's answer n0 "
        "H100 <i> 1 11,234 6.2% 31.2 GB 1.00 s 3.00 s merge: <" in seen.text
    )
    assert "Node n0 answers the canary differently from the 5 other nodes" in seen.text
    assert "i" not in {tag for tag, attributes in seen.tags if not attributes}


def test_nodes_are_in_the_json_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = SmallRun(tmp_path / "run")
    small.search(generations=1)
    usage = {"tokens_per_second": 11_234.5, "gpu_idle": 0.0625, "batch_occupancy": 0.5}
    usage |= {"peak_gpu_gb": 31.25, "peak_host_gb": 9.5}
    for number, path in enumerate(sorted((tmp_path / "run" / "receipts").rglob("*.json"))):
        told = {"host": f"n{number % 3}", "usage": usage, "device": "H100"}
        told |= {"fingerprint": "abc" if number % 3 else "xyz"}
        write_json(path, read_json(path) | told)
    report_verb([tmp_path / "run"], as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["report"] == str(tmp_path / "run" / "report.html")
    assert found["nodes"][0] == {
        "node": "n0",
        "device": "H100",
        "fingerprint": "xyz",
        "odd": True,
        "candidates": 2,
        **usage,
        "seconds": {"merge": 1.0, "generate": 3.0},
    }
    assert [node["odd"] for node in found["nodes"]] == [True, False, False]
    (note,) = found["notes"]
    assert note.startswith("Node n0 answers the canary differently from the 2 other nodes")


@given(st.lists(st.tuples(st.sampled_from("xy"), st.sampled_from(["a", "b", ""])), max_size=9))
def test_odd_are_the_nodes_that_a_sentence_names(found: list[tuple[str, str]]) -> None:
    nodes = [
        Node(f"n{n}", device, 1, None, None, None, None, None, {}, (answer,) if answer else ())
        for n, (device, answer) in enumerate(found)
    ]
    named = set(re.findall(r"\bn\d\b", " ".join(differences(nodes))))
    assert {row["node"] for row in node_rows(nodes) if row["odd"]} == named
    assert {row["node"] for row in node_rows(nodes) if row["odd"] is None} == {
        node.host for node in nodes if not node.fingerprint
    }


def test_what_no_node_tells_has_no_column(report: str, run: Run) -> None:
    text = Page(report).text
    assert "node device candidates merge generate node1 cpu 17 1.00 s 3.00 s" in text
    assert "of it idle" not in text
    assert len(run.receipts()) == 17


def test_the_engine_is_the_protocols(tmp_path: Path) -> None:
    small = SmallRun(tmp_path / "run")
    info = read_json(small.paths.run_json)
    info["site"]["engine"] = "auto"
    info["science"]["protocol.engine"] = "vllm"
    write_json(small.paths.run_json, info)
    text = Page(settings(open_run(tmp_path / "run"))).text
    assert " engine vllm " in text and "auto" not in text


def test_pictures_need_no_browser(run: Run, tmp_path: Path) -> None:
    made = Report(run)
    paths = save_pictures(made.figures, tmp_path, "svg")
    assert [path.stem for path in paths] == [figure.name for figure in made.figures]
    texts = {path.stem: path.read_text(encoding="utf-8") for path in paths}
    for figure in made.figures:
        root = ElementTree.fromstring(texts[figure.name])
        words = "".join(root.itertext())
        assert figure.title in words and figure.note in words
        drawn = {key.kind for key in figure.keys if key.kind in words}
        assert drawn if figure.keys else not drawn
        assert texts[figure.name].count("<path") > 10
    for word in ("small: accuracy against answer length", "report split, 12 items", "slow", "knee"):
        assert word in texts["front"]
    (png,) = save_pictures(made.figures[:1], tmp_path, "png")
    assert png.read_bytes().startswith(b"\x89PNG")


def test_a_path_says_which_pictures(run: Run, tmp_path: Path, capsys: Capture) -> None:
    one, all_of_them = tmp_path / "x.svg", tmp_path / "charts"
    report_verb([run.folder], tmp_path / "r.html", one, all_of_them, as_json=True)
    written = json.loads(capsys.readouterr().out)["pictures"]
    assert written[0] == str(one) and "accuracy against answer length" in one.read_text("utf-8")
    assert {Path(path).parent for path in written[1:]} == {all_of_them}
    assert len(written) == 1 + len(Report(run).figures)
    with pytest.raises(UserError, match=r"'x\.png' is no name of a picture in SVG"):
        report_verb([run.folder], tmp_path / "r.html", tmp_path / "x.png")


def test_a_folder_gets_the_page_and_what_cannot_be_written_is_said(
    run: Run, tmp_path: Path, capsys: Capture
) -> None:
    report_verb([run.folder], tmp_path)
    assert capsys.readouterr().out == f"report: {tmp_path / 'report.html'}\n"
    file = tmp_path / "report.html"
    for out, svg, png in (
        (file / "x.html", None, None),
        (file, file / "pics", None),
        (file, None, file / "x.png"),
    ):
        with pytest.raises(UserError, match=r"cannot be written: (Not a dir|File exists)") as error:
            report_verb([run.folder], out, svg, png)
        assert file in Path(str(error.value.path)).parents


def test_a_run_without_charts_has_no_picture(tmp_path: Path) -> None:
    SmallRun(tmp_path / "run")
    with pytest.raises(UserError, match="no picture to write: the report has no chart") as error:
        report_verb([tmp_path / "run"], None, tmp_path / "charts")
    assert "once two models differ on an item" in error.value.hint


@given(st.text())
def test_any_text_survives_as_text(text: str) -> None:
    inner = Page(el("p", text, title=text))
    assert [tag for tag, _ in inner.tags] == ["p"]


@given(st.text(max_size=30))
def test_no_data_ends_the_script(text: str) -> None:
    spec = {"x": text, "datasets": {"d": [{"y": f"</script>{text}<!--"}]}}
    seen = Page(page("t", [], {"a": spec}))
    specs, tables = _data(seen.scripts[1])
    assert specs["a"] == {"x": text, "datasets": ["d"]}
    assert tables["d"] == {"y": [f"</script>{text}<!--"]}


def test_words_beside_neighbours_stand_apart() -> None:
    marks = [
        Mark(50.0, 0.5, "one", "a"),
        Mark(51.0, 0.5, "another", "a"),
        Mark(99.0, 0.5, "x", "a"),
    ]
    left, right, last = place(marks, (), (700, 400))
    assert left != right
    assert {left, right, last} <= set(PLACES)
