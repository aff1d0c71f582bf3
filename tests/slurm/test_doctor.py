"""`l2s doctor` on a real cluster: what fits, what does not, and what a node says."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from l2s_hpc.config import SiteConfig, load_site
from l2s_hpc.doctor import Check, examine
from tests.mini import write_mini

from .cluster import Job, SlurmCluster

SITE = """
name = "test"
executor = "slurm"
partition = "main"
memory = "300M"
minutes = 5
grace_seconds = 5
"""
pytestmark = pytest.mark.usefixtures("on_cluster")
Rows = dict[str, dict[str, str]]
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "COMPLETING")


@pytest.fixture
def place(slurm: SlurmCluster, tmp_path: Path) -> Iterator[Path]:
    """Where runs are to be kept; nothing of a probe may be left there or in the queue."""
    folder = tmp_path / "runs"
    folder.mkdir()
    yield folder
    assert not list(folder.iterdir())
    assert not [job.name for job in _live(slurm) if job.name.startswith("l2s")]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    path = tmp_path / "site.toml"
    path.write_text(SITE, encoding="utf-8")
    return path


def command(site: Path, place: Path, *settings: str, wait: float = 100) -> list[str]:
    base = [sys.executable, "-m", "l2s_hpc.cli.main", "doctor", "--site", str(site)]
    options = [part for setting in settings for part in ("--set", f"site.{setting}")]
    return [*base, "--run", str(place), "--probe", "--wait", str(wait), "--json", *options]


def doctor(site: Path, place: Path, *settings: str, wait: float = 100) -> tuple[int, Rows, str]:
    """Run doctor with a probe; return its exit code, its rows by name, and what it said."""
    # A job begins where it was submitted, and Python finds what lies there: not this checkout.
    done = subprocess.run(
        command(site, place, *settings, wait=wait),
        capture_output=True,
        text=True,
        check=False,
        cwd=place.parent,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, {row["name"]: row for row in json.loads(done.stdout)}, done.stderr


def failures(site: SiteConfig, place: Path) -> dict[str, str]:
    """Examine without a job of any kind; return what failed, and that each has its remedy."""
    found = [check for check in examine(None, site, place) if check.result == "failure"]
    assert all(check.remedy for check in found)
    return {check.name: check.found for check in found}


def test_a_good_site(slurm: SlurmCluster, site: Path, place: Path) -> None:
    code, rows, said = doctor(site, place)
    assert code == 0, _failed(rows)
    assert {row["result"] for row in rows.values()} <= {"ok", "warning"}
    assert rows["probe job"]["found"].startswith("ran on n")
    assert rows["partition"]["found"] == "main: UP"
    assert rows["time limit"]["found"] == "site.minutes = 5, main allows 2-00:00:00"
    assert rows["nodes"]["found"].startswith("4 of 4 nodes can take a task")
    assert rows["accounting"]["found"] == "no accounting: receipts decide"
    assert rows["sbatch"]["found"].startswith("Slurm takes a task")
    assert "the same source as here" in rows["node l2s_hpc"]["found"]
    assert "torch" in rows["node packages"]["found"] and "vllm" in rows["node packages"]["found"]
    assert rows["visibility"]["result"] == rows["node clock"]["result"] == "ok"
    assert rows["shared disk"]["result"] == "ok" and "GB free" in rows["node scratch"]["found"]
    assert "is submitted" in said


def test_python_of_several_words_and_setup_lines(site: Path, place: Path) -> None:
    """As with Apptainer: the interpreter is a command, and setup lines come before it."""
    wrapped = f"python = 'env X=1 {sys.executable}'"
    setup = f'setup = ["export TMPDIR={place.parent}"]'
    site.write_text(f"{SITE}{wrapped}\n{setup}\n", encoding="utf-8")
    code, rows, _ = doctor(site, place)
    assert code == 0, _failed(rows)
    assert rows["node scratch"]["found"].startswith(f"{place.parent} (TMPDIR)")


def test_a_python_without_our_package(site: Path, place: Path) -> None:
    code, rows, _ = doctor(site, place, "python=/usr/bin/python3 -S", "grace_seconds=1")
    assert code == 3
    assert "No module named" in rows["probe job"]["found"]
    assert "site.python" in rows["probe job"]["remedy"]


@pytest.mark.parametrize(
    ("setting", "name", "found"),
    [
        ("partition=nonsense", "partition", "no partition 'nonsense'; there are: main, urgent"),
        ("minutes=3000", "time limit", "site.minutes = 3000, main allows 2-00:00:00"),
        ("account=a b;c", "account", "site.account = 'a b;c' is no name"),
        ("gres=gpu:1", "nodes", "no node has gpu:1 (site.gres)"),
        ("memory=64G", "nodes", "no node has 64G of memory (site.memory)"),
        ("constraint=fast", "sbatch", "Slurm refuses a task: allocation failure: Invalid feature"),
    ],
)
def test_what_does_not_fit(setting: str, name: str, found: str, site: Path, place: Path) -> None:
    # The interpreter is not asked: this is about Slurm.
    failed = failures(load_site(site, [setting, "python=/bin/true"]), place)
    assert failed.get(name, "").startswith(found), failed


def test_a_partition_for_others(slurm: SlurmCluster, site: Path, place: Path) -> None:
    """Slurm itself takes such jobs from root, and from others where it does not enforce limits."""
    slurm.run("scontrol", "create", "partition=vip", "Nodes=n1", "AllowAccounts=proj", "MaxTime=3")
    try:
        chosen = load_site(site, ["partition=vip", "account=mine", "python=/bin/true"])
        failed = failures(chosen, place)
        assert failed["account"] == "vip takes only proj, and site.account = 'mine'"
        assert "vip allows 00:03:00" in failed["time limit"]
        slurm.run("scontrol", "update", "partition=vip", "State=DOWN")
        assert failures(chosen, place)["partition"] == "vip is DOWN"
    finally:
        slurm.run("scontrol", "delete", "partition=vip")


def test_no_probe_is_sent_where_it_cannot_run(slurm: SlurmCluster, site: Path, place: Path) -> None:
    code, rows, said = doctor(site, place, "partition=nonsense")
    assert code == 3 and rows["probe job"]["found"] == "not sent: see the failures above"
    assert "submitted" not in said


def test_the_controller_does_not_answer(slurm: SlurmCluster, site: Path, place: Path) -> None:
    slurm.stop_controller()
    try:
        failed = failures(load_site(site, ["python=/bin/true"]), place)
    finally:
        slurm.start_controller()
    assert "Unable to contact slurm controller" in failed["Slurm"]


def test_accounts_qos_and_their_database(
    slurm_with_accounting: SlurmCluster,
    site: Path,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = slurm_with_accounting
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)

    def look(*settings: str) -> dict[str, Check]:
        chosen = load_site(site, [*settings, "python=/bin/true"])
        return {check.name: check for check in examine(None, chosen, place)}

    found = look("account=test", "qos=normal")
    # Slurm gives root an account of its own.
    assert found["accounting"].found.endswith("test; QOS: normal")
    assert found["QOS limits"].result == found["sbatch"].result == "ok"
    found = look("account=other")
    assert found["accounting"].found.startswith("you have no account 'other'; yours: ")
    assert found["accounting"].result == found["sbatch"].result == "failure"
    assert found["sbatch"].remedy == "see site.account and site.partition"
    found = look("qos=huge")
    assert found["accounting"].found == "QOS 'huge' is not among yours: normal"
    assert found["QOS limits"].found == "there is no QOS 'huge'"
    cluster.limit_submits(7)
    try:
        assert "set site.max_jobs to 7" in look("qos=normal")["QOS limits"].remedy
        assert look("qos=normal", "max_jobs=7")["QOS limits"].result == "ok"
    finally:
        cluster.limit_submits(None)
    cluster.stop_accounting()
    try:
        found = look("account=test")
        assert found["accounting"].result == "warning" and found["sbatch"].result == "ok"
        assert "receipts decide" in found["accounting"].remedy
    finally:
        cluster.start_accounting()


@pytest.fixture
def full(slurm: SlurmCluster) -> Iterator[None]:
    """A cluster on which nothing starts, because others use all of it."""
    others = [slurm.submit("--exclusive", "--wrap", "sleep 3000") for _ in slurm.nodes]
    slurm.wait(lambda: all(slurm.states(job) == ["RUNNING"] for job in others))
    yield
    for job in others:
        slurm.cancel(job)
    slurm.wait(lambda: not _live(slurm))


def test_a_probe_that_does_not_start_in_time(full: None, site: Path, place: Path) -> None:
    # Slurm may need some seconds to tell why a job waits: doctor asks more than once.
    code, rows, said = doctor(site, place, wait=12)
    assert code == 3
    assert "no answer in 12 s" in rows["probe job"]["found"]
    assert "waits in the queue" in rows["probe job"]["found"]
    assert "waits in the queue (Resources)" in said or ("(Priority)" in said and "s left" in said)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_probe_that_the_user_interrupts(
    number: signal.Signals, full: None, slurm: SlurmCluster, site: Path, place: Path
) -> None:
    process = subprocess.Popen(
        command(site, place), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    slurm.wait(lambda: any(job.name.startswith("l2s-probe") for job in _live(slurm)))
    time.sleep(1)
    process.send_signal(number)
    output, said = process.communicate(timeout=60)
    assert process.returncode == 3 and "interrupted" in said and not output


def test_a_probe_of_plan_that_the_user_interrupts(slurm: SlurmCluster, tmp_path: Path) -> None:
    """It is a run in a folder of its own, with which nobody goes on."""
    mini = write_mini(tmp_path, SITE + 'engine = "scripted"\n', "delay = 1000")
    words = ["plan", mini.job, "--site", mini.site, "--run", tmp_path / "run", "--probe"]
    process = subprocess.Popen(
        [sys.executable, "-m", "l2s_hpc.cli.main", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    slurm.wait(lambda: [job.state for job in _live(slurm)] == ["RUNNING"])
    process.send_signal(signal.SIGINT)
    output, said = process.communicate(timeout=60)
    assert process.returncode == 3 and "interrupted" in said and not output
    slurm.wait(lambda: not _live(slurm))


def _live(slurm: SlurmCluster) -> list[Job]:
    return [job for job in slurm.jobs() if job.state not in OVER]


def _failed(rows: Rows) -> list[dict[str, str]]:
    return [row for row in rows.values() if row["result"] == "failure"]
