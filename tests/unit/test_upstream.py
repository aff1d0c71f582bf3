"""Recorded results of real models: what `l2s import` makes of them can be asked anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from l2s_hpc import open_run
from l2s_hpc.cli.main import app
from l2s_hpc.errors import L2SError
from tests.foreign import found_upstream

pytestmark = pytest.mark.slow

R1, MATH, MERGE = "DEEPSEEK-R1/1.5B", "QWEN25-MATH/1.5B", "Mergenetic-TA-Multiobj/1.5B/12"
ASKED = {
    "tensors": ("scores", R1, MATH, MERGE),
    "sweep": ("sweep-1.5B", "0.2", "1.0", "0.5"),
}
"""By name: the folder, the slow and the fast parent, a merge.

The sweep lacks math500 of its slow end 0.0 and of 0.1: the first model that has all stands for it.
"""


def l2s(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(done.exception, L2SError):  # as `main` does
        return done.exception.exit_code, str(done.exception)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both recordings, imported; the tensors lack one file, which is torn."""
    upstream = found_upstream()
    if upstream is None:
        pytest.skip("no recorded results beside this checkout")
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        for name, (folder, slow, fast, _) in ASKED.items():
            made[name] = tmp_path_factory.mktemp("upstream") / name
            parents = f"slow={slow},fast={fast}"
            code, out = l2s("import", upstream / folder, "--run", made[name], "--parents", parents)
            assert code == (3 if name == "tensors" else 0), out
    return made


@pytest.mark.parametrize("name", ASKED)
def test_every_verb_answers(name: str, runs: dict[str, Path]) -> None:
    run, (_, slow, fast, merge) = runs[name], ASKED[name]
    found: dict[str, Any] = {}
    for words in (
        ("front",), ("ntr",), ("compare", merge, "slow"), ("diff", merge, "slow"),
        ("show", merge, 1), ("report",), ("verify",),
    ):  # fmt: skip
        code, out = l2s(words[0], run, *words[1:], "--json")
        assert code == 0, (words, out)
        found[words[0]] = json.loads(out)
        assert l2s(words[0], run, *words[1:])[0] == 0
    assert found["verify"]["damage"] == []
    assert {row["candidate"] for row in found["ntr"]} >= {slow, fast, merge}
    assert all(row["candidate"] not in (slow, fast) for row in found["front"])
    assert {row["right"] for row in found["diff"]} == {"a", "b"}
    assert [a["candidate"] for a in found["show"]["answers"]] == [merge, slow, fast]
    assert (run / "report.html").stat().st_size < 3_000_000


@pytest.mark.filterwarnings("ignore:.*lacks? ")
@pytest.mark.parametrize("name", ASKED)
def test_every_question_has_an_answer_in_python(name: str, runs: dict[str, Path]) -> None:
    run, (_, slow, fast, merge) = open_run(runs[name]), ASKED[name]
    tensor = run.tensor("aime24")
    assert tensor.values.shape == (len(tensor.candidates), 30)
    assert tensor.values.dtype == np.uint8
    accuracy = tensor.values[tensor.candidates.index(slow)].mean()
    (row,) = [r for r in run.ntr() if (r["candidate"], r["benchmark"]) == (slow, "aime24")]
    assert row["accuracy"] == pytest.approx(accuracy)
    lost = run.diff(merge, fast, benchmark="aime24").filter(right="b").height
    here, there = (tensor.values[tensor.candidates.index(c)] for c in (merge, fast))
    assert lost == int((here < there).sum())
    assert run.compare(merge, slow)


def test_recorded_texts_are_shown_with_our_grader_beside_theirs(runs: dict[str, Path]) -> None:
    run = open_run(runs["sweep"])
    answer = run.show("0.5", "1").answers[0]
    assert answer.text and answer.text in run.outputs("0.5").collect()["text"].to_list()
    assert answer.scores["grader"] == "qwen2.5-math"
    (ours,) = answer.grades
    assert ours["grader"].startswith("ladder-")
    assert ours["reason"]


@pytest.mark.filterwarnings("ignore:.*lacks? ")
def test_the_recorded_sweep_is_one_sweep_over_both_benchmarks(runs: dict[str, Path]) -> None:
    run = open_run(runs["sweep"])
    pooled = {r["candidate"]: r for r in run.ntr() if r["benchmark"] == "all"}
    assert {row["n"] for row in pooled.values()} == {530} and len(pooled) == 9
    assert pooled["0.5"]["accuracy"] == pytest.approx(385 / 530)
    assert 0 < pooled["0.5"]["ntr_low"] < pooled["0.5"]["ntr"] < pooled["0.2"]["accuracy"]
    ends = run.ntr(parents=["0.0", "1.0"], without=["math500"])
    assert len({row["candidate"] for row in ends}) == 11
    assert {row["solved"] for row in ends} == {9}


def test_the_torn_file_is_named_wherever_its_model_is_compared(runs: dict[str, Path]) -> None:
    torn = MERGE.replace("12", "08")
    run = open_run(runs["tensors"])
    with pytest.warns(UserWarning, match=f"{torn} lacks college_math"):
        assert torn not in {row["candidate"] for row in run.ntr()}
    rows = open_run(runs["tensors"]).diff(torn, R1)  # of the benchmarks that both have
    assert "college_math" not in set(rows["benchmark"])
    assert rows.height > 100
