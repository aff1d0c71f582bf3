"""`l2s compact`: few files, the same science, whatever ends it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from l2s_hpc import open_run
from l2s_hpc.cli.main import app
from l2s_hpc.controller.compact import _void as void
from l2s_hpc.controller.compact import claim, compact
from l2s_hpc.controller.regrade import regrade
from l2s_hpc.controller.verify import quarantine, verify
from l2s_hpc.errors import DamageError, UserError
from l2s_hpc.evaluation.grading import GRADER
from l2s_hpc.store import files
from l2s_hpc.store.files import process_start, read_json, write_json
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.store.tables import Manifest, Tables, read_manifest
from tests.mini import Mini, outcome, state_of, write_mini

from .test_analysis_builder import ITEMS, SmallRun

PROTOCOL = {
    "prompt": "plain", "max_tokens": 100, "temperature": 0.0, "top_p": 1.0, "samples": 1, "seed": 0,
    "stop_ids": [0], "tokenizer": "slow", "chunk_items": 8, "engine": "scripted",
    "engine_settings": {}, "merge_device": "cpu",
}  # fmt: skip
SETTINGS = ("search.generations=2", "references.sweep=0")
GRADES = RunPaths(Path()).grades_kind(GRADER)
GROWN = ("search.generations=3", "references.sweep=0")


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Mini:
    return write_mini(tmp_path_factory.mktemp("mini"))


@pytest.fixture(scope="module")
def finished(mini: Mini, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of two generations, complete and graded again."""
    run = tmp_path_factory.mktemp("finished") / "run"
    mini.run(run, *SETTINGS)
    regrade(run)
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def said(run: Path) -> dict[str, Any]:
    """Return what is read from a run: figures, texts, verdicts."""
    opened, tables = open_run(run), Tables(RunPaths(run))
    wheres = [(a.evaluation, a.generation, a.candidate) for a in opened.state.accepted.values()]
    order = ["candidate", "benchmark", "item", "sample"]
    return {
        "measures": {name: opened.measures(name) for name in opened.evaluations},
        "front": opened.front(),
        "ntr": opened.ntr(),
        "receipts": [receipt.model_dump() for receipt in opened.receipts()],
        "rows": opened.scores("search").collect().sort(order).to_dicts(),
        "one": opened.tensor("toy_easy", "search").values.tolist(),
        "outputs": [tables.verified_outputs(w, tables.receipt(w)).to_pylist() for w in wheres],
    }


def groups(run: Path) -> int:
    """Return in how many generations of evaluations a run has tables."""
    return len({(a.evaluation, a.generation) for a in state_of(run).accepted.values()})


def names(run: Path) -> set[str]:
    """Return the files of a run but for what may differ: parts have other numbers after a kill."""
    files = {path.relative_to(run) for path in run.rglob("*") if path.is_file()}
    return {str(path).rpartition("-")[0] or str(path) for path in files}


def parts(run: Path, kind: str = "scores") -> list[Path]:
    return sorted((run / kind / "search").glob("*.parquet"))


def test_a_compacted_run_says_the_same_with_few_files(run: Path) -> None:
    before, files = said(run), sum(1 for path in run.rglob("*") if path.is_file())
    done = compact(run)
    assert not done.damage and not done.waiting
    assert (done.generations, done.tables) == (groups(run), len(state_of(run).accepted))
    assert said(run) == before
    assert verify(run) == (done.tables, [])
    for kind in ("receipts", "attempts", "tasks", "scores", "outputs", "grades"):
        below = [path for path in (run / kind).rglob("*") if path.is_file()]
        assert len(below) <= 2 * done.generations, kind
    assert done.files[1] is not None and done.files[1] < files / 2
    again = regrade(run)
    assert again.graded == 0 and again.reused == done.tables
    assert CliRunner().invoke(app, ["status", str(run), "--json"]).exit_code == 0


def test_a_manifest_maps_each_content_to_its_rows(run: Path) -> None:
    compact(run)
    state = state_of(run)
    mapped = {}
    for path in (run / "scores").glob("*/*.json"):
        manifest = read_manifest(path)
        assert manifest is not None
        file = pq.ParquetFile(path.with_name(f"{path.stem}-{manifest.part}.parquet"))
        assert file.metadata.num_rows == manifest.rows
        for table in manifest.tables:
            rows = file.read(columns=["candidate"]).slice(table.first, table.rows)
            assert rows.column(0).unique().to_pylist() == [table.candidate]
            assert len(table.receipt["file_sha256"]) == 64
            mapped[manifest.evaluation, table.candidate] = table.content_sha256
    assert mapped == {key: accepted.content_sha256 for key, accepted in state.accepted.items()}


