"""`l2s front`: what it prints, what it writes, and what it says of wrong options."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from .test_analysis_builder import IDS, complete


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return complete(tmp_path_factory.mktemp("front") / "run").paths.folder


def front(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "l2s_hpc.cli.main", "front", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def terminal(width: int, *words: str) -> str:
    """Return what a command prints to a terminal of so many columns, without colours."""
    command = [sys.executable, "-m", "l2s_hpc.cli.main", *words]
    there = {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": str(width)}
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | there
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=300, env=environment
    )
    return re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)


@pytest.mark.parametrize("width", [80, 120, 160])
@pytest.mark.parametrize("verb", ["front", "ntr", "compare"])
def test_a_narrow_terminal_cuts_no_figure_and_no_id(folder: Path, verb: str, width: int) -> None:
    words = ["slow", IDS["good"], "knee"] if verb == "compare" else []
    out = terminal(width, verb, str(folder), *words)
    assert "…" not in out
    frame = [line for line in out.splitlines() if line and line[0] in "┏┃┡│└"]
    assert frame and max(map(len, frame)) <= width
    told = re.search("left out for want of room: (.*); --json has all", out)
    assert (told is not None) == (width < {"front": 160, "ntr": 120, "compare": 200}[verb])
    if told is not None:
        headers = re.split(r"\s*[┃]\s*", frame[1])
        assert not {*told[1].split(", ")} & {*headers}
    assert "knee" in out and (verb == "front") == (IDS["short"] in out), "a pick has a name"


@pytest.mark.parametrize("width", [80, 120, 160])
@pytest.mark.parametrize("verb", ["front", "ntr", "compare"])
def test_no_figure_stands_without_its_interval(folder: Path, verb: str, width: int) -> None:
    words = ["slow", IDS["good"], "knee"] if verb == "compare" else []
    lines = terminal(width, verb, str(folder), *words).partition("└")[0].splitlines()
    heads, *rows = [re.split(r"\s*[┃│]\s*", line) for line in lines if line[:1] in ("┃", "│")]
    places = {name: place for place, name in enumerate(heads)}
    shown = {"accuracy", "ntr", "ptr", "difference", "NTR", "tokens"} & places.keys()
    assert shown >= {"front": {"accuracy", "tokens"}, "ntr": {"ntr"}}.get(verb, {"difference"})
    for name in shown:
        cells = "\n".join(row[places[name]] for row in rows)
        figures = re.findall(r"(?m)^[-+]?\d+\.\d+", cells)
        assert figures and len(figures) == cells.count("["), (name, cells)


def test_a_measure_that_was_asked_for_stays(folder: Path) -> None:
    assert "ptr" in terminal(80, "front", str(folder), "--on", "ptr,ntr").splitlines()[2]


def test_the_table_says_what_its_intervals_mean_and_who_chose(folder: Path) -> None:
    done = front(folder)
    assert done.returncode == 0, done.stderr
    words = " ".join(done.stdout.split())
    assert "most_accurate" in words and "0.8333 [" in words and "71.0 [" in words
    assert "hold for all 2 rows and their measures at once" in words
    assert "resampling the 12 items of 'report' within benchmarks" in words
    assert "Other items chose the front; the report split was looked at once." in words
    assert "truncation" in words and "undecided" not in words, "all are decided"
    assert "reference" in words and "29.7%" in words and "parent.slow" in words
    assert "Optimistic: the same items chose" in front(folder, "--split", "selection").stdout


def test_json_csv_and_parquet_hold_the_same_rows(folder: Path, tmp_path: Path) -> None:
    csv, parquet = tmp_path / "front.csv", tmp_path / "front.parquet"
    words = ["--split", "search", "--on", "accuracy.beta,ptr", "--on", "ntr", "--json"]
    done = front(folder, *words, "--csv", str(csv), "--parquet", str(parquet))
    rows = json.loads(done.stdout)
    assert {row["candidate"] for row in rows} == {IDS[name] for name in ("short", "good", "beaten")}
    assert {"genome", "accuracy", "tokens", "accuracy.beta_low", "ntr_high"} <= rows[0].keys()
    assert pl.read_parquet(parquet).to_dicts() == rows
    assert pl.read_csv(csv)["accuracy_high"].to_list() == [row["accuracy_high"] for row in rows]


def test_the_shortest_within_some_points_and_the_best_within_a_budget(folder: Path) -> None:
    done = front(folder, "--shortest-within", "1")
    assert "accuracy >= parent.slow - 0.01" in done.stdout and IDS["good"] in done.stdout
    assert "only on the estimate" in done.stdout and "the items of 'selection'" in done.stdout
    (row,) = json.loads(front(folder, "--at-most", "60", "--of", "fast", "--json").stdout)
    assert (row["candidate"], row["of_label"]) == (IDS["short"], "parent.fast")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split", "serach"], "no evaluation 'serach'\n  Hint: did you mean 'search'?"),
        (["--on", "report"], "--on names measures, and 'report' is an evaluation\n  Hint: --split"),
        (["--on", "tokns"], "unknown measure 'tokns'\n  Hint: did you mean 'tokens'?"),
        (["--of", "fast"], "--of goes with --shortest-within or --at-most"),
        (["--at-most", "9", "--on", "ntr"], "give one of --on, --shortest-within and --at-most"),
        (["--at-most", "nan"], "a budget is a number of tokens from 0, not nan"),
        (["--shortest-within", "200"], "--shortest-within takes points from 0 to 100, not 200"),
        (["--at-most", "3"], "no candidate spends at most 3 tokens on 'selection'"),
    ],
)
def test_what_is_wrong_is_said(folder: Path, words: list[str], message: str) -> None:
    done = front(folder, *words)
    assert done.returncode == 2 and message in done.stderr and not done.stdout
