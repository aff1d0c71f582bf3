"""What the command line says of `run --detach`, `--once`, `status --watch` and `stop`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from l2s_hpc.cli import follow
from l2s_hpc.cli.main import app
from l2s_hpc.cluster.detach import ControllerJob, ControllerJobs
from l2s_hpc.controller import status
from l2s_hpc.errors import IncompleteError, UserError
from tests.mini import write_mini
from tests.unit.test_imports import NODE, loaded

FAKES = {
    "sbatch": 'cp "$(echo "$@" | tr " " "\\n" | grep controller.sbatch)" {}/submitted; echo 77',
    "squeue": "true",
    "scancel": "true",
    "scontrol": "true",
}


def l2s(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def fault(*words: str | Path) -> str:
    found = l2s(*words).exception
    assert isinstance(found, UserError), found
    return str(found)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands that take every job and know of none."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in FAKES.items():
        command = commands / name
        command.write_text(f"#!/bin/sh\n{text.format(tmp_path)}\n", encoding="utf-8")
        command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    mini = write_mini(tmp_path, site='name = "s"\nexecutor = "slurm"\nengine = "scripted"\n')
    return ["run", mini.job.name, "--site", mini.site.name, "--run", "run"]


@pytest.mark.parametrize("both", [("detach", "once"), ("detach", "smoke"), ("once", "smoke")])
def test_what_does_not_go_together(both: tuple[str, str]) -> None:
    first, second = (f"--{name}" for name in both)
    assert fault("run", "toy", first, second).startswith(f"{first} and {second} do not go together")


def test_this_machine_takes_no_controller(tmp_path: Path) -> None:
    run = tmp_path / "run"
    text = fault("run", "toy", "--run", run, "--detach")
    assert "the site 'local' has executor = \"local\"" in text and "nohup" in text
    assert "--once needs a Slurm site" in fault("run", "toy", "--run", run, "--once")
    assert not run.exists()


def test_faults_of_the_controllers_settings_come_before_the_run(
    slurm: Path, words: list[str]
) -> None:
    text = fault(*words, "--detach", "--set", "site.controller.mail=a\nb")
    assert "cannot stand in a script of Slurm's: --mail-user='a\\nb'" in text
    assert not (slurm / "run").exists() and not (slurm / "submitted").exists()


def test_detach_prints_json_alone(slurm: Path, words: list[str]) -> None:
    done = l2s(*words, "--detach", "--json", "--set", "search.generations=2")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {
        "run": "run",
        "job": "77",
        "log": "run/logs/controller.log",
    }
    assert "l2s status run --watch" in done.stderr
    script = (slurm / "submitted").read_text(encoding="utf-8")
    assert script == (slurm / "run" / "controller.sbatch").read_text(encoding="utf-8")
    command = script.splitlines()[-1]
    assert command.endswith(
        f'run {words[1]} --site {words[3]} --run run --set search.generations=2 "$@"'
    )
    found = status.Status(slurm / "run").read()
    assert found["controller"].startswith("Slurm job 77, submitted ")
    assert found["generations"] == 2


def test_what_somebody_cancelled_is_sent_again_once_and_not_by_every_link(
    slurm: Path, words: list[str]
) -> None:
    assert l2s(*words, "--detach", "--resubmit-cancelled").exit_code == 0
    assert "resubmit" not in (slurm / "submitted").read_text(encoding="utf-8")


def standing(monkeypatch: pytest.MonkeyPatch, state: str, where: str) -> None:
    """Let job 76 be the run's controller."""
    found = [ControllerJob("76", state, where)]
    monkeypatch.setattr(ControllerJobs, "standing", lambda self: found)


def test_a_controller_that_is_there_is_named(
    slurm: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert l2s(*words, "--detach").exit_code == 0
    entries = len(list((slurm / "run" / "journal").rglob("*.json")))
    (slurm / "submitted").unlink()
    standing(monkeypatch, "pending", "Priority")
    done = l2s(*words, "--detach", "--json")
    assert json.loads(done.stdout)["job"] == "76"
    assert "is there already: job 76 (pending: Priority)" in done.stderr
    assert not (slurm / "submitted").exists()
    assert len(list((slurm / "run" / "journal").rglob("*.json"))) == entries


def test_after_a_stop_a_controller_that_is_there_still_does_not_count(
    slurm: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert l2s(*words, "--detach").exit_code == 0
    assert l2s("stop", "run").exit_code == 0
    standing(monkeypatch, "running", "n1")
    assert json.loads(l2s(*words, "--detach", "--json").stdout)["job"] == "77"


def test_a_job_that_slurm_holds_for_ever_is_replaced(
    slurm: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert l2s(*words, "--detach").exit_code == 0
    (slurm / "submitted").unlink()
    standing(monkeypatch, "stuck", "launch failed requeued held")
    cancel = f'#!/bin/sh\necho "$@" > {slurm}/cancelled\n'
    (slurm / "bin" / "scancel").write_text(cancel, encoding="utf-8")
    assert json.loads(l2s(*words, "--detach", "--json").stdout)["job"] == "77"
    assert (slurm / "submitted").exists()
    name = f"l2s-{status.Status(slurm / 'run').read()['run']}-controller"
    assert (slurm / "cancelled").read_text(encoding="utf-8") == f"--me --name={name} 76\n"


def test_a_stop_holds_for_scripts_and_not_for_people(
    slurm: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert l2s(*words, "--detach").exit_code == 0
    assert l2s("stop", "run", "--json").stdout == '{\n  "ended": 0\n}\n'
    found = l2s(*words, "--unless-stopped").exception
    assert isinstance(found, IncompleteError) and "stopped by `l2s stop`" in str(found)
    done = l2s(*words, "--once", "--unless-stopped")
    assert done.exit_code == 3 and done.output == ""
    assert status.Status(slurm / "run").read()["controller"].startswith("none: stopped")


def test_ctrl_c_ends_watch_quietly(
    slurm: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert l2s(*words, "--detach").exit_code == 0

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(follow, "watch", interrupted)
    done = l2s("status", "run", "--watch")
    assert done.exit_code == 0 and done.output == ""


def test_status_needs_no_slurm_and_little_else(slurm: Path, words: list[str]) -> None:
    assert l2s(*words, "--detach").exit_code == 0
    shutil.rmtree(slurm / "bin")
    assert l2s("status", "run").exit_code == 0
    heavy = NODE | {"polars", "pymoo", "submitit"}
    assert not loaded("l2s_hpc.controller.status", "l2s_hpc.cli.follow") & heavy
