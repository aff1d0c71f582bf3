"""Benchmarks: gold answers, files that people really have, and the manifests of published ones."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2s_hpc.errors import UserError
from l2s_hpc.evaluation.benchmarks import Problem, load, question_hash, read, source, sources
from l2s_hpc.evaluation.golds import GOLD_RULES
from tests.benchmark_files import COUNTS, ROOT, SHARED, job, numbered, shared_files, splits, write


def mine(path: Path, rows: list[dict[str, Any]]) -> tuple[Problem, ...]:
    files = {"mine": write(path / "mine.jsonl", rows)}
    return load(source("mine", files), files).problems


def test_repeated_rows_are_numbered(tmp_path: Path) -> None:
    row, other = {"question": "q", "answer": "1"}, {"question": "q", "answer": "2"}
    items = [p.item for p in mine(tmp_path, [row, other, row, row, *numbered(30)])]
    repeated = sorted((i.gold, i.item) for i in items if i.question == "q")
    base, another = repeated[0][1], repeated[3][1]
    assert repeated == [("1", base), ("1", f"{base}-2"), ("1", f"{base}-3"), ("2", another)]
    assert len({i.question_hash for i in items if i.question == "q"}) == 1 and base != another


def test_golds_that_no_rule_can_judge_are_marked(tmp_path: Path) -> None:
    rows = [
        {"question": "q", "answer": "1"},
        {"question": "Q  (Yes or No)", "answer": "2"},
        {"question": "r", "answer": "a b"},
        {"question": "r", "answer": "ab"},
        {"question": "s", "answer": "because it is so", "prose": True},
    ]
    items = [p.item for p in mine(tmp_path, rows)]
    assert [i.ungradable for i in items] == ["conflict", "conflict", "", "", "prose"]
    assert [i.gradable for i in items] == [False, False, True, True, False]


@given(st.text(max_size=20))
def test_case_and_white_space_do_not_make_another_question(question: str) -> None:
    spaced = "  " + "\n ".join(question.split(" ")) + "\t"
    assert question_hash(spaced) == question_hash(question)
    assert question_hash(question.casefold()) == question_hash(question)
    assert question_hash(f"{question} (Yes or No)") == question_hash(question)
    assert question_hash(f"x{question}") != question_hash(question)


def test_an_unknown_benchmark_names_the_nearest() -> None:
    with pytest.raises(UserError) as error:
        source("gms8k")
    assert str(error.value).startswith(
        "unknown benchmark 'gms8k'\n  Hint: did you mean 'gsm8k'? (a file of your own gets a name"
    )
    with pytest.raises(UserError, match="unknown benchmark 'math5'"):
        splits(job("math5"), {})


def test_a_file_of_ones_own_is_a_benchmark(tmp_path: Path) -> None:
    row = {"problem": " p ", "answer": "$3$", "subject": "logic"}
    (found,) = mine(tmp_path, [row])
    assert (found.item.benchmark, found.item.question, found.item.gold) == ("mine", "p", "3")
    assert found.item.level == "logic"
    with pytest.raises(UserError, match="did you mean 'mine'"):
        source("mine1", {"mine": "somewhere"})


@pytest.mark.parametrize("name", ["a b", "a.b", "a/b", "macro", "all"])
def test_a_name_must_fit_into_the_name_of_a_measure(name: str) -> None:
    with pytest.raises(UserError, match=f"'{name}' cannot be the name of a benchmark"):
        source(name, {name: "somewhere"})


def test_every_benchmark_has_a_licence_and_a_gold_rule() -> None:
    for name, entry in sources().items():
        assert entry.name == name and entry.licence and entry.gold in GOLD_RULES
        assert bool(entry.path) != bool(entry.dataset)
        assert entry.revision == "", "only `l2s fetch` has seen one"


@pytest.mark.parametrize(
    ("rule", "answer", "gold"),
    [
        ("plain", "$\\frac{1}{2}$", "\\frac{1}{2}"),
        ("plain", " 12 ", "12"),
        ("plain", 12, "12"),
        ("plain", "$69$,$84$", "$69$,$84$"),
        ("plain", "$4 \\frac{4}{9}$ days", "$4 \\frac{4}{9}$ days"),
        ("plain", "\\$ 3040", "\\$ 3040"),
        ("plain", "$", "$"),
        ("hashes", "She has 2+2=4.\n#### 4", "4"),
        ("hashes", "a #### 3 #### 1,000 ", "1,000"),
        ("hashes", "18", "18"),
        ("boxed", "So \\boxed{1} and thus \\boxed{\\frac{\\sqrt{3}}{2}}.", "\\frac{\\sqrt{3}}{2}"),
        ("boxed", "\\boxed{2} and \\boxed{3}", "3"),
        ("boxed", "\\boxed{\\text{(A)}}", "\\text{(A)}"),
        ("boxed", "a set \\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("boxed", "\\boxed 7$ as \\fbox{} says", "7"),
        ("boxed", "the boxed part", "the boxed part"),
        ("boxed", "17", "17"),
        ("first", ["$2$", "$3$"], "2"),
        ("first", "$2$", "2"),
        ("integer", "025", "25"),
        ("integer", "000", "0"),
        ("integer", 7, "7"),
    ],
)
def test_gold_rules(rule: str, answer: Any, gold: str) -> None:
    assert GOLD_RULES[rule](answer) == gold


def test_local_files_may_have_plain_names_or_the_hubs(tmp_path: Path) -> None:
    hub: dict[str, Any] = {"problem": "p\n", "solution": "Thus \\boxed{3}.", "level": "Level 5"}
    plain: dict[str, Any] = {"question": "p", "answer": "3", "level": 5}
    both: dict[str, Any] = {**hub, "answer": "another"}
    for number, (row, level) in enumerate(((hub, "Level 5"), (plain, "5"), (both, "Level 5"))):
        files = {"math": write(tmp_path / f"{number}.jsonl", [row])}
        (found,) = load(source("math"), files, other_snapshot=True).problems
        item = found.item
        assert (item.question, item.gold, item.level, found.split) == ("p", "3", level, None)


def test_the_kind_of_answer_is_appended_as_upstream_does() -> None:
    """Qwen2.5-Math asks `… (Yes or No)`: rows of the hub give the items of its files."""
    entry = source("college_math")
    for gold, kind in (("Yes", "Yes or No"), ("no", "Yes or No"), ("False", "True or False")):
        (bare,) = read(entry, [{"problem": "Is it?", "answer": gold}], "")
        (done,) = read(entry, [{"question": f"Is it? ({kind})", "answer": gold}], "")
        assert bare.item == done.item and bare.item.question == f"Is it? ({kind})"
    (own,) = read(source("mine", {"mine": ""}), [{"question": "Is it?", "answer": "yes"}], "")
    assert own.item.question == "Is it?"


def test_parquet_and_json_lines_say_the_same(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"question": "p é", "final_answer": ["$1$", "2"], "subject": "Algebra"},
        {"question": "q", "final_answer": ["7"], "subject": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    entry = source("olympiadbench")
    of_parquet = load(entry, {entry.name: str(tmp_path / "a.parquet")}, True)
    of_lines = load(entry, {entry.name: write(tmp_path / "a.jsonl", rows)}, True)
    assert of_parquet.problems == of_lines.problems
    assert of_parquet.origin.rows_sha256 == of_lines.origin.rows_sha256
    assert [(p.item.gold, p.item.level) for p in of_parquet.problems] == [
        ("1", "Algebra"),
        ("7", None),
    ]


def test_lines_end_at_newlines_alone(tmp_path: Path) -> None:
    rows = [{"question": f"a{mark}b", "answer": "1"} for mark in "\u2028\u2029\x85\x0b\x0c\x1c"]
    files = {"mine": write(tmp_path / "a.jsonl", rows)}
    path = Path(files["mine"])
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n\r\n"))
    found = [p.item.question for p in load(source("mine", files), files).problems]
    assert found == [row["question"] for row in rows]


def test_a_home_folder_may_be_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.jsonl", numbered(3))
    assert len(load(source("mine", {"mine": ""}), {"mine": "~/a.jsonl"}).problems) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"question": "q"', "not JSON Lines or Parquet"),
        ("a.jsonl", b'{"question": "\xff", "answer": "1"}', "not JSON Lines or Parquet"),
        ("a.jsonl", b"[1]\n", "a row is not an object with named fields"),
        ("a.jsonl", b"", "benchmark 'gsm8k' has no problems"),
        ("a.jsonl", b'{"answer": "1"}', "a row has no 'question' or 'answer'"),
        ("a.jsonl", b'{"question": "q", "answer": ""}', "a row has no 'question' or 'answer'"),
        ("a.jsonl", b'{"question": " ", "answer": "1"}', "a row has no 'question' or 'answer'"),
        ("a.jsonl", b'{"question": 3, "answer": "1"}', "a row has no 'question' or 'answer'"),
        ("a.parquet", b"PAR1 not", "not JSON Lines or Parquet"),
        ("a.jsonl", None, "file not found"),
    ],
)
def test_a_file_that_is_no_benchmark_is_said_with_its_place(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        load(source("gsm8k"), {"gsm8k": str(path)})
    assert str(path) in str(error.value)


def test_other_problems_than_the_published_ones_are_refused(tmp_path: Path) -> None:
    files = {"gsm8k": write(tmp_path / "a.jsonl", numbered(3))}
    with pytest.raises(UserError) as error:
        splits(job("gsm8k"), files)
    assert str(error.value) == (
        "benchmark 'gsm8k' has other problems than the published ones: 1319 of 1319 are missing, 3 "
        f"are unknown (the first: 'What is 0?')\n  in {files['gsm8k']}\n  Hint: if another "
        "snapshot is meant, write other_snapshots = ['gsm8k'] in the job; problems of your own get "
        "a name of their own in the site's [benchmarks]"
    )
    with pytest.raises(UserError, match="no benchmarks of this job: math"):
        job("gsm8k", other_snapshots=["math"])
    rows = {"gsm8k": write(tmp_path / "b.jsonl", numbered(90))}
    divided = splits(job("gsm8k", other_snapshots=["gsm8k"]), rows)
    assert sum(map(len, divided.values())) == 90


# The manifests


def test_manifests_hold_what_they_say_and_no_text() -> None:
    size = 0
    for name, count in COUNTS.items():
        entry = source(name)
        assert entry.count == len(entry.items) == count
        assert all(re.fullmatch(r"[0-9a-f]{16}(-\d)?", item) for item in entry.items)
        assert all(len(known.level or "") < 60 for known in entry.items.values())
        size += (ROOT / "data" / "benchmarks" / f"{name}.items").stat().st_size
    assert size < 400_000
    assert source("math500").items.keys() < source("math").items.keys(), "the same ids"
    marks = Counter(k.ungradable for k in source("college_math").items.values())
    assert marks == {"": 2379, "prose": 439}
    assert {k.level for k in source("math").items.values()} == set("12345")


def test_manifests_are_made_from_the_published_files(tmp_path: Path) -> None:
    """Whatever the order of their rows."""
    shared_files()
    script = ROOT / "data" / "make_manifests.py"
    spec = importlib.util.spec_from_file_location("make_manifests", script)
    assert spec is not None and spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    for name in COUNTS:
        rows = (SHARED / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        random.Random(1).shuffle(rows)
        (tmp_path / name).write_text("".join(rows), encoding="utf-8")
        made = "".join(maker.lines(source(name), tmp_path / name))
        assert made == (script.parent / "benchmarks" / f"{name}.items").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", COUNTS)
def test_published_benchmarks_are_known(name: str) -> None:
    problems = load(source(name), shared_files()).problems
    assert len(problems) == COUNTS[name]
    assert all(p.item.question.strip() and p.item.gold.strip() for p in problems)
    golds: dict[str, set[str]] = {}
    for problem in problems:
        golds.setdefault(problem.item.question_hash, set()).add(problem.item.gold)
    several = {question for question, found in golds.items() if len(found) > 1}
    assert len(several) == {"college_math": 21}.get(name, 0)
    doubtful = {p.item.question_hash for p in problems if not p.item.gradable}
    assert several <= doubtful


def test_one_changed_problem_is_noticed(tmp_path: Path) -> None:
    shared_files()
    rows = (SHARED / "aime24.jsonl").read_text(encoding="utf-8").replace('"204"', '"205"')
    (tmp_path / "a.jsonl").write_text(rows, encoding="utf-8")
    with pytest.raises(UserError, match="1 of 30 are missing, 1 are unknown"):
        load(source("aime24"), {"aime24": str(tmp_path / "a.jsonl")})
    few = (SHARED / "aime24.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[1:]
    (tmp_path / "a.jsonl").write_text("".join(few), encoding="utf-8")
    with pytest.raises(UserError, match="1 of 30 are missing, 0 are unknown"):
        load(source("aime24"), {"aime24": str(tmp_path / "a.jsonl")})


def test_rows_as_the_hub_has_them_give_the_published_items(tmp_path: Path) -> None:
    """Recorded outputs hold the solutions of MATH-500 and AIME 2024: the hub's columns."""
    outputs = SHARED.parent / "upstream" / "sweep-1.5B"
    for name, answer in (("math500", "solution"), ("aime24", "answer")):
        files = sorted((outputs / name).rglob("*.jsonl"))
        if not files:
            pytest.skip(f"no recorded outputs in {outputs}")
        lines = files[0].read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        hub = [
            {"problem": row["question"], answer: row[answer], "level": "Level 9"} for row in rows
        ]
        found = {name: write(tmp_path / f"{name}.jsonl", hub)}
        local, ours = load(source(name), shared_files()), load(source(name), found)
        assert [p.item for p in ours.problems] == [p.item for p in local.problems]


