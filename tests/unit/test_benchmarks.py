"""Benchmarks: disjoint splits, gold answers, and files that people really have."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l2s_hpc.config import SearchConfig, validate
from l2s_hpc.errors import UserError
from l2s_hpc.evaluation.benchmarks import (
    GOLD_RULES,
    SPLITS,
    load,
    question_hash,
    source,
    sources,
    splits,
)
from l2s_hpc.records import Item

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "benchmarks"
COUNTS = {
    "gsm8k": 1319,
    "aime24": 30,
    "math": 5000,
    "math500": 500,
    "minerva_math": 272,
    "olympiadbench": 675,
    "college_math": 2818,
}


def job(*benchmarks: str, **changes: Any) -> SearchConfig:
    """A job on these benchmarks; changes are its `seed`, or settings of splits by their names."""
    shares = {name: changes[name] for name in changes if name != "seed"}
    data: dict[str, Any] = {
        "name": "small",
        "seed": changes.get("seed", 0),
        "benchmarks": benchmarks,
        "parents": {"slow": "x", "fast": "y"},
        "merge": {"method": "linear"},
        "genes": [{"parameter": "weight", "low": 0, "high": 1}],
    }
    return validate(SearchConfig, data | ({"splits": shares} if shares else {}))


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return str(path)


def numbered(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"question": f"What is {n}?", "answer": str(n)} for n in range(start, start + count)]


def owners(divided: dict[str, tuple[Item, ...]]) -> dict[str, set[str]]:
    """The splits in which each question stands."""
    found: dict[str, set[str]] = {}
    for split, items in divided.items():
        for item in items:
            found.setdefault(item.question_hash, set()).add(split)
    return found


words = st.text(st.sampled_from("abAB \t"), min_size=1, max_size=3)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(words, st.integers(0, 3)), min_size=30, max_size=60),
    st.lists(st.tuples(words, st.integers(0, 3)), min_size=30, max_size=60),
    st.integers(0, 5),
)
def test_no_question_stands_in_two_splits(
    tmp_path_factory: pytest.TempPathFactory,
    one: list[tuple[str, int]],
    two: list[tuple[str, int]],
    seed: int,
) -> None:
    """Neither within a benchmark that repeats questions nor across two that share some."""
    folder = tmp_path_factory.getbasetemp()
    rows = [[{"question": q, "answer": str(a)} for q, a in pairs] for pairs in (one, two)]
    files = {name: write(folder / name, r) for name, r in zip(("math", "gsm8k"), rows, strict=True)}
    try:
        divided = splits(job("math", "gsm8k", seed=seed), files)
    except UserError as error:
        assert "is empty" in str(error)
        return
    assert all(len(found) == 1 for found in owners(divided).values())
    assert sum(len(items) for items in divided.values()) == len(one) + len(two)
    keys = [(i.benchmark, i.item) for items in divided.values() for i in items]
    assert len(set(keys)) == len(keys)


def test_splits_are_drawn_by_the_seed_and_not_by_the_order_of_rows(tmp_path: Path) -> None:
    rows = numbered(200)
    files = {"math": write(tmp_path / "a.jsonl", rows)}
    backwards = {"math": write(tmp_path / "b.jsonl", rows[::-1])}
    assert splits(job("math"), files) == splits(job("math"), backwards)
    assert splits(job("math"), files) != splits(job("math", seed=1), files)


def test_a_question_keeps_its_split_whatever_stands_beside_it(tmp_path: Path) -> None:
    few = {"math": write(tmp_path / "a.jsonl", numbered(100))}
    more = few | {"gsm8k": write(tmp_path / "b.jsonl", numbered(150))}
    before = owners(splits(job("math"), few))
    after = owners(splits(job("gsm8k", "math"), more))
    assert before.items() <= after.items() and len(after) == 150


def test_shares_and_most_items_are_kept(tmp_path: Path) -> None:
    files = {"math": write(tmp_path / "a.jsonl", numbered(1000) + numbered(1000))}
    halves = {"search": {"share": 0.5}, "report": {"share": 0.3}}
    config = job("math", **halves, selection={"share": 0.2, "max_items": 7})
    divided = splits(config, files)
    assert 900 < len(divided["search"]) < 1100
    assert len(divided["selection"]) == 14, "seven questions, two rows each"
    whole = splits(job("math", **halves, selection={"share": 0.2}), files)
    assert divided["selection"] == whole["selection"][:14]
    config = job("math", **{split: {"share": 0.1} for split in SPLITS})
    assert 450 < sum(map(len, splits(config, files).values())) < 750


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    files = {"math": write(tmp_path / "a.jsonl", numbered(20))}
    with pytest.raises(UserError) as error:
        splits(job("math", selection={"share": 0}), files)
    assert str(error.value) == (
        "the split 'selection' is empty\n  Hint: raise splits.selection.share in the job"
    )


def test_own_splits_count_and_foreign_ones_do_not(tmp_path: Path) -> None:
    rows = numbered(60)
    for number, row in enumerate(rows):
        row["split"] = SPLITS[number % 3]
    files = {"math": write(tmp_path / "a.jsonl", rows)}
    nothing = {split: {"share": 0} for split in SPLITS}
    own = splits(job("math", **nothing), files)
    assert {name: len(items) for name, items in own.items()} == dict.fromkeys(SPLITS, 20)
    for row in rows:
        assert owners(own)[question_hash(row["question"])] == {row["split"]}
    # The hub's own words (train, test) say nothing of our splits: all is drawn.
    foreign = {"math": write(tmp_path / "b.jsonl", [{**row, "split": "test"} for row in rows])}
    drawn = splits(job("math", report={"share": 0.5}), foreign)
    assert sum(len(items) for items in drawn.values()) == 60


def test_a_misspelt_split_is_refused(tmp_path: Path) -> None:
    rows = [{**row, "split": "search"} for row in numbered(9)]
    files = {"math": write(tmp_path / "a.jsonl", [*rows, {**rows[0], "split": "serach"}])}
    with pytest.raises(UserError, match="benchmark 'math': unknown split 'serach'") as error:
        splits(job("math"), files)
    assert "did you mean 'search'?" in str(error.value)


def test_own_splits_that_overlap_are_refused_with_both_places(tmp_path: Path) -> None:
    rows = numbered(30)
    for number, row in enumerate(rows):
        row["split"] = SPLITS[number % 3]
    copy = {"question": "what  IS 3?", "answer": "3", "split": "report"}
    files = {
        "math": write(tmp_path / "a.jsonl", [*rows, copy]),
        "gsm8k": write(tmp_path / "b.jsonl", rows),
        "aime24": write(tmp_path / "c.jsonl", [copy]),
    }
    with pytest.raises(UserError, match=r"math/report stands in math/search too: 'what  IS 3\?'"):
        splits(job("math"), files)
    with pytest.raises(UserError, match=r"aime24/report stands in gsm8k/search too") as error:
        splits(job("gsm8k", "aime24"), files)
    assert "Hint: mend the 'split' fields of the benchmark's file" in str(error.value)


def test_repeated_rows_are_numbered(tmp_path: Path) -> None:
    row, other = {"question": "q", "answer": "1"}, {"question": "q", "answer": "2"}
    files = {"math": write(tmp_path / "a.jsonl", [row, other, row, row, *numbered(30)])}
    items = [i for found in splits(job("math"), files).values() for i in found]
    repeated = sorted((i.gold, i.item) for i in items if i.question == "q")
    base, another = repeated[0][1], repeated[3][1]
    assert repeated == [("1", base), ("1", f"{base}-2"), ("1", f"{base}-3"), ("2", another)]
    assert len({i.question_hash for i in items if i.question == "q"}) == 1 and base != another


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
    assert str(error.value) == "unknown benchmark 'gms8k'\n  Hint: did you mean 'gsm8k'?"
    with pytest.raises(UserError, match="unknown benchmark 'math5'"):
        splits(job("math5"), {})


def test_every_benchmark_has_a_licence_and_a_gold_rule() -> None:
    for name, entry in sources().items():
        assert entry.name == name and entry.licence and entry.gold in GOLD_RULES
        assert bool(entry.path) != bool(entry.dataset)


@pytest.mark.parametrize(
    ("rule", "answer", "gold"),
    [
        ("plain", "$\\frac{1}{2}$", "\\frac{1}{2}"),
        ("plain", " 12 ", "12"),
        ("plain", 12, "12"),
        ("hashes", "She has 2+2=4.\n#### 4", "4"),
        ("hashes", "a #### 3 #### 1,000 ", "1,000"),
        ("hashes", "18", "18"),
        ("boxed", "So \\boxed{1} and thus \\boxed{\\frac{\\sqrt{3}}{2}}.", "\\frac{\\sqrt{3}}{2}"),
        ("boxed", "\\boxed{\\text{(A)}}", "\\text{(A)}"),
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
    hub: dict[str, Any] = {"problem": "p", "solution": "Thus \\boxed{3}.", "level": "Level 5"}
    plain: dict[str, Any] = {"question": "p", "answer": "3", "level": 5}
    for number, (row, level) in enumerate(((hub, "Level 5"), (plain, "5"))):
        (found,) = load(source("math"), {"math": write(tmp_path / f"{number}.jsonl", [row])})
        assert (found.question, found.gold, found.level, found.split) == ("p", "3", level, None)


def test_parquet_and_json_lines_say_the_same(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"question": "p é", "final_answer": ["$1$", "2"], "subfield": "Algebra"},
        {"question": "q", "final_answer": ["7"], "subfield": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    entry = source("olympiadbench")
    of_parquet = load(entry, {entry.name: str(tmp_path / "a.parquet")})
    assert of_parquet == load(entry, {entry.name: write(tmp_path / "a.jsonl", rows)})
    assert [(p.gold, p.level) for p in of_parquet] == [("1", "Algebra"), ("7", None)]


def test_lines_end_at_newlines_alone(tmp_path: Path) -> None:
    rows = [{"question": f"a{mark}b", "answer": "1"} for mark in "\u2028\u2029\x85\x0b\x0c\x1c"]
    path = tmp_path / "a.jsonl"
    write(path, rows)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n\r\n"))
    assert [p.question for p in load(source("gsm8k"), {"gsm8k": str(path)})] == [
        row["question"] for row in rows
    ]


def test_a_home_folder_may_be_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.jsonl", numbered(3))
    assert len(load(source("gsm8k"), {"gsm8k": "~/a.jsonl"})) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"question": "q"', "not JSON Lines or Parquet"),
        ("a.jsonl", b'{"question": "\xff", "answer": "1"}', "not JSON Lines or Parquet"),
        ("a.jsonl", b"[1]\n", "a row is not an object with named fields"),
        ("a.jsonl", b"", "benchmark 'gsm8k' has no problems"),
        ("a.jsonl", b'{"answer": "1"}', "a row has no 'question' or 'answer'"),
        ("a.jsonl", b'{"question": "q", "answer": ""}', "a row has no 'question' or 'answer'"),
        ("a.jsonl", b'{"question": 3, "answer": "1"}', "a row has no 'question' or 'answer'"),
        ("a.parquet", b"PAR1 not", "not JSON Lines or Parquet"),
        ("a.jsonl", None, "benchmark file not found"),
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


def test_the_toy_family_brings_its_splits() -> None:
    names = [name for name in sources() if name.startswith("toy_")]
    divided = splits(job(*names, **{split: {"share": 0} for split in SPLITS}), {})
    wanted: Counter[tuple[str, str]] = Counter()
    for name in names:
        for line in (ROOT / "data" / sources()[name].path).read_text(encoding="utf-8").split("\n"):
            wanted.update([(json.loads(line)["split"], name)] if line else [])
    found = Counter((s, item.benchmark) for s, items in divided.items() for item in items)
    assert found == wanted and len(found) == len(names) * len(SPLITS)


# The published benchmarks, where they are


@pytest.fixture
def published() -> dict[str, str]:
    files = {name: str(SHARED / f"{name}.jsonl") for name in COUNTS}
    missing = [name for name, file in files.items() if not Path(file).exists()]
    if missing:
        pytest.skip(f"no files of published benchmarks in {SHARED}: {', '.join(missing)}")
    return files


@pytest.mark.parametrize("name", COUNTS)
def test_published_benchmarks_load_with_their_counts(name: str, published: dict[str, str]) -> None:
    problems = load(source(name), published)
    assert len(problems) == COUNTS[name]
    assert all(problem.question.strip() and problem.gold.strip() for problem in problems)


def test_published_benchmarks_are_divided_without_a_leak(published: dict[str, str]) -> None:
    divided = splits(job(*COUNTS), published)
    assert sum(map(len, divided.values())) == sum(COUNTS.values())
    assert all(len(found) == 1 for found in owners(divided).values())
    items = [item for found in divided.values() for item in found]
    of = {name: {item.question_hash for item in items if item.benchmark == name} for name in COUNTS}
    assert of["math500"] < of["math"], "MATH-500 lies inside MATH, and so in the same splits"
    repeated = [i for i in items if i.benchmark == "college_math" and "-" in i.item]
    assert repeated, "college_math repeats whole rows"


def test_a_copy_of_a_published_file_gives_the_same_items(
    published: dict[str, str], tmp_path: Path
) -> None:
    copy = {"aime24": str(shutil.copy(published["aime24"], tmp_path / "a.jsonl"))}
    assert splits(job("aime24"), copy) == splits(job("aime24"), published)
