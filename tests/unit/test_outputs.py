"""`l2s show`, `l2s diff`, `Run.outputs`: single answers, whatever a model wrote in them."""

from __future__ import annotations

import json
import re
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from l2s_hpc import open_run
from l2s_hpc.analysis.names import LEGIBLE, beginnings, resolve
from l2s_hpc.analysis.names import _hits as hits
from l2s_hpc.analysis.outputs import DIFFERENCE
from l2s_hpc.cli.main import app
from l2s_hpc.cli.outputs import visible
from l2s_hpc.controller.compact import compact
from l2s_hpc.controller.import_run import import_run
from l2s_hpc.controller.regrade import regrade
from l2s_hpc.controller.verify import verify
from l2s_hpc.errors import DamageError, L2SError, UserError
from l2s_hpc.records import Evaluation, Item, Protocol
from l2s_hpc.store.files import write_json
from l2s_hpc.store.layout import RunPaths
from tests.foreign import row, write_outputs, write_scores
from tests.unit.test_analysis_builder import IDS, ITEMS, complete

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m[red]not red[/red]\u202e<b>\x00 \\boxed{7}"
GOLDS = ["7", "11", "13", "17"]
SAID = {
    "R1": ["7", "11", "13", "0"],
    "MATH": ["0", "11", "0", "0"],
    "TA/01": ["7", "0", "13", "17"],
}
PARENTS = {"slow": "R1", "fast": "MATH"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three models, four items in each of two benchmarks; the merge's first text is hostile."""
    source, target = tmp_path / "theirs", tmp_path / "run"
    for model, answers in SAID.items():
        for benchmark in ("alpha", "beta"):
            rows = [
                row(n, answer, gold, f"What is {gold} in {benchmark}?")
                for n, (answer, gold) in enumerate(zip(answers, GOLDS, strict=True))
            ]
            if (model, benchmark) == ("TA/01", "alpha"):
                rows[0]["code"] = [HOSTILE]
            write_outputs(source, model, benchmark, rows)
    import_run(source, target, PARENTS)
    return target


def l2s(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(done.exception, L2SError):  # as `main` does
        return done.exception.exit_code, str(done.exception)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout


def shown(run: Path, *arguments: object) -> dict[str, Any]:
    code, out = l2s("show", run, *arguments, "--json")
    assert code == 0, out
    found: dict[str, Any] = json.loads(out)
    return found


def number_of(run: Path, gold: str, benchmark: str = "alpha") -> int:
    rows = open_run(run).diff("TA/01", "fast").to_dicts()
    (found,) = [r["number"] for r in rows if r["gold"] == gold and r["benchmark"] == benchmark]
    return int(found)


def test_an_answer_is_shown_whole_with_its_verdict_and_the_parents(run: Path) -> None:
    found = shown(run, "TA/01", number_of(run, "17"))
    assert found["question"] == "What is 17 in alpha?"
    assert found["gold"] == "17"
    assert [a["candidate"] for a in found["answers"]] == ["TA/01", "R1", "MATH"]
    assert [a["label"] for a in found["answers"]] == [None, "parent.slow", "parent.fast"]
    first = found["answers"][0]
    assert first["text"] == "I think it is \\boxed{17}."
    assert (first["rule"], first["found"], first["correct"]) == ("boxed", "17", True)
    start, end = first["span"]
    assert first["text"][start:end] == "17"
    assert first["grader"] == "qwen2.5-math"
    assert not first["grades"]
    regrade(run)
    (grade,) = shown(run, "slow", number_of(run, "17"))["answers"][0]["grades"]
    assert grade["grader"].startswith("ladder-")
    assert (grade["correct"], grade["extracted"], grade["reason"]) == (
        False, "0", "compared as numbers",
    )  # fmt: skip


def test_a_parent_is_shown_once(run: Path) -> None:
    answers = shown(run, "slow", "alpha/" + shown(run, "slow", 1)["item"])["answers"]
    assert [a["candidate"] for a in answers] == ["R1", "MATH"]


def test_the_prompt_is_the_presets_text_where_the_preset_is_ours(run: Path) -> None:
    assert shown(run, "TA/01", 1)["preset"] == "deepseek-math"
    assert shown(run, "TA/01", 1)["prompt"] is None
    assert "is not known" in shown(run, "TA/01", 1)["prompt_note"]
    path = RunPaths(run).evaluation("imported")
    described = json.loads(path.read_text("utf-8"))
    described["protocol"]["prompt"] = "plain"
    path.write_text(json.dumps(described), encoding="utf-8")
    found = shown(run, "TA/01", 1)
    assert found["prompt"].startswith(f"User: {found['question']}\nPlease reason step by step")
    described["protocol"]["prompt"] = "chat"
    path.write_text(json.dumps(described), encoding="utf-8")
    assert "chat template" in shown(run, "TA/01", 1)["prompt_note"]


@pytest.mark.parametrize("columns", [60, 200])
def test_what_a_model_wrote_cannot_act_on_the_terminal(
    run: Path, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out = l2s("show", run, "TA/01", number_of(run, "7"))
    assert code == 0
    assert "[red]not red[/red]<b> \\boxed{7}" in out
    assert "owned" not in out
    assert all(c.isprintable() or c == "\n" for c in out)
    beside = any("TA/01" in line and "parent.slow" in line for line in out.splitlines())
    assert beside is (columns == 200)


PROTOCOL = Protocol(
    prompt="plain", max_tokens=9, temperature=0, top_p=1, samples=1, seed=0, stop_ids=(),
    tokenizer="slow", chunk_items=1, engine="scripted", engine_settings={}, merge_device="cpu",
)  # fmt: skip
ITEMS_ASKED = tuple(
    Item(benchmark=benchmark, item=item, question="1?", gold="1", question_hash=item, level="5")
    for benchmark, item in ITEMS
)


ODD = st.text(st.characters(codec="utf-8")) | st.binary().map(lambda b: b.decode("latin-1"))


@given(st.lists(ODD | st.sampled_from(["\x1b[", "\x1b]", "\x9d", "\x07", "[bold]", "\r"])))
def test_nothing_but_printable_text_is_left(parts: list[str]) -> None:
    text = visible("".join(parts))
    assert all(c.isprintable() or c == "\n" for c in text)
    assert visible(text) == text
    for character in text:
        assert unicodedata.category(character) not in ("Cc", "Cf", "Cs") or character == "\n"


@given(st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")) | st.just("\n")))
def test_ordinary_text_is_left_as_it_is(text: str) -> None:
    assert visible(text) == text
    assert visible(f"\x1b[1;31m{text}\x1b[0m") == text


def test_an_unfinished_code_hides_nothing() -> None:
    assert visible("\x1b]0;title without end\nthe answer is 7") == (
        "0;title without end\nthe answer is 7"
    )
    assert visible("a\tb\u00a0c\r\nd\u2028e\x7f") == "a b c\nd e"


def test_diff_lists_the_items_of_which_one_of_two_is_right(run: Path) -> None:
    code, out = l2s("diff", run, "TA/01", "slow", "--json")
    assert code == 0
    rows = json.loads(out)
    assert list(rows[0]) == list(DIFFERENCE)
    assert [(r["benchmark"], r["gold"], r["right"]) for r in rows if r["benchmark"] == "beta"] in (
        [("beta", "11", "b"), ("beta", "17", "a")],
        [("beta", "17", "a"), ("beta", "11", "b")],
    )
    lost = next(r for r in rows if r["gold"] == "11")
    assert (lost["a_extracted"], lost["b_extracted"], lost["a_tokens"]) == ("0", "11", None)
    assert len(rows) == 4
    code, out = l2s("diff", run, "TA/01", "slow", "--benchmark", "beta", "--json")
    assert [r["benchmark"] for r in json.loads(out)] == ["beta", "beta"]
    code, out = l2s("diff", run, "TA/01", "slow")
    assert "only TA/01 right on 2, only slow on 2" in out
    assert "l2s show" in out
    code, text = l2s("diff", run, "slow", "R1")
    assert code == 2 and "slow and R1 are one candidate, R1" in text
    code, out = l2s("diff", run, "TA/01", "slow", "--csv", "-", "--parquet", run / "rows.parquet")
    assert code == 0
    assert out.splitlines()[0] == ",".join(DIFFERENCE)
    assert len(out.splitlines()) == 5
    assert pl.read_parquet(run / "rows.parquet").to_dicts() == rows


def test_diff_fits_a_narrow_terminal(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = Console(width=70, force_terminal=True, highlight=False, soft_wrap=True, no_color=True)
    monkeypatch.setattr("l2s_hpc.cli.output.stdout", wide)
    out = visible(l2s("diff", run, "TA/01", "slow")[1])
    table = [line for line in out.splitlines() if line[:1] in "┏┃┡│└"]
    assert {len(line) for line in table} <= set(range(71))
    assert "left out for want of room: TA/01 tokens, slow tokens" in out
    for line in (line for line in table if line.startswith("│")):
        number, item = (cell.strip() for cell in line.split("│")[1:3])
        assert len(item.partition("/")[2]) == LEGIBLE
        assert shown(run, "slow", item)["number"] == int(number)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.text("01-", min_size=1, max_size=20))))
def test_each_beginning_names_one_item(names: list[tuple[str, str]]) -> None:
    items = [ITEMS_ASKED[0].model_copy(update={"benchmark": b, "item": i})
             for b, i in sorted(set(names))]  # fmt: skip
    for place, (item, begins) in enumerate(zip(items, beginnings(items).values(), strict=True)):
        assert item.item.startswith(begins) and len(begins) >= min(LEGIBLE, len(item.item))
        assert hits(items, f"{item.benchmark}/{begins}") == [place]


def test_diff_says_on_how_many_items_two_do_not_differ(tmp_path: Path) -> None:
    source, run = tmp_path / "theirs", tmp_path / "run"
    for model in ("A", "B"):
        for benchmark in ("alpha", "beta"):
            rows = [row(n, gold, gold, f"{gold} in {benchmark}?") for n, gold in enumerate(GOLDS)]
            write_outputs(source, model, benchmark, rows)
    import_run(source, run)
    code, out = l2s("diff", run, "A", "B")
    assert code == 0 and "they do not differ in any of 8 items" in out
    assert "any of 4 items" in l2s("diff", run, "A", "B", "--benchmark", "beta")[1]
    assert l2s("diff", run, "A", "B", "--json") == (0, "[]\n")


def test_a_damaged_import_is_mended_by_the_same_import(run: Path) -> None:
    table = min((run / "scores").rglob("*.parquet"))
    table.write_bytes(table.read_bytes()[:-1] + b"?")
    with pytest.raises(DamageError, match="then the same `l2s import` command makes it again"):
        open_run(run).measures("imported")


def test_the_number_of_diff_names_the_same_item_in_show(run: Path) -> None:
    for listed in open_run(run).diff("TA/01", "slow").to_dicts():
        found = shown(run, "TA/01", listed["number"])
        assert (found["benchmark"], found["item"]) == (listed["benchmark"], listed["item"])
        by_id = shown(run, "TA/01", f"{listed['benchmark']}/{listed['item'][:9]}")
        assert by_id["number"] == listed["number"]


def test_wrong_names_are_refused_with_what_there_is(run: Path) -> None:
    assert l2s("show", run, "TA/1", 1) == (
        2, f"no candidate, pick or reference 'TA/1'\n  in {run}\n  Hint: did you mean 'TA/01'?"
    )  # fmt: skip
    code, text = l2s("show", run, "slow", 9)
    assert code == 2
    assert "no item begins with '9' in evaluation 'imported'" in text
    assert "a number from 1 to 8" in text
    assert "no item" in l2s("show", run, "slow", "9" * 5000)[1]
    assert "no item" in l2s("show", run, "slow", "alpha/")[1]
    assert "did you mean 'imported'?" in l2s("show", run, "slow", 1, "--split", "importd")[1]
    assert "has no answer 3" in l2s("show", run, "slow", 1, "--sample", 3)[1]
    assert "did you mean 'beta'?" in l2s("diff", run, "slow", "fast", "--benchmark", "bta")[1]


def test_an_ambiguous_beginning_lists_what_it_could_mean(tmp_path: Path) -> None:
    source = tmp_path / "theirs"
    write_scores(source, "R1", aime24=[1, 0, 1])
    import_run(source, tmp_path / "run")
    code, text = l2s("show", tmp_path / "run", "R1", "aime24-0000")
    assert code == 2
    assert "3 items begin with 'aime24-0000'" in text
    assert "aime24/aime24-00002" in text


def test_verdicts_without_texts_are_shown_as_such(tmp_path: Path) -> None:
    source = tmp_path / "theirs"
    write_scores(source, "R1", aime24=[1, 0, 1])
    import_run(source, tmp_path / "run")
    found = shown(tmp_path / "run", "R1", "aime24-00001")
    assert found["question"] is None
    assert "known by its id alone" in found["prompt_note"]
    (answer,) = found["answers"]
    assert (answer["text"], answer["missing"]) == (None, "none were recorded")
    out = l2s("show", tmp_path / "run", "R1", 2)[1]
    assert "wrong: the answer was not recorded (qwen2.5-math)" in out
    assert "(no full text: none were recorded)" in out
    with pytest.raises(UserError, match="has no full texts in 'imported': none were recorded"):
        open_run(tmp_path / "run").outputs("R1")


def test_texts_are_read_whole_and_compared_with_the_receipt(run: Path) -> None:
    opened = open_run(run)
    texts = opened.outputs("TA/01").collect()
    assert texts.height == 8
    assert HOSTILE in texts["text"].to_list()
    path = RunPaths(run).outputs("imported", 0, "TA/01")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamageError, match="sha256 differs") as error:
        opened.outputs("TA/01")
    assert error.value.path == path
    assert l2s("show", run, "TA/01", 1)[0] == 3


def test_dropped_texts_harm_nothing_but_what_shows_them(run: Path) -> None:
    before = open_run(run)
    figures = (before.table(), before.diff("TA/01", "slow").to_dicts())
    shutil.rmtree(run / "outputs")
    after = open_run(run)
    assert (after.table(), after.diff("TA/01", "slow").to_dicts()) == figures
    assert verify(run)[1] == []
    (answer, *_) = shown(run, "TA/01", number_of(run, "17"))["answers"]
    assert (answer["text"], answer["correct"], answer["extracted"]) == (None, True, "17")
    assert answer["missing"] == "they were removed, or not copied along"
    with pytest.raises(UserError, match="they were removed, or not copied along") as error:
        after.outputs("TA/01")
    assert "scores, rates and fronts do not need them" in str(error.value)
    assert {damage.message for damage in regrade(run).damage} == {"the table of outputs is missing"}


def test_joined_tables_are_read_as_before(run: Path) -> None:
    regrade(run)
    before = open_run(run)
    seen = (before.show("TA/01", "1"), before.outputs("TA/01").collect().to_dicts())
    assert compact(run).damage == []
    assert not RunPaths(run).outputs("imported", 0, "TA/01").exists()
    after = open_run(run)
    assert (after.show("TA/01", "1"), after.outputs("TA/01").collect().to_dicts()) == seen
    assert seen[0].answers[0].grades
    (path,) = (run / "outputs").rglob("*.parquet")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamageError) as error:
        open_run(run).outputs("TA/01")
    assert error.value.path == path
    shutil.rmtree(run / "outputs")
    assert after.show("TA/01", "1").answers[0].text is None