def test_a_copy_of_a_published_file_gives_the_same_items(tmp_path: Path) -> None:
    published = shared_files()
    copy = {"aime24": str(shutil.copy(published["aime24"], tmp_path / "a.jsonl"))}
    assert splits(job("aime24"), copy) == splits(job("aime24"), published)


def test_it_is_known_where_rows_came_from(tmp_path: Path) -> None:
    files = {"mine": write(tmp_path / "a.jsonl", numbered(3))}
    (tmp_path / "b.jsonl").write_text((tmp_path / "a.jsonl").read_text("utf-8"), encoding="utf-8")
    own = load(source("mine", files), files).origin
    assert (own.source, own.place, own.revision, own.items) == ("file", files["mine"], None, 3)
    copy = {"mine": str(tmp_path / "b.jsonl")}
    assert load(source("mine", copy), copy).origin.rows_sha256 == own.rows_sha256
    for other in (numbered(3)[::-1], numbered(2), [*numbered(2), {"question": "?", "answer": "2"}]):
        copy["mine"] = write(tmp_path / "b.jsonl", other)
        assert load(source("mine", copy), copy).origin.rows_sha256 != own.rows_sha256
    shipped = load(source("toy_easy"), {}).origin
    assert (shipped.source, shipped.place) == ("package", source("toy_easy").path)
    assert shipped.revision is None