def test_nothing_is_left_to_do_after_it(run: Path) -> None:
    compact(run)
    before = {path: path.stat().st_ino for path in run.rglob("*")}
    assert compact(run, dry_run=True).removed == 0
    assert compact(run).generations == groups(run)
    assert before == {path: path.stat().st_ino for path in run.rglob("*")}


def test_a_dry_run_says_what_would_be_done_and_changes_nothing(run: Path) -> None:
    before = sorted(run.rglob("*"))
    told = CliRunner().invoke(app, ["compact", str(run), "--dry-run", "--json"])
    found = json.loads(told.stdout)
    assert found["generations"] == groups(run) and found["files_after"] is None
    assert sorted(run.rglob("*")) == before
    compact(run)
    gone = [path for path in before if not path.exists() and not path.is_dir()]
    files = [path for path in gone if path.suffix]
    assert found["files_to_remove"] == len(files)


def test_a_compacted_search_grows_as_any_other(mini: Mini, run: Path, finished: Path) -> None:
    other = Path(shutil.copytree(finished, run.with_name("other")))
    compact(run)
    for folder in (run, other):
        mini.run(folder, *GROWN)
    assert outcome(run) == outcome(other)
    assert not compact(run).damage
    assert verify(run)[1] == []
    assert said(run)["measures"] == said(other)["measures"]


def test_logs_of_nodes_are_in_an_archive(run: Path) -> None:
    import tarfile

    failed = RunPaths(run).attempt("search", 0, "gone", 1)
    failed.folder.mkdir(parents=True)
    failed.engine_log.write_text("out of memory", encoding="utf-8")
    compact(run)
    with tarfile.open(run / "attempts" / "search" / "0000-1.tar.gz") as archive:
        inside = archive.getnames()
        log = archive.extractfile("attempts/search/0000/gone/1/engine.log")
        assert log is not None and log.read() == b"out of memory"
    assert any(name.startswith("tasks/") for name in inside)
    assert any(name.startswith("logs/") for name in inside)
    assert not [name for name in inside if name.endswith("scores.parquet")]


def test_texts_that_are_joined_nowhere_are_in_the_archive(run: Path) -> None:
    import tarfile

    shutil.rmtree(run / "outputs")
    texts = sorted((run / "attempts" / "search" / "0000").rglob("outputs.parquet"))
    inside = {str(path.relative_to(run)): path.read_bytes() for path in texts}
    assert inside
    compact(run)
    with tarfile.open(run / "attempts" / "search" / "0000-1.tar.gz") as archive:
        for name, content in inside.items():
            kept = archive.extractfile(name)
            assert kept is not None and kept.read() == content
        assert not [name for name in archive.getnames() if name.endswith("scores.parquet")]


def test_a_generation_under_way_stays(tmp_path: Path) -> None:
    small = SmallRun(tmp_path / "run")
    small.search(1)
    before = sorted(small.paths.folder.rglob("*"))
    done = compact(small.paths.folder)
    assert done.waiting == {"search, generation 0": "a batch of it is not closed yet"}
    assert sorted(small.paths.folder.rglob("*")) == before


def test_damage_stays_and_the_rest_is_joined(run: Path) -> None:
    table = min((run / "scores" / "search" / "0000").glob("*.parquet"))
    flip(table, 200)
    told = CliRunner().invoke(app, ["compact", str(run), "--json"])
    assert told.exit_code == 3
    found = json.loads(told.stdout)
    assert [entry["path"] for entry in found["damage"]] == [str(table)]
    assert found["generations"] == groups(run) - 1
    assert len(list(table.parent.glob("*.parquet"))) > 1


KILLS = """
import os, shutil, signal, sys
from pathlib import Path
from l2s_hpc.controller.compact import compact

source, target = Path(sys.argv[1]), Path(sys.argv[2])
for number in range(1, 1000):
    run = target / str(number)
    shutil.copytree(source, run)
    child = os.fork()
    if not child:
        left = number
        def counted(call):
            def do(*values, **named):
                global left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*values, **named)
            return do
        for name in ("fsync", "unlink", "rename", "replace", "link", "rmdir"):
            setattr(os, name, counted(getattr(os, name)))
        compact(run)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
print(number)
"""


