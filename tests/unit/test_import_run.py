"""`l2s import`: foreign results become a run, and what is unusable is named."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l2s_hpc import open_run
from l2s_hpc.analysis.report import write_report
from l2s_hpc.controller.import_run import Import, import_run
from l2s_hpc.controller.verify import verify
from l2s_hpc.errors import DamageError, IncompleteError, L2SError, UserError
from l2s_hpc.evaluation import qwen
from l2s_hpc.evaluation.imports import items_of_files
from l2s_hpc.store.layout import RunPaths, file_name
from l2s_hpc.store.run import read_run
from tests.command import l2s
from tests.foreign import STEM, found_upstream, pt, row, write_outputs, write_scores

SLOW, FAST, MERGED = [1, 1, 0, 1, 0], [0, 1, 0, 0, 1], [1, 0, 1, 1, 0]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "published"
    write_scores(folder, "R1/1.5B", aime24=SLOW, gsm8k=SLOW[:3])
    write_scores(folder, "MATH/1.5B", aime24=FAST, gsm8k=FAST[:3])
    write_scores(folder, "TA/1.5B/01", aime24=MERGED, gsm8k=MERGED[:3])
    return folder


PARENTS = {"slow": "R1/1.5B", "fast": "MATH/1.5B"}


def pooled(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["candidate"]: row for row in rows if row["benchmark"] == "all"}


def faults(made: Import) -> dict[str, str]:
    return {fault.file: fault.message for fault in made.aligned.faults}


def test_scores_become_a_run_that_reads_like_any_other(source: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, out, _ = l2s(
        "import", source, "--run", run, "--parents", "slow=R1/1.5B,fast=MATH/1.5B", "--json"
    )
    assert code == 0
    assert json.loads(out)["candidates"] == ["MATH/1.5B", "R1/1.5B", "TA/1.5B/01"]
    code, out, _ = l2s("ntr", run, "--json")
    assert code == 0
    found = pooled(json.loads(out))["TA/1.5B/01"]
    # Some parent solves 4 of 5 and 2 of 3; the merge loses items 1, 4 and 1, and wins 2 and 2.
    assert found["n"] == 8
    assert found["accuracy"] == pytest.approx(5 / 8)
    assert found["ntr"] == pytest.approx(3 / 6)
    assert found["ptr"] == 1.0
    assert verify(run) == (3, [])
    assert [r["candidate"] for r in open_run(run).front()] == ["TA/1.5B/01"]
    assert "TA/1.5B/01" in write_report(open_run(run), run / "report.html").read_text("utf-8")
    assert l2s("status", run)[0] == 2


def test_what_the_files_do_not_tell_is_null(source: Path, tmp_path: Path) -> None:
    import_run(source, tmp_path / "run", PARENTS)
    opened = open_run(tmp_path / "run")
    rows = opened.scores().collect()
    for column in ("n_output_tokens", "n_charged_tokens", "finish_reason", "truncated", "gold"):
        assert rows[column].null_count() == rows.height
    assert set(rows["grader"]) == {"qwen2.5-math"}
    assert rows["item"][0] == "aime24-00000"
    tensor = opened.tensor("aime24")
    assert tensor.values[tensor.candidates.index("TA/1.5B/01")].tolist() == MERGED
    assert np.isnan(tensor.tokens).all()
    row = pooled(opened.table())["TA/1.5B/01"]
    assert row["tokens"] is None
    assert row["truncation"] is None
    assert row["accuracy_low"] is not None


def test_a_front_without_tokens_says_that_it_is_by_accuracy_alone(
    source: Path, tmp_path: Path
) -> None:
    write_scores(source, "TA/1.5B/02", aime24=SLOW, gsm8k=[0, 0, 0])
    import_run(source, tmp_path / "run", PARENTS)
    code, out, err = l2s("front", tmp_path / "run", "--json")
    (only,) = json.loads(out)
    assert code == 0 and only["candidate"] == "TA/1.5B/01"
    assert only["tokens"] is None and only["accuracy"] == 5 / 8
    assert "tokens are not known: this front is by accuracy alone" in err
    assert l2s("front", tmp_path / "run")[0] == 0


def test_without_parents_it_is_said_why_no_transfer_rate_is_known(
    source: Path, tmp_path: Path
) -> None:
    import_run(source, tmp_path / "run")
    code, out, err = l2s("ntr", tmp_path / "run", "--json")
    assert code == 0 and {row["ntr"] for row in json.loads(out)} == {None}
    assert "NTR and PTR are unknown: the run names no parents" in err
    assert "`l2s ntr RUN --parents CANDIDATE,CANDIDATE`" in err
    _, out, err = l2s("ntr", tmp_path / "run", "--parents", "R1/1.5B,MATH/1.5B", "--json")
    assert "unknown" not in err
    assert pooled(json.loads(out))["TA/1.5B/01"]["ntr"] is not None


def test_a_torn_file_is_named_and_its_model_compared_only_without_that_benchmark(
    source: Path, tmp_path: Path
) -> None:
    write_scores(source, "TA/1.5B/02", aime24=MERGED, gsm8k=b"")
    run = tmp_path / "run"
    code, out, _ = l2s("import", source, "--run", run, "--parents", "slow=R1/1.5B,fast=MATH/1.5B")
    assert code == 3
    assert "TA/1.5B/02/scores/gsm8k_scores.pt" in out
    assert "0 bytes" in out
    code, out, err = l2s("ntr", run, "--json")
    assert code == 0
    assert "TA/1.5B/02 lacks gsm8k" in err
    assert set(pooled(json.loads(out))) == {"MATH/1.5B", "R1/1.5B", "TA/1.5B/01"}
    code, out, err = l2s("ntr", run, "--json", "--without", "gsm8k")
    assert err == ""
    found = pooled(json.loads(out))
    assert found["TA/1.5B/02"] == found["TA/1.5B/01"] | {"candidate": "TA/1.5B/02"}
    assert found["R1/1.5B"]["n"] == 5
    assert verify(run) == (4, [])
    report = tmp_path / "report.html"
    with pytest.warns(UserWarning, match="TA/1.5B/02 lacks gsm8k"):
        write_report(open_run(run), report)
    assert "TA/1.5B/02 lacks gsm8k" in report.read_text("utf-8")


@pytest.fixture
def halves(tmp_path: Path) -> Path:
    """A run in which each candidate lacks a benchmark: c has gsm8k alone, others aime24."""
    folder = tmp_path / "published"
    write_scores(folder, "a", aime24=SLOW)
    write_scores(folder, "b", aime24=FAST)
    write_scores(folder, "c", gsm8k=MERGED)
    write_scores(folder, "d", aime24=MERGED)
    import_run(folder, tmp_path / "run", {"slow": "a", "fast": "b"})
    return tmp_path / "run"


@pytest.mark.parametrize(
    "words", [("ntr",), ("front",), ("compare", "a", "b"), ("front", "--on", "ntr"), ("report",)]
)
@pytest.mark.parametrize("form", [(), ("--json",)])
def test_where_each_candidate_lacks_a_benchmark_that_is_said(
    halves: Path, words: tuple[str, ...], form: tuple[str, ...]
) -> None:
    code, out, err = l2s(words[0], halves, *words[1:], *form)
    assert (code, out) == (2, "")
    assert "no candidate has all benchmarks" in err
    assert "gsm8k is lacking in a, b, d; aime24 is lacking in c" in err
    assert "Hint: --without gsm8k compares 3 of them" in err
    code, out, err = l2s(words[0], halves, *words[1:], *form, "--without", "gsm8k")
    assert code == 0 and "nothing yet" not in out and "lacking" not in err
    with pytest.raises(UserError, match="no candidate has all benchmarks"):
        open_run(halves).lengths()
    assert "gsm8k is lacking in a, b, d" in open_run(halves)._repr_html_()


def test_a_report_without_a_benchmark_says_so(halves: Path) -> None:
    assert l2s("report", halves, "--without", "gsm8k", "--json")[0] == 0
    text = (halves / "report.html").read_text("utf-8")
    assert "All figures are without gsm8k." in text
    assert "c lacks aime24" in text and "a, b, d lack" not in text
    assert "no candidate and no parent has a score table" not in text
    code, _, err = l2s("report", halves, halves, "--without", "gsm8k", "--out", halves / "x")
    assert code == 2 and "--without goes with the report of one run" in err


def test_a_parent_that_lacks_a_benchmark_is_told_from_one_without_a_table(
    source: Path, tmp_path: Path
) -> None:
    write_scores(source, "R2", aime24=SLOW)
    import_run(source, tmp_path / "run", {"slow": "R2", "fast": "MATH/1.5B"})
    _, _, err = l2s("ntr", tmp_path / "run")
    assert "unknown: parent.slow lacks gsm8k; --without gsm8k leaves it out for all, or say" in err
    assert "parent.fast" not in err
    code, _, err = l2s("front", tmp_path / "run", "--shortest-within", 1)
    assert code == 2 and "R2 cannot be compared in 'imported'" in err
    assert "--without" in err


def test_a_benchmark_that_is_left_out_must_be_there(source: Path, tmp_path: Path) -> None:
    import_run(source, tmp_path / "run")
    opened = open_run(tmp_path / "run")
    with pytest.raises(UserError, match="no benchmark 'gsm8' here"):
        opened.ntr(without=["gsm8"])
    with pytest.raises(UserError, match="no benchmark is left"):
        opened.ntr(without=["gsm8k", "aime24"])


def test_missing_items_that_no_import_knows_of_stay_an_error(source: Path, tmp_path: Path) -> None:
    write_scores(source, "TA/1.5B/02", aime24=MERGED)
    import_run(source, tmp_path / "run")
    path = RunPaths(tmp_path / "run").run_json
    info = json.loads(path.read_text("utf-8"))
    info["imported"]["lacks"] = {}
    path.write_text(json.dumps(info), "utf-8")
    with pytest.raises(L2SError, match="lacks 3 of 8 items"):
        open_run(tmp_path / "run").ntr()
    assert "3 items are missing" in verify(tmp_path / "run")[1][0].message


def test_a_parent_must_be_among_what_was_imported(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="parent 'slow': no model 'R1' was imported"):
        import_run(source, tmp_path / "run", {"slow": "R1"})
    assert not (tmp_path / "run").exists()
    code, _, err = l2s("import", source, "--run", tmp_path / "run", "--parents", "slow")
    assert code == 2
    assert "is not a new NAME=PATH" in err


def test_the_same_again_changes_nothing_and_another_import_is_refused(
    source: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    import_run(source, run, PARENTS)
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}
    import_run(source, run, PARENTS)
    assert before == {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}
    write_scores(source, "TA/1.5B/02", aime24=MERGED)
    with pytest.raises(UserError, match="another run, or an import of other files"):
        import_run(source, run, PARENTS)


def test_an_import_that_was_killed_is_ended_by_the_same_command(
    source: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    import_run(source, run, PARENTS)
    first = open_run(run).ntr()
    for entry in RunPaths(run).journal.rglob("*.json"):
        entry.unlink()
    next(RunPaths(run).folder.glob("scores/*/*/*.parquet")).unlink()
    import_run(source, run, PARENTS)
    assert open_run(run).ntr() == first
    assert verify(run) == (3, [])


def test_a_damaged_table_is_imported_again(source: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    import_run(source, run, PARENTS)
    first = open_run(run).ntr()
    path = RunPaths(run).scores("imported", 0, "TA/1.5B/01")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert l2s("verify", run, "--quarantine")[0] == 3
    assert len(open_run(run).tensor("aime24").candidates) == 2
    import_run(source, run, PARENTS)
    assert open_run(run).ntr() == first
    assert verify(run) == (3, [])


def test_a_folder_with_something_else_in_it_is_left_alone(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not empty and not a run directory"):
        import_run(source, source)
    with pytest.raises(UserError, match="nothing to import"):
        import_run(_empty(tmp_path), tmp_path / "x")
    with pytest.raises(UserError, match="no such folder"):
        import_run(tmp_path / "nowhere", tmp_path / "x")


def _empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def test_nothing_sound_at_all_is_said_and_makes_no_run(tmp_path: Path) -> None:
    write_scores(tmp_path / "published", "R1", aime24=b"")
    with pytest.raises(IncompleteError, match="none of the 1 files could be imported"):
        import_run(tmp_path / "published", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (MERGED[:4], "4 items, the benchmark has 5: misaligned"),
        ([*MERGED, 1], "6 items, the benchmark has 5: misaligned"),
        ([0, 1, 2, 0, 0], "it holds other values than 0 and 1"),
        (pt(MERGED)[:100], "not a whole zip archive"),
    ],
    ids=["short", "long", "other values", "torn"],
)
def test_scores_that_do_not_fit_are_named(
    source: Path, tmp_path: Path, values: Any, message: str
) -> None:
    write_scores(source, "TA/1.5B/02", aime24=values, gsm8k=MERGED[:3])
    made = import_run(source, tmp_path / "run", PARENTS)
    assert list(faults(made)) == ["TA/1.5B/02/scores/aime24_scores.pt"]
    assert message in faults(made)["TA/1.5B/02/scores/aime24_scores.pt"]
    assert read_run(tmp_path / "run").lacks == {"TA/1.5B/02": ("aime24",)}


ROWS = [row(0, "12", "12"), row(1, "7", "8"), row(2, "-1", "-1")]


def test_outputs_keep_upstreams_verdict_and_the_texts(tmp_path: Path) -> None:
    folder = tmp_path / "published"
    write_outputs(folder, "w/0.5", "aime24", ROWS)
    made = import_run(folder, tmp_path / "run")
    assert not made.aligned.faults
    paths = RunPaths(tmp_path / "run")
    assert paths.outputs("imported", 0, "w/0.5").exists()
    rows = open_run(tmp_path / "run").scores().collect()
    assert rows["correct"].to_list() == [True, False, True]
    assert rows["extracted"].to_list() == ["12", "7", "-1"]
    assert rows["gold"].to_list() == ["12", "8", "-1"]
    assert set(rows["seed"]) == {42}
    assert rows["n_output_tokens"].null_count() == 3
    described = json.loads(paths.evaluation("imported").read_text("utf-8"))
    assert described["protocol"]["prompt"] == "deepseek-math"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROWS[0], ROWS[2]], "idx 1 is missing: 2 rows up to idx 2"),
        ([*ROWS, ROWS[1]], "line 4: idx 1 is there twice"),
        ([*ROWS[:2], {"idx": 2}], "line 3 is no output of Qwen2.5-Math"),
        ([*ROWS[:2], row(2, "-1", "-1", score=[])], "line 3 is no output of Qwen2.5-Math"),
        ([*ROWS[:2], row(2, "-1", "-1", score=["yes"])], "line 3 is no output of Qwen2.5-Math"),
        (
            [*ROWS[:2], row(2, "-1", "-1", code=["a", "b"], pred=["1", "2"], score=[True, False])],
            "items have [1, 2] samples, all need as many",
        ),
        ([*ROWS[:2], row(2, "4", "4", "Another question?")], "item 2 asks another question"),
        (ROWS[:2], "2 items, the benchmark has 3: misaligned"),
    ],
)
def test_outputs_that_do_not_fit_are_named(
    tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    folder = tmp_path / "published"
    for model in ("a", "b"):
        write_outputs(folder, model, "aime24", ROWS)
    write_outputs(folder, "c", "aime24", rows, metrics=False)
    found = faults(import_run(folder, tmp_path / "run"))
    assert list(found) == [f"c/aime24/{STEM}.jsonl"]
    assert message in found[f"c/aime24/{STEM}.jsonl"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (json.dumps(ROWS[0]).encode() + b"\n" + json.dumps(ROWS[1]).encode()[:40], "line 2 is bro"),
        (b"\xff\xfe\n", "line 1 is broken"),
        (b"[" * 100_000 + b"\n", "line 1 is broken"),
        (b"7\n", "line 1 is no object"),
        (json.dumps(ROWS[0]).encode() + b"\n", "1 rows, " + STEM),
    ],
    ids=["empty", "torn", "bytes", "deep", "number", "shorter than its metrics say"],
)
def test_torn_outputs_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    folder = tmp_path / "published"
    write_outputs(folder, "a", "aime24", ROWS)
    write_outputs(folder, "b", "aime24", ROWS).write_bytes(content)
    found = faults(import_run(folder, tmp_path / "run"))
    assert message in found[f"b/aime24/{STEM}.jsonl"]


_LINES = b"".join(json.dumps(r).encode() + b"\n" for r in ROWS)


@settings(max_examples=200, deadline=None)
@given(
    changes=st.lists(
        st.tuples(st.integers(0, len(_LINES) - 1), st.binary(min_size=1, max_size=5)), max_size=6
    ),
    cut=st.integers(0, len(_LINES)),
)
def test_mutated_outputs_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, bytes]], cut: int
) -> None:
    content = bytearray(_LINES)
    for at, new in changes:
        content[at : at + len(new)] = new
    path = tmp_path_factory.mktemp("outputs") / "test.jsonl"
    path.write_bytes(content[:cut] if cut else content)
    try:
        found = qwen.read_outputs(path)
    except DamageError as error:
        assert error.path == path
        return
    texts = qwen.texts(path, found.sha256)
    assert [len(t) for t in texts] == [len(j) for j in found.judged]
    "".join(text for sample in texts for text in sample).encode()


def test_metrics_that_tell_of_other_verdicts_are_a_fault(tmp_path: Path) -> None:
    folder = tmp_path / "published"
    write_outputs(folder, "a", "aime24", ROWS)
    path = write_outputs(folder, "b", "aime24", ROWS)
    path.write_text("".join(json.dumps(r | {"score": [False]}) + "\n" for r in ROWS), "utf-8")
    message = faults(import_run(folder, tmp_path / "run"))[f"b/aime24/{STEM}.jsonl"]
    assert "are right in 0.0 %" in message
    assert "says 66.7 %" in message


def test_a_sweep_that_is_sorted_by_benchmark_is_one_sweep(tmp_path: Path) -> None:
    folder = tmp_path / "published"
    for weight, right in (("0.0", [1, 1, 0]), ("0.5", [1, 0, 1]), ("1.0", [0, 0, 1])):
        for benchmark in ("aime24", "gsm8k"):
            rows = [row(i, str(i) if r else "no", str(i)) for i, r in enumerate(right)]
            write_outputs(folder / benchmark, weight, benchmark, rows)
    run = tmp_path / "run"
    code, out, _ = l2s("import", folder, "--run", run, "--parents", "slow=0.0,fast=1.0", "--json")
    said = json.loads(out)
    assert (code, said["candidates"], said["lacks"]) == (0, ["0.0", "0.5", "1.0"], {})
    found = pooled(json.loads(l2s("ntr", run, "--json")[1]))["0.5"]
    assert (found["n"], found["ntr"]) == (6, pytest.approx(1 / 3))
    for words in (("front",), ("compare", "0.5", "slow"), ("diff", "0.5", "slow"), ("report",)):
        code, out, _ = l2s(words[0], run, *words[1:], "--json")
        assert code == 0 and json.loads(out), words
    assert len(json.loads(l2s("show", run, "0.5", 1, "--json")[1])["answers"]) == 3


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("aime24/0.5", "0.5"),
        ("sweep/aime24/0.5", "sweep/0.5"),
        ("aime24/TA/1.5B/02", "TA/1.5B/02"),
        ("TA/1.5B/02", "TA/1.5B/02"),
        ("TA/aime24", "TA/aime24"),
        ("aime24", "aime24"),
    ],
)
def test_a_folder_that_is_called_like_its_benchmark_names_no_model(
    tmp_path: Path, place: str, name: str
) -> None:
    write_outputs(tmp_path / "published", place, "aime24", ROWS)
    write_scores(tmp_path / "published", f"{place}-bare", aime24=[1, 0, 1])
    made = import_run(tmp_path / "published", tmp_path / "run")
    assert made.aligned.candidates == [name, f"{name}-bare"]


def test_a_folder_of_several_benchmarks_is_part_of_the_name(tmp_path: Path) -> None:
    write_outputs(tmp_path / "published", "aime24/0.5", "aime24", ROWS)
    write_outputs(tmp_path / "published", "aime24/0.5", "gsm8k", ROWS)
    made = import_run(tmp_path / "published", tmp_path / "run")
    assert made.aligned.candidates == ["aime24/0.5"]


def test_two_files_for_one_model_are_named_wherever_they_stand(tmp_path: Path) -> None:
    folder = tmp_path / "published"
    first = write_outputs(folder, "aime24/0.5", "aime24", ROWS)
    second = write_outputs(folder, "0.5", "aime24", ROWS)
    write_outputs(folder, "1.0", "aime24", ROWS)
    found = faults(import_run(folder, tmp_path / "run"))
    assert set(found) == {str(path.relative_to(folder)) for path in (first, second)}
    assert all("several files for one model and benchmark" in text for text in found.values())


def test_two_files_for_one_model_and_benchmark_are_both_named(tmp_path: Path) -> None:
    folder = tmp_path / "published"
    write_outputs(folder, "a", "aime24", ROWS)
    path = write_outputs(folder, "b", "aime24", ROWS)
    (path.parent / "test_cot_1000_seed1_t0_s0_e-1.jsonl").write_bytes(path.read_bytes())
    made = import_run(folder, tmp_path / "run")
    assert len(faults(made)) == 2
    assert all("several files for one model" in text for text in faults(made).values())
    assert made.aligned.candidates == ["a"]


def test_bare_scores_get_the_items_of_a_folder_of_benchmarks(tmp_path: Path) -> None:
    write_scores(tmp_path / "published", "a", math=SLOW)
    write_scores(tmp_path / "published", "b", math=FAST[:4])
    files = tmp_path / "benchmarks"
    files.mkdir()
    for name, count in (("math", 9), ("math500", 5)):
        lines = [json.dumps({"question": f"{name} {n}?", "answer": str(n)}) for n in range(count)]
        (files / f"{name}.jsonl").write_text("\n".join(lines), "utf-8")
    made = import_run(tmp_path / "published", tmp_path / "run", None, files)
    assert faults(made) == {"b/scores/math_scores.pt": "4 items, the benchmark has 5: misaligned"}
    rows = open_run(tmp_path / "run").scores().collect()
    assert rows["gold"].to_list() == ["0", "1", "2", "3", "4"]
    assert set(rows["benchmark"]) == {"math"}
    questions = [item.question for item in made.aligned.items["math"]]
    assert questions[0] == "math500 0?"


def test_outputs_and_bare_scores_of_one_benchmark_share_its_items(tmp_path: Path) -> None:
    folder = tmp_path / "published"
    write_outputs(folder, "a", "aime24", ROWS)
    for model in ("b", "c"):
        write_scores(folder, model, aime24=[1, 0, 1])
    import_run(folder, tmp_path / "run")
    tensor = open_run(tmp_path / "run").tensor("aime24")
    assert (tensor.values == tensor.values[0]).all()


def test_hostile_names_and_texts_are_data(tmp_path: Path) -> None:
    folder = tmp_path / "published"
    name = "$(touch x);[bold]<script>"
    half = row(0, "1", "1", code=["\ud800 \\boxed{1}"])
    write_outputs(folder, name, "aime24", [half], metrics=False)
    made = import_run(folder, tmp_path / "run")
    assert made.aligned.candidates == [name]
    [path] = (tmp_path / "run" / "scores").rglob("*.parquet")
    assert path.name == f"{file_name(name)}.parquet"
    assert not set(path.name) & set("$();[]<> /")
    text = write_report(open_run(tmp_path / "run"), tmp_path / "r.html").read_text("utf-8")
    assert "<script>[" not in text.replace("&lt;", "<").split("<body")[0]
    assert "[bold]<script>" not in text


@pytest.mark.parametrize("word", ["a/b", "..", ".x", "a b", "é" * 90, "x" * 300, "a%2Fb", "-x"])
def test_any_id_has_a_file_name_of_its_own(word: str) -> None:
    name = file_name(word)
    assert len(name) < 200
    assert not set(name) & set("/ $'\"`\\")
    assert not name.startswith(".")
    others = ["a/b", "a%2Fb", "a%252Fb", "x" * 301, "..", ".x"]
    assert name not in [file_name(other) for other in others if other != word]


PUBLISHED = {
    "01": (0.2258, 0.1187, 0.4868), "02": (0.1066, 0.1597, 0.5718),
    "03": (0.1053, 0.1650, 0.5748), "04": (0.1129, 0.1573, 0.5672),
    "05": (0.1050, 0.1613, 0.5734), "06": (0.1827, 0.1345, 0.5180),
    "07": (0.1801, 0.1345, 0.5194), "09": (0.2125, 0.1215, 0.4955),
    "10": (0.2188, 0.1227, 0.4925), "11": (0.2296, 0.1227, 0.4865),
    "12": (0.0993, 0.1556, 0.5741),
}  # fmt: skip


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    upstream = found_upstream()
    assert upstream is not None
    run = tmp_path_factory.mktemp("published") / "run"
    parents = "slow=DEEPSEEK-R1/1.5B,fast=QWEN25-MATH/1.5B"
    code, out, _ = l2s("import", upstream / "scores", "--run", run, "--parents", parents, "--json")
    return run, code, out


@pytest.mark.skipif(found_upstream() is None, reason="needs ../shared/upstream")
class TestPublished:
    """The recorded results of real models reproduce the published table."""

    def test_transfer_rates_agree_to_four_digits(self, imported: tuple[Path, int, str]) -> None:
        found = pooled(json.loads(l2s("ntr", imported[0], "--json")[1]))
        for number, figures in PUBLISHED.items():
            row = found[f"Mergenetic-TA-Multiobj/1.5B/{number}"]
            assert row["n"] == 5614
            shown = tuple(round(row[name], 4) for name in ("ntr", "ptr", "accuracy"))
            assert shown == figures
        assert round(found["DEEPSEEK-R1/1.5B"]["ntr"], 4) == 0.0771
        assert round(found["QWEN25-MATH/1.5B"]["ntr"], 4) == 0.4256
        assert len(found) == 13

    def test_the_torn_model_is_named_and_needs_without(
        self, imported: tuple[Path, int, str]
    ) -> None:
        run, code, out = imported
        torn = "Mergenetic-TA-Multiobj/1.5B/08"
        assert code == 3
        said = json.loads(out)
        assert [fault["file"] for fault in said["faults"]] == [
            f"{torn}/scores/college_math_scores.pt"
        ]
        assert len(said["candidates"]) == 14
        _, out, err = l2s("ntr", run, "--json")
        assert torn not in out
        assert f"{torn} lacks college_math" in err
        row = pooled(json.loads(l2s("ntr", run, "--without", "college_math", "--json")[1]))[torn]
        shown = tuple(round(row[name], 4) for name in ("ntr", "ptr", "accuracy"))
        assert shown == (0.1206, 0.2152, 0.6642)
        assert row["n"] == 2796

    def test_every_figure_has_its_interval_and_each_task_its_row(
        self, imported: tuple[Path, int, str]
    ) -> None:
        rows = json.loads(l2s("ntr", imported[0], "--json")[1])
        for one in rows:
            for name in ("ntr", "ptr"):
                assert 0 <= one[f"{name}_low"] <= one[name] <= one[f"{name}_high"] <= 1
        name = "Mergenetic-TA-Multiobj/1.5B/12"
        best = {one["benchmark"]: one for one in rows if one["candidate"] == name}
        for task, lost, solved in (("aime24", 2, 7), ("college_math", 109, 1263),
                                   ("gsm8k", 96, 1160), ("math", 33, 392)):  # fmt: skip
            assert best[task]["ntr"] == pytest.approx(lost / solved)
            assert best[task]["u"] * best[task]["n"] == pytest.approx(solved)
        assert round(best["minerva_math"]["ntr"], 3) == 0.243
        assert best["all"]["ntr_high"] - best["all"]["ntr_low"] < 0.025

    def test_candidates_are_compared_and_the_torn_one_only_without_its_benchmark(
        self, imported: tuple[Path, int, str]
    ) -> None:
        run = open_run(imported[0])
        best, torn = (f"Mergenetic-TA-Multiobj/1.5B/{n}" for n in ("12", "08"))
        pooled = next(r for r in run.compare("slow", best) if r["benchmark"] == "all")
        assert pooled["difference"] * 5614 == pytest.approx(pooled["only_b"] - pooled["only_a"])
        assert pooled["difference_low"] > 0
        assert pooled["p_holm"] < 1e-6
        assert pooled["tokens_difference"] is None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(UserError, match="without"):
                run.compare("slow", torn)
            rows = run.compare("slow", torn, without=["college_math"])
        assert rows[0]["n"] == 2796

    def test_every_score_is_that_of_the_benchmark_in_its_order(self, tmp_path: Path) -> None:
        upstream = found_upstream()
        assert upstream is not None
        benchmarks = upstream.parent / "benchmarks"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = import_run(upstream / "scores", tmp_path / "run", None, benchmarks)
        assert [fault.candidate for fault in made.aligned.faults] == [
            "Mergenetic-TA-Multiobj/1.5B/08"
        ]
        assert len({item.item for item in made.aligned.items["college_math"]}) == 2818

    def test_questions_have_the_ids_of_the_benchmark(self, tmp_path: Path) -> None:
        upstream = found_upstream()
        assert upstream is not None
        found = import_run(upstream / "sweep-1.5B" / "aime24", tmp_path / "run")
        known = items_of_files(upstream.parent / "benchmarks")["aime24"]
        assert not found.aligned.faults
        assert len(found.aligned.candidates) == 11
        assert found.aligned.items["aime24"] == known