def test_damaged_grades_are_named(run: Path) -> None:
    regrade(run)
    (path,) = (run / "grades").rglob("TA%2F01.parquet")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamageError, match="not what its receipt says") as error:
        open_run(run).show("TA/01", "1")
    assert error.value.path == path


def test_candidates_have_names(tmp_path: Path) -> None:
    complete(tmp_path / "run")
    run = open_run(tmp_path / "run")
    assert resolve(run, "knee") == IDS["short"]
    assert resolve(run, "slow") == resolve(run, "parent.slow") == IDS["slow"]
    assert resolve(run, "average") == IDS["average"]
    assert resolve(run, IDS["good"]) == resolve(run, IDS["good"][:6]) == IDS["good"]
    with pytest.raises(UserError, match="'knees'") as error:
        resolve(run, "knees")
    assert error.value.hint == "did you mean 'knee'?"
    with pytest.raises(UserError, match=re.escape(f"reference '{IDS['good'][:3]}'")):
        resolve(run, IDS["good"][:3])


def test_an_answer_belongs_to_the_least_optimistic_evaluation_that_has_it(tmp_path: Path) -> None:
    small = complete(tmp_path / "run")
    for name in ("search", "selection", "report"):
        described = Evaluation(name=name, protocol=PROTOCOL, items=ITEMS_ASKED)
        write_json(small.paths.evaluation(name), described.model_dump(mode="json"))
    run = open_run(tmp_path / "run")
    rows = run.diff("knee", "slow").to_dicts()
    assert {r["a_tokens"] for r in rows} == {25, 27}  # of the report: a token more
    assert {r["a_tokens"] for r in run.diff("knee", "slow", "search").to_dicts()} == {24, 26}
    beaten = run.diff(IDS["beaten"], "slow").to_dicts()  # was never evaluated but in the search
    assert {r["b_tokens"] for r in beaten} == {99, 101}
    with pytest.raises(UserError, match="has no table in evaluation 'report'") as error:
        run.diff(IDS["beaten"], "slow", "report")
    assert error.value.hint == "it has one in: search"
    small.table("report", "short").unlink()
    with pytest.raises(DamageError, match="missing"):
        open_run(tmp_path / "run").diff("knee", "slow")
