"""Splits: disjoint across benchmarks, fair to each level, and drawn by the seed alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l2s_hpc.errors import UserError
from l2s_hpc.evaluation.benchmarks import SPLITS, question_hash, sources
from l2s_hpc.records import Item
from tests.benchmark_files import COUNTS, ROOT, job, numbered, owners, shared_files, splits, write

words = st.text(st.sampled_from("abAB\t "), max_size=2).map("q{}".format)


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
    rows = [
        [{"question": q, "answer": str(a), "level": a} for q, a in pairs] for pairs in (one, two)
    ]
    files = {name: write(folder / name, r) for name, r in zip(("mine", "more"), rows, strict=True)}
    try:
        divided = splits(job("mine", "more", seed=seed), files)
    except UserError as error:
        assert "is empty" in str(error)
        return
    assert all(len(found) == 1 for found in owners(divided).values())
    assert sum(len(items) for items in divided.values()) == len(one) + len(two)
    keys = [(i.benchmark, i.item) for items in divided.values() for i in items]
    assert len(set(keys)) == len(keys)


def levelled(sizes: list[int], start: int = 0) -> list[dict[str, Any]]:
    """Rows of so many questions at each level."""
    rows = numbered(sum(sizes), start)
    levels = [level for level, size in enumerate(sizes) for _ in range(size)]
    return [{**row, "level": level} for row, level in zip(rows, levels, strict=True)]


def by_level(items: tuple[Item, ...], benchmark: str = "mine") -> Counter[str]:
    return Counter(str(item.level) for item in items if item.benchmark == benchmark)


shares_of_splits = st.tuples(*[st.integers(5, 33)] * 3).map(
    lambda percents: {n: {"share": p / 100} for n, p in zip(SPLITS, percents, strict=True)}
)
sizes_of_levels = st.lists(st.integers(1, 60), min_size=1, max_size=6).filter(
    lambda sizes: sum(sizes) > 60
)


@settings(max_examples=60)
@given(sizes_of_levels, shares_of_splits, st.integers(0, 3))
def test_a_split_gets_its_share_of_each_level_within_one(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    shares: dict[str, dict[str, float]],
    seed: int,
) -> None:
    """Of the whole benchmark too: levels are not all rounded the same way."""
    files = {"mine": write(tmp_path_factory.getbasetemp() / "levels.jsonl", levelled(sizes))}
    divided = splits(job("mine", seed=seed, **shares), files)
    for split, items in divided.items():
        share, found = shares[split]["share"], by_level(items)
        for level, size in enumerate(sizes):
            assert abs(found[str(level)] - share * size) < 1
        assert abs(len(items) - share * sum(sizes)) < 2


@settings(max_examples=60)
@given(sizes_of_levels, shares_of_splits, st.data())
def test_a_benchmark_inside_another_gets_its_shares_and_so_does_the_other(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    shares: dict[str, dict[str, float]],
    data: st.DataObject,
) -> None:
    rows = levelled(sizes)
    part = data.draw(st.lists(st.sampled_from(rows), min_size=40, unique_by=id))
    folder = tmp_path_factory.getbasetemp()
    files = {"mine": write(folder / "w.jsonl", rows), "part": write(folder / "p.jsonl", part)}
    divided = splits(job("mine", "part", **shares), files)
    assert all(len(found) == 1 for found in owners(divided).values())
    for split, items in divided.items():
        for name, found in (("mine", rows), ("part", part)):
            sizes_here = Counter(str(row["level"]) for row in found)
            for level, size in sizes_here.items():
                count = by_level(items, name)[level]
                # Where the part is nearly the whole, both cannot be rounded freely.
                assert abs(count - shares[split]["share"] * size) < (1 if name == "part" else 2)


@settings(max_examples=60)
@given(sizes_of_levels, st.integers(1, 40))
def test_the_first_items_of_a_split_are_a_fair_sample_of_it(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], most: int
) -> None:
    files = {"mine": write(tmp_path_factory.getbasetemp() / "fair.jsonl", levelled(sizes))}
    whole = splits(job("mine"), files)["report"]
    some = splits(job("mine", report={"share": 0.5, "max_items": most}), files)["report"]
    assert some == whole[:most]
    found, all_of = by_level(some), by_level(whole)
    for level, size in all_of.items():
        assert abs(found[level] - size * len(some) / len(whole)) <= 1


def test_splits_are_drawn_by_the_seed_and_not_by_the_order_of_rows(tmp_path: Path) -> None:
    rows = levelled([70, 80, 50])
    files = {"mine": write(tmp_path / "a.jsonl", rows)}
    backwards = {"mine": write(tmp_path / "b.jsonl", rows[::-1])}
    assert splits(job("mine"), files) == splits(job("mine"), backwards)
    assert owners(splits(job("mine"), files)) != owners(splits(job("mine", seed=1), files))


def test_splits_with_a_seed_of_their_own_are_the_same_for_every_seed(tmp_path: Path) -> None:
    files = {"mine": write(tmp_path / "a.jsonl", levelled([70, 80, 50]))}

    def drawn(seed: int, own: int | None) -> dict[str, tuple[Item, ...]]:
        config = job("mine", seed=seed, report={"share": 0.5, "max_items": 40})
        apart = config.splits.model_copy(update={"seed": own})
        return splits(config.model_copy(update={"splits": apart}), files)

    assert drawn(0, 3) == drawn(1, 3) == drawn(3, None)
    assert drawn(0, 3) != drawn(0, None) != drawn(1, None)


def test_a_question_keeps_its_split_when_a_larger_benchmark_comes(tmp_path: Path) -> None:
    few = {"mine": write(tmp_path / "a.jsonl", numbered(100))}
    more = few | {"more": write(tmp_path / "b.jsonl", numbered(150))}
    before = owners(splits(job("mine"), few))
    after = owners(splits(job("more", "mine"), more))
    assert before.items() <= after.items() and len(after) == 150


def test_copies_stand_together_and_count_as_one_question(tmp_path: Path) -> None:
    files = {"mine": write(tmp_path / "a.jsonl", numbered(1000) + numbered(1000))}
    halves = {"search": {"share": 0.5}, "report": {"share": 0.3}}
    divided = splits(job("mine", **halves, selection={"share": 0.2, "max_items": 7}), files)
    assert len(divided["search"]) == 1000 and len(divided["report"]) == 600
    assert len(divided["selection"]) == 14, "seven questions, two rows each"
    pairs = zip(divided["selection"][::2], divided["selection"][1::2], strict=True)
    assert all(two.item == f"{one.item}-2" for one, two in pairs)
    config = job("mine", **{split: {"share": 0.1} for split in SPLITS})
    assert {len(items) for items in splits(config, files).values()} == {200}


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    files = {"mine": write(tmp_path / "a.jsonl", numbered(20))}
    with pytest.raises(UserError) as error:
        splits(job("mine", selection={"share": 0}), files)
    assert str(error.value) == (
        "the split 'selection' is empty\n  Hint: raise splits.selection.share in the job"
    )


def test_own_splits_count_and_foreign_ones_do_not(tmp_path: Path) -> None:
    rows = numbered(60)
    for number, row in enumerate(rows):
        row["split"] = SPLITS[number % 3]
    files = {"mine": write(tmp_path / "a.jsonl", rows)}
    nothing = {split: {"share": 0} for split in SPLITS}
    own = splits(job("mine", **nothing), files)
    assert {name: len(items) for name, items in own.items()} == dict.fromkeys(SPLITS, 20)
    for row in rows:
        assert owners(own)[question_hash(row["question"])] == {row["split"]}
    # The hub's own words (train, test) say nothing of our splits: all is drawn.
    foreign = {"mine": write(tmp_path / "b.jsonl", [{**row, "split": "test"} for row in rows])}
    drawn = splits(job("mine", report={"share": 0.5}), foreign)
    assert sum(len(items) for items in drawn.values()) == 60


def test_what_brings_its_splits_decides_for_what_does_not(tmp_path: Path) -> None:
    rows = [{**row, "split": SPLITS[n % 3]} for n, row in enumerate(numbered(30))]
    files = {
        "own": write(tmp_path / "a.jsonl", rows),
        "mine": write(tmp_path / "b.jsonl", numbered(60)),
    }
    divided = splits(job("mine", "own"), files)
    assert all(len(found) == 1 for found in owners(divided).values())
    assert {name: len(items) for name, items in divided.items()} == {
        "search": 12 + 10,
        "selection": 18 + 10,
        "report": 30 + 10,
    }


def test_a_misspelt_split_is_refused(tmp_path: Path) -> None:
    rows = [{**row, "split": "search"} for row in numbered(9)]
    files = {"mine": write(tmp_path / "a.jsonl", [*rows, {**rows[0], "split": "serach"}])}
    with pytest.raises(UserError, match="benchmark 'mine': unknown split 'serach'") as error:
        splits(job("mine"), files)
    assert "did you mean 'search'?" in str(error.value)


def test_own_splits_that_overlap_are_refused_with_both_places(tmp_path: Path) -> None:
    rows = numbered(30)
    for number, row in enumerate(rows):
        row["split"] = SPLITS[number % 3]
    copy = {"question": "what  IS 3?", "answer": "3", "split": "report"}
    files = {
        "mine": write(tmp_path / "a.jsonl", [*rows, copy]),
        "more": write(tmp_path / "b.jsonl", rows),
        "last": write(tmp_path / "c.jsonl", [copy]),
    }
    with pytest.raises(UserError, match=r"mine/report stands in mine/search too: 'what  IS 3\?'"):
        splits(job("mine"), files)
    with pytest.raises(UserError, match=r"last/report stands in more/search too") as error:
        splits(job("more", "last"), files)
    assert "Hint: mend the 'split' fields of the benchmark's file" in str(error.value)


def test_the_toy_family_brings_its_splits() -> None:
    names = [name for name in sources() if name.startswith("toy_")]
    divided = splits(job(*names, **{split: {"share": 0} for split in SPLITS}), {})
    wanted: Counter[tuple[str, str]] = Counter()
    for name in names:
        for line in (ROOT / "data" / sources()[name].path).read_text(encoding="utf-8").split("\n"):
            wanted.update([(json.loads(line)["split"], name)] if line else [])
    found = Counter((s, item.benchmark) for s, items in divided.items() for item in items)
    assert found == wanted and len(found) == len(names) * len(SPLITS)


def test_published_benchmarks_are_divided_fairly_and_without_a_leak() -> None:
    divided = splits(job(*COUNTS), shared_files())
    assert sum(map(len, divided.values())) == sum(COUNTS.values())
    assert all(len(found) == 1 for found in owners(divided).values())
    items = [item for found in divided.values() for item in found]
    of = {name: {item.question_hash for item in items if item.benchmark == name} for name in COUNTS}
    assert of["math500"] < of["math"], "MATH-500 lies inside MATH, and so in the same splits"
    for name in ("math", "math500", "minerva_math", "olympiadbench"):
        whole = by_level(tuple(items), name)
        assert len(whole) > 3
        for split, share in zip(SPLITS, (0.2, 0.3, 0.5), strict=True):
            found = by_level(divided[split], name)
            assert all(abs(found[level] - share * whole[level]) < 1 for level in whole)