def test_killed_at_each_durable_step(tmp_path: Path) -> None:
    small = closed_run(tmp_path / "run")
    before = figures(small.paths.folder)
    done = subprocess.run(
        [sys.executable, "-c", KILLS, str(small.paths.folder), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    steps = int(done.stdout)
    assert steps > 40, "the program kills nothing"
    whole = names(tmp_path / str(steps))
    for number in range(1, steps):
        run = tmp_path / str(number)
        damage = [d for d in verify(run)[1] if "no manifest names" not in d.message]
        assert (number, damage) == (number, [])
        assert figures(run) == before, number
        assert not compact(run).damage
        assert verify(run)[1] == [] and figures(run) == before, number
        assert names(run) == whole, number
        shutil.rmtree(run)


def closed_run(folder: Path) -> SmallRun:
    """Return a small run of one told generation whose batches are closed, with logs of nodes."""
    small = SmallRun(folder)
    small.ask(0)
    for name in ("slow", "good", "short", "beaten"):
        small.evaluate("search", name)
    small.tell(0)
    for batch in list(state_of(folder).open_batches):
        small.append({"event": "closed", "batch": batch})
    log = small.paths.attempts("search", 0) / "gone" / "1" / "engine.log"
    log.parent.mkdir(parents=True)
    log.write_text("a node was here", encoding="utf-8")
    described = {
        "name": "search",
        "protocol": PROTOCOL,
        "items": [
            {"benchmark": b, "item": i, "question": i, "gold": "1", "question_hash": i}
            for b, i in ITEMS
        ],
    }
    write_json(small.paths.evaluation("search"), described)
    return small


def figures(run: Path) -> dict[str, Any]:
    opened = open_run(run)
    return {"measures": opened.measures("search"), "receipts": len(opened.receipts())}


def test_two_compactions_at_once_are_refused(run: Path) -> None:
    claim = RunPaths(run).compacting
    host = os.uname().nodename
    me = {"host": host, "pid": os.getpid(), "process": process_start(os.getpid())}
    me["doing"] = "compacting the run"
    write_json(claim, me)
    with pytest.raises(UserError, match=f"process {os.getpid()} on {host} is compacting the run"):
        compact(run)
    write_json(claim, me | {"host": "elsewhere"})
    with pytest.raises(UserError, match="if it is gone, remove this file"):
        compact(run)
    write_json(claim, me | {"process": "1"})
    assert compact(run).generations == groups(run)
    assert not list(run.glob("compacting*"))


def test_damage_is_not_moved_while_a_compaction_runs(run: Path) -> None:
    compact(run)
    flip(parts(run)[0], 4)
    _, damage = verify(run)
    before = sorted(run.rglob("*"))
    with claim(RunPaths(run), "compacting the run"):
        told = CliRunner().invoke(app, ["verify", str(run), "--quarantine"])
        assert isinstance(told.exception, UserError)
        assert f"process {os.getpid()} on" in told.exception.message
    assert sorted(run.rglob("*")) == before
    quarantine(run, damage)
    assert verify(run)[1] == [] and not list(run.glob("compacting*"))


def test_a_fresh_claim_that_took_a_stale_ones_place_stays(tmp_path: Path) -> None:
    claimed = RunPaths(tmp_path).compacting
    write_json(claimed, {"pid": 2})
    void(claimed, {"pid": 1})
    assert read_json(claimed) == {"pid": 2}
    void(claimed, {"pid": 2})
    assert not list(tmp_path.iterdir())


def test_what_was_joined_between_verify_and_quarantine_is_left_alone(run: Path) -> None:
    table = min((run / "scores" / "search" / "0000").glob("*.parquet"))
    away = table.rename(run / "away")
    accepted, damage = verify(run)
    assert [d.path for d in damage] == [table]
    away.rename(table)
    assert quarantine(run, damage) == 0
    assert verify(run) == (accepted, [])
    table.unlink()
    _, damage = verify(run)
    assert [quarantine(run, damage) for _ in range(2)] == [1, 0]


def test_the_claim_of_a_dead_process_is_void_where_no_proc_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_PROCESSES", tmp_path / "none")
    with subprocess.Popen(["sleep", "60"]) as other:
        me = {"host": os.uname().nodename, "pid": other.pid, "process": process_start(other.pid)}
        write_json(RunPaths(tmp_path).compacting, me)
        temporary = tmp_path / f".{os.uname().nodename}.{other.pid}.0a.tmp"
        temporary.touch()
        files.remove_stale_temporaries(tmp_path)
        assert temporary.exists()
        with pytest.raises(UserError, match=f"process {other.pid}"), claim(RunPaths(tmp_path), "x"):
            pass
        other.kill()
    with claim(RunPaths(tmp_path), "x"):
        files.remove_stale_temporaries(tmp_path)
        assert not temporary.exists()


@pytest.mark.parametrize("kind", ["scores", "outputs", GRADES])
def test_a_flipped_byte_of_joined_tables_is_found(run: Path, kind: str) -> None:
    compact(run)
    for path in (parts(run, kind)[0], RunPaths(run).joined(kind, "search", 0)):
        whole = path.read_bytes()
        for position in range(0, len(whole), max(len(whole) // 40, 1)):
            flip(path, position)
            assert path in {damage.path for damage in verify(run)[1]}, (path, position)
            if kind == "scores":
                with pytest.raises(DamageError) as caught:
                    open_run(run).measures("search")
                assert caught.value.path == path
            path.write_bytes(whole)
    assert verify(run)[1] == []


def test_damaged_joined_grades_are_made_again(run: Path) -> None:
    compact(run)
    path = parts(run, GRADES)[0]
    flip(path, path.stat().st_size // 2)
    accepted, damage = verify(run)
    assert [d.path for d in damage] == [path]
    assert quarantine(run, damage) == 0
    assert regrade(run).graded > 1
    assert verify(run) == (accepted, [])
    assert not compact(run).damage
    assert verify(run) == (accepted, [])


def test_damaged_rows_are_evaluated_again_and_the_others_stay(
    mini: Mini, run: Path, finished: Path
) -> None:
    compact(run)
    item = pq.read_metadata(parts(run)[0]).row_group(0).column(6)
    flip(parts(run)[0], item.dictionary_page_offset + item.total_compressed_size - 3)
    accepted, damage = verify(run)
    lost = [d for d in damage if d.accepted]
    assert len(lost) == 1 and {d.path for d in damage} == {parts(run)[0]}
    for candidate in (a.candidate for a in lost[0].accepted):
        assert candidate in lost[0].message
    reopened = quarantine(run, damage)
    assert reopened == len(lost[0].accepted) >= 1
    left = verify(run)
    assert left == (accepted - reopened, [])
    said = f"{reopened} tables are in quarantine and not evaluated again yet"
    with pytest.warns(UserWarning, match=f"{said}.*`l2s run`"):
        open_run(run)
    assert f"l2s: {said}" in CliRunner().invoke(app, ["ntr", str(run)]).stderr
    mini.run(run, *SETTINGS)
    assert outcome(run) == outcome(finished)
    assert not compact(run).damage
    assert verify(run) == (accepted, [])


def test_a_file_whose_rows_are_sound_is_written_anew(run: Path) -> None:
    compact(run)
    path = parts(run)[0]
    content = path.read_bytes()
    # The name of the library that wrote it, in the footer: no row depends on it.
    path.write_bytes(content.replace(b"parquet-cpp-arrow", b"parquet-cpp-Arrow"))
    accepted, damage = verify(run)
    assert [(d.path, d.accepted) for d in damage] == [(path, ())]
    assert quarantine(run, damage) == 0
    assert verify(run) == (accepted, [])
    assert len(list((run / "quarantine").iterdir())) == 1


def test_a_lost_manifest_costs_its_generation_and_nothing_else(
    mini: Mini, run: Path, finished: Path
) -> None:
    compact(run)
    RunPaths(run).joined("scores", "search", 1).unlink()
    accepted, damage = verify(run)
    assert 0 < quarantine(run, damage) < accepted
    assert verify(run)[1] == []
    mini.run(run, *SETTINGS)
    assert outcome(run) == outcome(finished)


def test_a_missing_file_of_joined_tables_is_named_and_no_other(run: Path) -> None:
    compact(run)
    manifest, part = RunPaths(run).joined("scores", "search", 0), parts(run)[0]
    for path, said in ((manifest, "the manifest of joined tables"), (part, "a file of joined")):
        away = path.rename(run / "away")
        with pytest.raises(DamageError, match=f"^{said}.* is missing") as caught:
            open_run(run).measures("search")
        assert caught.value.path == path and "copy it anew" in caught.value.hint
        assert {d.path for d in verify(run)[1] if "is missing" in d.message} == {path}
        with pytest.warns(UserWarning, match="left out"):
            left = open_run(run, strict=False).measures("search")
        assert len(left) < len([e for e, _ in state_of(run).accepted if e == "search"])
        away.rename(path)
    assert verify(run)[1] == []


def test_a_row_less_in_joined_tables_is_an_error_whatever_the_manifest_says(run: Path) -> None:
    import hashlib

    compact(run)
    path = RunPaths(run).joined("scores", "search", 0)
    part = parts(run)[0]
    table = pq.read_table(part)
    pq.write_table(table.slice(0, table.num_rows - 1), part)
    said = read_json(path) | {"file_sha256": hashlib.sha256(part.read_bytes()).hexdigest()}
    write_json(path, Manifest.model_validate(said).sealed().model_dump(mode="json"))
    with pytest.raises(DamageError, match=f"{table.num_rows - 1} rows"):
        open_run(run).measures("search")
    said["tables"][-1]["rows"] -= 1
    write_json(path, Manifest.model_validate(said).sealed().model_dump(mode="json"))
    with pytest.raises(DamageError, match="7 rows, 8 were accepted"):
        open_run(run).measures("search")
    assert verify(run)[1] != []


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.unlink()  # attempts may share the file
    path.write_bytes(content)
