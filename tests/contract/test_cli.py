"""The command as a user meets it: what it prints, exit codes, and that nothing is half written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.mini import Mini, kill_at_entry, state_of, write_mini

ROOT = Path(__file__).parents[2]
TOY = ROOT / "data" / "toy"


def l2s(*words: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "l2s_hpc.cli.main", *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, cwd=cwd
    )


@pytest.fixture
def mini(tmp_path: Path) -> Mini:
    folder = tmp_path / "job"
    folder.mkdir()
    return write_mini(folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Mini, Path]:
    folder = tmp_path_factory.mktemp("finished")
    mini = write_mini(folder)
    mini.run(folder / "run")
    return mini, folder / "run"


def refused(mini: Mini, run: Path, *settings: str) -> str:
    """Run a job that is wrong; nothing may be written, and the exit code is 2."""
    done = subprocess.run(
        mini.command(run, *settings), capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert not run.exists()
    assert "Traceback" not in done.stderr
    return done.stderr


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


class TestBadInput:
    def test_unknown_key(self, mini: Mini, tmp_path: Path) -> None:
        replace(mini.job, "population = 4", "populaton = 4")
        text = refused(mini, tmp_path / "run")
        assert "unknown key 'search.populaton': did you mean 'population'?" in text

    def test_all_faults_at_once(self, mini: Mini, tmp_path: Path) -> None:
        replace(mini.job, "population = 4", "population = 1")
        replace(mini.job, "max_tokens = 100", "max_tokens = 0")
        text = refused(mini, tmp_path / "run")
        assert "'search.population'" in text and "'protocol.max_tokens'" in text

    def test_value_out_of_range(self, mini: Mini, tmp_path: Path) -> None:
        text = refused(mini, tmp_path / "run", "search.generations=0")
        assert "'search.generations': input should be greater than or equal to 1 (given: 0)" in text

    def test_missing_model(self, mini: Mini, tmp_path: Path) -> None:
        replace(mini.job, '"shipped:toy/slow"', '"./nowhere"')
        text = refused(mini, tmp_path / "run")
        assert "model 'slow' is not here: no folder" in text and "nowhere" in text

    def test_model_that_was_not_fetched(self, mini: Mini, tmp_path: Path) -> None:
        replace(mini.job, '"shipped:toy/slow"', '"some-org/some-model"')
        text = refused(mini, tmp_path / "run")
        assert "(some-org/some-model) is not in the hub's cache" in text
        assert "l2s fetch" in text

    def test_model_of_another_shape(self, mini: Mini, tmp_path: Path) -> None:
        other = mini.job.parent / "other"
        shutil.copytree(TOY / "slow", other)
        replace(other / "config.json", '"hidden_size": 128', '"hidden_size": 256')
        replace(mini.job, '"shipped:toy/slow"', '"./other"')
        text = refused(mini, tmp_path / "run")
        assert "differ in hidden_size: 256 and 128" in text

    def test_pickle_weights(self, mini: Mini, tmp_path: Path) -> None:
        other = mini.job.parent / "other"
        shutil.copytree(TOY / "slow", other)
        (other / "model.safetensors").rename(other / "pytorch_model.bin")
        replace(mini.job, '"shipped:toy/slow"', '"./other"')
        text = refused(mini, tmp_path / "run")
        assert "has no safetensors weights (found pickle weights: pytorch_model.bin)" in text

    def test_unknown_benchmark(self, mini: Mini, tmp_path: Path) -> None:
        replace(mini.job, '["toy_easy"]', '["toy_eazy"]')
        text = refused(mini, tmp_path / "run")
        assert "unknown benchmark 'toy_eazy': did you mean 'toy_easy'?" in text

    def test_overlapping_splits(self, mini: Mini, tmp_path: Path) -> None:
        items = mini.job.parent / "items.jsonl"
        first = json.loads(items.read_text(encoding="utf-8").splitlines()[0])
        with items.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({**first, "split": "report"}) + "\n")
        text = refused(mini, tmp_path / "run")
        assert "splits overlap: a question of toy_easy/report stands in toy_easy/search too" in text

    def test_shares_that_overlap(self, mini: Mini, tmp_path: Path) -> None:
        text = refused(mini, tmp_path / "run", "splits.search={share = 0.6}")
        assert "the shares overlap" in text

    def test_answers_longer_than_the_context(self, mini: Mini, tmp_path: Path) -> None:
        settings = ("protocol.max_tokens=512", "site.engine=transformers")
        text = refused(mini, tmp_path / "run", *settings)
        assert "protocol.max_tokens = 512 leaves no room for a prompt" in text
        assert "context of 512 tokens" in text
        words = [word for setting in settings for word in ("--set", setting)]
        done = l2s("plan", mini.job, "--site", mini.site, *words)
        assert done.returncode == 2 and done.stderr == text

    def test_folder_in_use(self, mini: Mini, tmp_path: Path) -> None:
        run = tmp_path / "run"
        run.mkdir()
        (run / "thesis.tex").touch()
        done = subprocess.run(mini.command(run), capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "not empty and not a run directory (found thesis.tex)" in done.stderr
        assert [path.name for path in run.iterdir()] == ["thesis.tex"]

    def test_unknown_job_and_site(self, tmp_path: Path) -> None:
        done = l2s("run", "toyy", cwd=tmp_path)
        assert done.returncode == 2 and "did you mean 'toy'?" in done.stderr
        done = l2s("run", "toy", "--site", "locl", cwd=tmp_path)
        assert done.returncode == 2 and "did you mean 'local'?" in done.stderr
        assert not list(tmp_path.iterdir())

    def test_not_a_run(self, tmp_path: Path) -> None:
        for verb in ("status", "stop", "verify", "front", "ntr", "report"):
            done = l2s(verb, tmp_path)
            assert done.returncode == 2, verb
            assert "not a run directory: it has no run.json" in done.stderr


def test_run_directory_of_another_search(finished: tuple[Mini, Path]) -> None:
    mini, run = finished
    entries = len(list((run / "journal").rglob("*.json")))
    done = subprocess.run(
        mini.command(run, "seed=4", "search.population=6"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "the run directory holds another search" in done.stderr
    lines = [line.split() for line in done.stderr.splitlines()]
    assert ["setting", "in", "the", "run", "given", "now"] in lines
    assert ["search.population", "4", "6"] in lines
    assert ["seed", "3", "4"] in lines
    assert len(list((run / "journal").rglob("*.json"))) == entries


def test_run_prints_front_and_report(mini: Mini, tmp_path: Path) -> None:
    text = mini.run(tmp_path / "run")
    assert "generation 3/3 done" in text
    assert "accuracy" in text
    assert f"report: {tmp_path / 'run' / 'report.html'}" in text
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


def test_json_is_alone_on_stdout(finished: tuple[Mini, Path]) -> None:
    mini, run = finished
    report = json.loads(l2s("report", run, "--json").stdout)
    (node,) = report["nodes"]
    assert report["report"] == str(run / "report.html") and report["notes"] == []
    assert node["candidates"] > 0 and node["odd"] is None and "generate" in node["seconds"]
    status = json.loads(l2s("status", run, "--json").stdout)
    assert status["phase"] == "complete" and status["generation"] == 3
    rows = json.loads(l2s("front", run, "--json").stdout)
    assert {"candidate", "genome", "accuracy", "tokens"} <= rows[0].keys()
    rows = json.loads(l2s("ntr", run, "--json").stdout)
    assert {row["benchmark"] for row in rows} == {"toy_easy", "all", "macro"}
    assert {"ntr", "ntr_low", "ntr_high", "ptr", "ptr_low", "ptr_high", "n"} <= rows[0].keys()
    plan = json.loads(l2s("plan", mini.job, "--site", mini.site, "--json").stdout)
    assert plan["items"]["search"] == {"toy_easy": 8}
    assert plan["gpu_hours"] is None
    jobs = json.loads(l2s("jobs", "--json").stdout)
    assert "toy" in [job["name"] for job in jobs]


def test_verify_finds_a_flipped_bit_and_run_evaluates_again(
    finished: tuple[Mini, Path], tmp_path: Path
) -> None:
    mini, whole = finished
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    assert l2s("verify", run).returncode == 0
    table = next((run / "scores" / "search").rglob("*.parquet"))
    data = bytearray(table.read_bytes())
    data[len(data) // 2] ^= 1
    table.unlink()
    table.write_bytes(data)
    done = l2s("verify", run, "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["damage"][0]["file"] == str(table)
    assert l2s("front", run, "--split", "search").returncode == 3
    assert l2s("verify", run, "--quarantine").returncode == 3
    assert not table.exists() and list((run / "quarantine").iterdir())
    mini.run(run)
    assert l2s("verify", run).returncode == 0
    ours = {k: a.content_sha256 for k, a in state_of(run).accepted.items()}
    theirs = {k: a.content_sha256 for k, a in state_of(whole).accepted.items()}
    assert ours == theirs


def test_smoke_goes_through_the_queue_each_time(mini: Mini, tmp_path: Path) -> None:
    for number in (1, 2):
        done = subprocess.run(
            [*mini.command(tmp_path / "run"), "--smoke", "--json"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["kept in"] == str(tmp_path / "run.smoke" / str(number))
        assert len(state_of(Path(found["kept in"])).accepted) == 1
    assert not (tmp_path / "run").exists()


def test_smoke_with_a_failing_candidate(tmp_path: Path) -> None:
    mini = write_mini(tmp_path, scripted="faults = { error = 1.0 }")
    done = subprocess.run(
        [*mini.command(tmp_path / "run"), "--smoke"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert "the candidate failed: other: L2SError: scripted failure" in done.stderr


def test_stop_and_go_on(mini: Mini, finished: tuple[Mini, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = mini.command(run, "site.scripted.delay=0.3")
    controller = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (run / "journal" / "000" / "00000003.json").exists():
        assert controller.poll() is None
    assert l2s("stop", run).returncode == 0
    _, errors = controller.communicate(timeout=30)
    assert controller.returncode == 3 and "stopped by `l2s stop`" in errors
    subprocess.run(command, check=True, capture_output=True)
    assert state_of(run).completed


def test_a_run_whose_machine_is_gone_says_so_and_goes_on_after_stop(
    mini: Mini, tmp_path: Path
) -> None:
    """A local run that was moved to another machine in the middle of a generation."""
    run = tmp_path / "run"
    assert kill_at_entry(mini.command(run), run, 4)
    for path in (run / "journal").rglob("*.json"):
        entry = json.loads(path.read_text(encoding="utf-8"))
        entry["host"] = "gone"
        for event in entry["events"]:
            if "job" in event:
                event["job"] = "gone:1:1"
        path.write_text(json.dumps(entry), encoding="utf-8")
    controller = subprocess.Popen(mini.command(run), stdout=subprocess.PIPE, text=True)
    assert controller.stdout is not None
    for line in controller.stdout:
        if "its controller ran on gone; if that is gone: l2s stop" in line:
            break
    assert l2s("stop", run).returncode == 0
    assert controller.wait(30) == 3
    mini.run(run)
    assert state_of(run).completed


def test_failing_candidates_are_penalised_and_named(tmp_path: Path) -> None:
    mini = write_mini(tmp_path, scripted="faults = { error = 0.12 }")
    text = mini.run(tmp_path / "run", "search.failures=1.0")
    state = state_of(tmp_path / "run")
    assert state.penalised and state.completed
    candidate = next(iter(state.penalised))[1]
    assert f"{candidate} is given up in 'search': other: L2SError: scripted failure" in text
    for generation in state.generations:
        for objectives in generation.objectives or ():
            assert all(abs(value) < 1e9 for value in objectives)


def test_a_failing_parent_pauses_the_search(tmp_path: Path) -> None:
    mini = write_mini(tmp_path, scripted="faults = { error = 1.0 }")
    done = subprocess.run(
        mini.command(tmp_path / "run"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert "cannot be evaluated, and all is compared with it: other: L2SError" in done.stderr


def test_doctor(tmp_path: Path) -> None:
    done = l2s("doctor", "toy", "--run", tmp_path, "--json")
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert done.returncode == 0, rows
    assert rows["job"]["found"].startswith("3 compatible models")
    done = l2s("doctor", "--set", "site.python=/nowhere/python", "--run", tmp_path, "--json")
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert done.returncode == 3
    assert rows["node packages"]["result"] == "failure" and rows["node packages"]["remedy"]


def test_jobs_copy(tmp_path: Path) -> None:
    assert l2s("jobs", "copy", "toy", tmp_path).returncode == 0
    assert (tmp_path / "toy.toml").exists()
    done = l2s("jobs", "copy", "toy", tmp_path)
    assert done.returncode == 2 and "there is a file of that name already" in done.stderr


def test_a_laptop_without_the_controllers_packages(mini: Mini, tmp_path: Path) -> None:
    """Where pymoo is not installed, `plan` says what to install instead of a traceback."""
    (tmp_path / "pymoo.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'pymoo'\", name='pymoo')", encoding="utf-8"
    )
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); from l2s_hpc.cli.main import main; main()"
    )
    words = ["plan", str(mini.job), "--site", str(mini.site)]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "this verb needs pymoo" in done.stderr and "l2s-hpc[controller]" in done.stderr


@pytest.mark.slow
def test_wheel_carries_jobs_sites_and_data(tmp_path: Path) -> None:
    """Installed elsewhere, without the checkout: `l2s jobs` works and the toy models are there."""
    source = tmp_path / "source"
    for name in ("l2s_hpc", "jobs", "hpc", "data"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    _checked(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, source)
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    _checked(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel)
    # The dependencies are this environment's; the package itself must not be.
    place = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(_checked(python, "-c", place).strip())
    ours = _checked(sys.executable, "-c", place)
    (site / "dependencies.pth").write_text(ours, encoding="utf-8")
    jobs = json.loads(_checked(tmp_path / "venv" / "bin" / "l2s", "jobs", "--json", cwd=tmp_path))
    assert {"toy", "published/ta-7b"} <= {job["name"] for job in jobs}
    where = _checked(python, "-c", "import l2s_hpc; print(l2s_hpc.__file__)", cwd=tmp_path)
    assert str(site) in where
    assert (site / "l2s_hpc" / "data" / "toy" / "slow" / "model.safetensors").exists()
    assert (site / "l2s_hpc" / "hpc" / "sites" / "gpu.toml").exists()


def _checked(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
