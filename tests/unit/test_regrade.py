"""`l2s grade RUN`: stored outputs are judged again, and differing verdicts are listed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from l2s_hpc.cli.main import app
from l2s_hpc.cli.regrade import as_dict, show
from l2s_hpc.controller import regrade as regrading
from l2s_hpc.controller.import_run import import_run
from l2s_hpc.controller.regrade import regrade
from l2s_hpc.controller.verify import quarantine, verify
from l2s_hpc.errors import IncompleteError, UserError
from l2s_hpc.evaluation.grading import GRADER, Decision
from l2s_hpc.evaluation.verdicts import MOST_PARTS, VerdictCache, cache_folder
from l2s_hpc.store.layout import RunPaths
from tests.foreign import row, write_outputs, write_scores

ROWS = [
    row(0, "12", "12"),
    row(1, "0.5", "1/2"),  # upstream's equality here is that of strings
    row(2, "5", "6", score=[True]),
    row(3, "4", "4", code=["I do not know."]),
    row(4, "7", "8"),
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "l2s_hpc" / "verdicts"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "published"
    write_outputs(folder, "w/0.5", "aime24", ROWS)
    write_outputs(folder, "w/0.7", "aime24", [r | {"code": ["\\boxed{12}"]} for r in ROWS])
    import_run(folder, tmp_path / "run")
    return tmp_path / "run"


def test_accuracy_by_both_and_every_disagreement_with_its_reason(run: Path) -> None:
    found = regrade(run)
    assert (found.graded, found.reused) == (2, 0)
    first = found.table[0]
    assert first == {
        "evaluation": "imported",
        "candidate": "w/0.5",
        "benchmark": "aime24",
        "n": 5,
        "grader": "qwen2.5-math",
        "accuracy": 3 / 5,
        "regraded": 2 / 5,
        "only_theirs": 2,
        "only_ours": 1,
        "undecided": 0,
    }
    told = {d["gold"]: d for d in found.disagreements if d["candidate"] == "w/0.5"}
    assert set(told) == {"1/2", "6", "4"}
    assert told["1/2"]["verdict"] == "correct"
    assert told["1/2"]["their_verdict"] == "wrong"
    assert (told["6"]["answer"], told["6"]["verdict"]) == ("5", "wrong")
    assert (told["4"]["answer"], told["4"]["their_answer"]) == (None, "4")
    assert all(d["reason"] for d in found.disagreements)


def test_grades_are_kept_beside_the_scores_and_made_once(run: Path) -> None:
    before = {p: p.read_bytes() for p in (run / "scores").rglob("*") if p.is_file()}
    first = regrade(run)
    paths = RunPaths(run)
    table = paths.grades(GRADER, "imported", 0, "w/0.5")
    assert table.exists()
    assert json.loads(table.with_suffix(".json").read_text("utf-8"))["grader"] == GRADER
    assert paths.graders() == [GRADER]
    again = regrade(run)
    assert (again.graded, again.reused) == (0, 2)
    assert (again.table, again.disagreements) == (first.table, first.disagreements)
    assert before == {p: p.read_bytes() for p in (run / "scores").rglob("*") if p.is_file()}
    assert verify(run) == (2, [])


@pytest.mark.parametrize("damage", ["empty", "flipped", "another's"])
def test_damaged_grades_are_made_again(run: Path, damage: str) -> None:
    first = regrade(run)
    table = RunPaths(run).grades(GRADER, "imported", 0, "w/0.5")
    content = bytearray(table.read_bytes())
    content[len(content) // 2] ^= 1
    other = RunPaths(run).grades(GRADER, "imported", 0, "w/0.7")
    new = {"empty": b"", "flipped": bytes(content), "another's": other.read_bytes()}
    table.write_bytes(new[damage])
    again = regrade(run)
    assert again.graded == 1
    assert again.table == first.table


@pytest.mark.parametrize(
    ("damage", "named", "said"),
    [
        ("flipped", "table", "the sha256 differs from the receipt's"),
        ("no table", "table", "missing or unreadable"),
        ("no receipt", "receipt", "missing or unreadable"),
        ("torn receipt", "receipt", "not valid JSON"),
        ("other rows", "table", "5 rows, the receipt says 4"),
        ("no count", "receipt", "not a receipt of grades: Field required"),
        ("another's", "receipt", "its receipt is another candidate's"),
    ],
)
def test_verify_finds_damaged_grades_and_reopens_nothing(
    run: Path, damage: str, named: str, said: str
) -> None:
    regrade(run)
    tables = [RunPaths(run).grades(GRADER, "imported", 0, f"w/0.{n}") for n in (5, 7)]
    files = {"table": tables[0], "receipt": tables[0].with_suffix(".json")}
    receipt = json.loads(files["receipt"].read_text(encoding="utf-8"))
    match damage:
        case "flipped":
            content = bytearray(files["table"].read_bytes())
            content[len(content) // 2] ^= 1
            files["table"].write_bytes(content)
        case "no table" | "no receipt":
            files[damage.removeprefix("no ")].unlink()
        case "torn receipt":
            files["receipt"].write_text("{", encoding="utf-8")
        case "other rows":
            files["receipt"].write_text(json.dumps(receipt | {"rows": 4}), encoding="utf-8")
        case "no count":
            del receipt["rows"]
            files["receipt"].write_text(json.dumps(receipt), encoding="utf-8")
        case "another's":
            for path, other in (
                (path, tables[1].with_suffix(path.suffix)) for path in files.values()
            ):
                path.write_bytes(other.read_bytes())
    accepted, found = verify(run)
    assert accepted == 2 and [one.path for one in found] == [files[named]]
    assert found[0].message.startswith(said) and "`l2s grade`" in found[0].message
    assert quarantine(run, found) == 0
    assert verify(run) == (2, [])
    assert regrade(run).graded == 1
    assert verify(run) == (2, [])


@pytest.mark.parametrize("text", [None, "{", "{}"])
def test_a_lost_description_costs_no_table(run: Path, text: str | None) -> None:
    path = RunPaths(run).evaluation("imported")
    whole = path.read_bytes()
    path.unlink() if text is None else path.write_text(text, encoding="utf-8")
    accepted, damage = verify(run)
    assert (accepted, [d.path for d in damage]) == (2, [path])
    assert "description is missing or damaged: copy it anew" in damage[0].message
    assert quarantine(run, damage) == 0
    path.write_bytes(whole)
    assert verify(run) == (2, [])


def test_two_versions_of_the_grader_are_compared(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    regrade(run)
    old = regrading.GRADER

    class Lenient(regrading.Grader):
        def decide(self, pairs):  # type: ignore[no-untyped-def]
            return [Decision(answer is not None, "ok", "why not") for _, answer in pairs]

    monkeypatch.setattr(regrading, "GRADER", "lenient-2")
    monkeypatch.setattr(regrading, "Grader", Lenient)
    found = regrade(run)
    graders = [row["grader"] for row in found.table if row["candidate"] == "w/0.5"]
    assert graders == ["qwen2.5-math", old]
    changed = [d for d in found.disagreements if d["grader"] == old and d["candidate"] == "w/0.5"]
    assert {d["gold"] for d in changed} == {"6", "8"}
    assert {d["verdict"] for d in changed} == {"correct"}


def test_remembered_verdicts_need_no_grader(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = regrade(run)
    other = tmp_path / "other"
    import_run(tmp_path / "published", other)

    def refuse(gold: str, answer: str) -> None:
        pytest.fail(f"asked for what is known: {gold}, {answer}")

    monkeypatch.setattr("l2s_hpc.evaluation.grading.grader._quickly", refuse)
    found = regrade(other)
    assert found.graded == 2
    assert found.disagreements == first.disagreements


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(run: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder is wanted", "utf-8")
    assert regrade(run).graded == 2
    assert regrade(run).reused == 2


def test_missing_and_damaged_outputs_are_named_and_the_others_graded(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = RunPaths(run).outputs("imported", 0, "w/0.5")
    path.unlink()
    found = regrade(run)
    assert found.graded == 1
    assert [error.path for error in found.damage] == [path]
    with pytest.raises(Exception) as caught:
        show(run, as_json=True)
    assert caught.value.exit_code == 3  # type: ignore[attr-defined]
    said = json.loads(capsys.readouterr().out)
    assert said["damage"] == [{"file": str(path), "damage": "the table of outputs is missing"}]


def test_how_many_were_judged_is_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show(run, as_json=False)
    assert "2 of 2 score tables judged" in capsys.readouterr().out
    path = RunPaths(run).outputs("imported", 0, "w/0.5")
    path.unlink()
    RunPaths(run).grades(GRADER, "imported", 0, "w/0.5").unlink()
    with pytest.raises(typer.Exit):
        show(run, as_json=False)
    assert "1 of 2 score tables judged" in capsys.readouterr().out
    shutil.rmtree(run / "outputs")
    shutil.rmtree(run / "grades")
    with pytest.raises(IncompleteError, match="none of 2 score tables was judged; the first: the"):
        show(run, as_json=False)
    assert capsys.readouterr().out == ""


def test_bare_verdicts_have_nothing_to_grade(tmp_path: Path) -> None:
    folder = tmp_path / "published"
    write_scores(folder, "a", gsm8k=[1, 0])
    import_run(folder, tmp_path / "bare")
    with pytest.raises(UserError, match="no texts are there to be graded"):
        regrade(tmp_path / "bare")
    write_outputs(folder, "b", "gsm8k", ROWS[:2])
    import_run(folder, tmp_path / "mixed")
    found = regrade(tmp_path / "mixed")
    assert found.silent == ["a"]
    assert found.graded == 1


def test_importing_grades_what_has_texts(tmp_path: Path) -> None:
    folder = tmp_path / "published"
    write_outputs(folder, "a", "aime24", ROWS)
    done = CliRunner().invoke(app, ["import", str(folder), "--run", str(tmp_path / "run")])
    assert done.exit_code == 0
    assert f"3 of 5 verdicts differ from {GRADER}'s" in done.stdout
    assert regrade(tmp_path / "run").reused == 1


def test_the_tables_show_what_differs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show(run, as_json=False)
    out = capsys.readouterr().out
    assert "w/0.5" in out
    assert "qwen2.5-math" in out
    assert f"{len(regrade(run).disagreements)} verdicts differ" in out
    show(run, as_json=True)
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(as_dict(regrade(run))))


RIGHT, WRONG = Decision(True, "ok", "the same text"), Decision(False, "undecided", "too deep")
ONE, TWO = ("v1", "1", "1"), ("v1", "2", "\n3")


def test_decisions_are_remembered_from_process_to_process(tmp_path: Path) -> None:
    one, two = VerdictCache(tmp_path, "v1"), VerdictCache(tmp_path, "v1")
    one[ONE] = RIGHT
    two.update({ONE: RIGHT, TWO: WRONG})
    one.save()
    two.save()
    one.save()
    known = VerdictCache(tmp_path, "v1")
    assert dict(known) == {ONE: RIGHT, TWO: WRONG}
    assert len(list(tmp_path.iterdir())) == 2
    known[ONE] = RIGHT
    known.save()
    assert len(list(tmp_path.iterdir())) == 2


def test_what_may_come_out_otherwise_is_not_kept(tmp_path: Path) -> None:
    cache = VerdictCache(tmp_path, "v1")
    cache[ONE], cache[TWO] = Decision(False, "error", ""), Decision(False, "timeout", "")
    assert cache[ONE].status == "error"
    cache.save()
    assert not list(tmp_path.iterdir())


def test_many_parts_become_one_and_none_is_lost(tmp_path: Path) -> None:
    for number in range(MOST_PARTS + 3):
        cache = VerdictCache(tmp_path, "v1")
        cache["v1", str(number), "x"] = WRONG
        cache.save()
    assert len(list(tmp_path.iterdir())) <= 4
    known = VerdictCache(tmp_path, "v1")
    assert set(known) == {("v1", str(number), "x") for number in range(MOST_PARTS + 3)}


def test_a_torn_part_is_graded_again(tmp_path: Path) -> None:
    cache = VerdictCache(tmp_path, "v1")
    cache[ONE] = RIGHT
    cache.save()
    [part] = tmp_path.iterdir()
    part.write_bytes(part.read_bytes()[:50])
    assert not VerdictCache(tmp_path, "v1")


def test_each_version_of_the_grader_has_a_folder_of_its_own(cache: Path) -> None:
    assert cache_folder("ladder-1") == cache / "ladder-1"
    assert cache_folder("../x").parent == cache
