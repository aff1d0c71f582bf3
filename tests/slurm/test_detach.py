"""The controller as a Slurm job: it goes on whatever happens to it, and ends when it is told to.

A chain of links of one minute each takes two minutes: it runs from the first test to the last.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from l2s_hpc.store.journal import Journal
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.store.run import read_run
from tests.mini import outcome, state_of, write_mini

from .cluster import Job, SlurmCluster

RECIPES = Path(__file__).parents[2] / "hpc" / "slurm"
SITE = """
name = "test"
executor = "slurm"
engine = "scripted"
partition = "main"
memory = "300M"
minutes = 5
candidates_per_task = 4
poll_seconds = 0.5
grace_seconds = 3
[controller]
memory = "300M"
minutes = 1
notify = 'echo "$L2S_EVENT $L2S_MESSAGE" >> "$L2S_RUN/heard"'
"""
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "COMPLETING")


@dataclass(frozen=True)
class Place:
    """A folder with a job and a site, in which commands are given, and a run in it.

    `delay` makes every candidate last so many seconds, by the node's environment: the tables are
    those of an undisturbed run.
    """

    slurm: SlurmCluster
    folder: Path
    name: str = "run"
    delay: float = 0.0

    @property
    def run(self) -> Path:
        return self.folder / self.name

    @property
    def log(self) -> str:
        return RunPaths(self.run).controller_log.read_text(encoding="utf-8")

    @property
    def env(self) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH"))}
        return {**clean, **self.slurm.env, "L2S_SCRIPTED": json.dumps({"delay": self.delay})}

    def search(self, *options: str) -> list[str]:
        """The command that goes on with the run, with relative paths."""
        return self.l2s("run", "mini.toml", "--site", "site.toml", "--run", self.name, *options)

    def l2s(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "l2s_hpc.cli.main", *words]

    def call(self, command: list[str], code: int = 0) -> str:
        """Run a command here; return what it printed on stdout."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def detach(self, *options: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.call(self.search("--detach", "--json", *options)))
        return found

    def jobs(self) -> list[Job]:
        """Our jobs that are not over."""
        ours = f"l2s-{read_run(self.run).id}-"
        return [j for j in self.slurm.jobs() if j.name.startswith(ours) and j.state not in OVER]

    def controllers(self) -> list[Job]:
        return [job for job in self.jobs() if job.name.endswith("-controller")]

    def tasks(self) -> list[Job]:
        return [job for job in self.jobs() if not job.name.endswith("-controller")]

    def wait_complete(self, seconds: float = 300) -> None:
        self.slurm.wait(lambda: state_of(self.run).completed, timeout=seconds)
        self.slurm.wait(lambda: not self.jobs())
        assert "Traceback" not in self.log


def new_place(slurm: SlurmCluster, folder: Path, **how: Any) -> Place:
    folder.mkdir(parents=True, exist_ok=True)
    place = Place(slurm, folder, **how)
    mini = write_mini(folder, site=SITE)
    assert (mini.job.name, mini.site.name) == ("mini.toml", "site.toml")
    return place


@pytest.fixture(scope="module", autouse=True)
def chained(slurm: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A search that lasts longer than two links of its controller; no job is left in the end."""
    place = new_place(slurm, tmp_path_factory.mktemp("chain"), delay=6)
    place.detach()
    yield place
    if not state_of(place.run).completed:  # only some of the tests were asked for
        place.call(place.l2s("stop", "run"))
    slurm.wait(lambda: [job.name for job in slurm.jobs() if job.state not in OVER] == [])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The outcome of the same search, attached, on this machine."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_mini(folder).run(folder / "run")
    return outcome(folder / "run")


def test_a_detached_run_is_that_of_an_attached_one(
    slurm: SlurmCluster, tmp_path: Path, undisturbed: dict[str, object]
) -> None:
    """In a directory whose name would do harm in a shell."""
    place = new_place(slurm, tmp_path / "a b", name="it's $(touch pwned) %j;#")
    found = place.detach()
    assert found["run"] == place.name
    assert found["job"] in {str(job.array) for job in slurm.jobs()}
    watch = subprocess.Popen(
        place.l2s("status", place.name, "--watch", "--json"),
        cwd=place.folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    place.wait_complete()
    assert outcome(place.run) == undisturbed
    watched, _ = watch.communicate(timeout=60)
    phases = [json.loads(line)["phase"] for line in watched.splitlines()]
    assert phases[0] == "search" and phases[-1] == "complete"
    assert watch.returncode == 0

    slurm.wait((place.run / "heard").exists)
    assert (place.folder / found["log"]).read_text(encoding="utf-8") == place.log
    assert "generation 3/3 done" in place.log and "Final front" in place.log
    dated = [line for line in place.log.splitlines() if re.match(r"\d{4}-\d\d-\d\d \d\d:", line)]
    assert len(dated) > 5
    heard = (place.run / "heard").read_text(encoding="utf-8").splitlines()
    assert len(heard) == 1 and heard[0].startswith("completed the search is complete:")
    assert not [path for path in tmp_path.rglob("*") if path.name == "pwned"]
    assert place.detach()["job"] is None
    assert not place.jobs()


def test_a_second_detach_and_a_stop_that_is_undone(
    slurm: SlurmCluster, tmp_path: Path, undisturbed: dict[str, object]
) -> None:
    # So long that tasks that are not ended would outlive this test.
    place = new_place(slurm, tmp_path, delay=1000)
    other = slurm.submit("--wrap", "sleep 3000", "--job-name", "l2s-somebody-else-controller")
    first = place.detach()
    assert place.detach()["job"] == first["job"]
    slurm.wait(
        lambda: [j.state for j in place.jobs() if "controller" not in j.name] == ["RUNNING"] * 2
    )
    assert len(place.controllers()) == 1
    status = json.loads(place.call(place.l2s("status", "run", "--json")))
    assert status["controller"].startswith(f"Slurm job {first['job']} on ")

    assert json.loads(place.call(place.l2s("stop", "run", "--json"))) == {"ended": 1}
    slurm.wait(lambda: not place.jobs())
    assert slurm.states(other) == ["RUNNING"]
    assert "Traceback" not in place.log
    status = json.loads(place.call(place.l2s("status", "run", "--json")))
    assert status["controller"].startswith("none: stopped by `l2s stop`")

    place = Place(slurm, tmp_path)
    again = place.detach()
    assert again["job"] != first["job"]
    place.wait_complete()
    assert slurm.states(other) == ["RUNNING"]
    slurm.cancel(other)
    assert outcome(place.run) == undisturbed


def test_a_controller_that_is_killed_and_requeued(
    slurm: SlurmCluster, tmp_path: Path, undisturbed: dict[str, object]
) -> None:
    place = new_place(slurm, tmp_path, delay=1)
    first = place.detach()
    # Its successor stands after a tenth of its time; kill -9 takes the link.
    slurm.wait(lambda: len(place.controllers()) == 2, timeout=60)
    beat = json.loads(RunPaths(place.run).heartbeat.read_text(encoding="utf-8"))
    assert beat["job"] == first["job"]
    os.kill(beat["pid"], signal.SIGKILL)
    second = next(job for job in place.controllers() if str(job.array) != first["job"])
    slurm.wait(lambda: slurm.states(second.array) == ["RUNNING"], timeout=60)
    slurm.wait(lambda: f"job {second.array} is the controller" in place.log)

    slurm.requeue(second.array)
    again = f"job {second.array} is the controller, started again (1)"
    slurm.wait(lambda: again in place.log or state_of(place.run).completed, timeout=60)
    assert again in place.log
    place.wait_complete()
    assert outcome(place.run) == undisturbed


def test_a_link_in_the_queue_does_not_undo_a_stop(slurm: SlurmCluster, tmp_path: Path) -> None:
    """As when slurmctld was away when `l2s stop` wanted to cancel it."""
    place = new_place(slurm, tmp_path)
    job = place.detach("--set", "site.controller.sbatch.begin=now+1hour")["job"]
    status = json.loads(place.call(place.l2s("status", "run", "--json")))
    assert status["controller"].startswith(f"Slurm job {job}, submitted ")
    journal = Journal(RunPaths(place.run).journal)
    journal.refresh()
    assert journal.append([{"event": "stopped"}])
    slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now")
    slurm.wait(lambda: slurm.states(int(job)) == ["FAILED"])
    assert "stopped by `l2s stop`" in place.log
    assert state_of(place.run).stopped and not state_of(place.run).batches
    assert not (place.run / "heard").exists()


def test_a_refused_controller_leaves_nothing_behind(slurm: SlurmCluster, tmp_path: Path) -> None:
    place = new_place(slurm, tmp_path)
    place.call(place.search("--detach", "--set", "site.controller.partition=nonsense"), code=2)
    assert not place.jobs()
    place.call(place.search("--detach", "--set", "site.controller.mail=a\nb"), code=2)
    assert not place.run.joinpath("controller.sbatch").read_text(encoding="utf-8").count("mail")


def filled_in(name: str, place: Place) -> str:
    """A recipe of hpc/slurm with its placeholders filled in; it is given with others to RUN."""
    sbatch = place.call(["sh", "-c", "command -v sbatch"]).strip()
    text = (RECIPES / name).read_text(encoding="utf-8")
    for old, new in {
        "/path/to/project": str(place.folder),
        "/path/to/slurm/bin": str(Path(sbatch).parent),
        "/path/to/l2s": f"{sys.executable} -m l2s_hpc.cli.main",
        "SITE.toml": "site.toml",
        " JOB ": " mini.toml ",
        "results/RUN": "run",
        "RUN": "run",
        "--mem=2G": "--mem=300M",
    }.items():
        text = text.replace(old, new)
    assert "/path/to" not in text
    return text


def cron_command(text: str) -> str:
    """The command of the last line of a crontab."""
    fields = text.splitlines()[-1].split(maxsplit=5)
    assert fields[:5] == ["*/10", "*", "*", "*", "*"] and "%" not in fields[5]
    return fields[5]


def test_the_crontab_line(
    slurm: SlurmCluster, tmp_path: Path, undisturbed: dict[str, object]
) -> None:
    """With as few environment variables as cron gives."""
    place = new_place(slurm, tmp_path)
    command = cron_command(filled_in("crontab", place).replace("/path/to/slurm/bin:", ""))
    env = {"HOME": "/", "PATH": "/usr/bin:/bin", "SLURM_CONF": slurm.env["SLURM_CONF"]}
    said = []
    for _ in range(200):
        done = subprocess.run(
            ["/bin/sh", "-c", command], env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode in (0, 3), done.stderr
        if done.returncode == 0:
            break
        said.append(done.stdout + done.stderr)
        time.sleep(0.5)
    assert len(said) >= 4 and set(said) == {""}
    assert "Final front" in done.stdout
    assert outcome(place.run) == undisturbed
    done = subprocess.run(["/bin/sh", "-c", command], env=env, capture_output=True, check=True)
    assert done.stdout + done.stderr == b""


def test_cron_does_not_undo_a_stop(slurm: SlurmCluster, tmp_path: Path) -> None:
    place = new_place(slurm, tmp_path, delay=60)
    look = place.search("--once", "--unless-stopped")
    place.call(look, code=3)
    place.call(place.l2s("stop", "run"))
    entries = len(list((place.run / "journal").rglob("*.json")))
    assert place.call(look, code=3) == ""
    assert len(list((place.run / "journal").rglob("*.json"))) == entries
    slurm.wait(lambda: not place.jobs())


def test_cron_says_a_pause_once(slurm: SlurmCluster, tmp_path: Path) -> None:
    place = new_place(slurm, tmp_path)
    refused = place.search("--once", "--set", "site.partition=nonsense")
    place.call(refused, code=2)
    assert place.call(refused, code=3) == ""
    heard = (place.run / "heard").read_text(encoding="utf-8").splitlines()
    assert len([line for line in heard if line.startswith("paused Slurm refused the job")]) == 1
    assert not place.jobs()


def test_the_scrontab_lines(slurm: SlurmCluster, tmp_path: Path) -> None:
    """Slurm's scrontab is not part of Debian: its options are given to sbatch."""
    place = new_place(slurm, tmp_path)
    text = filled_in("scrontab", place)
    options = [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("#SCRON")]
    assert len(options) >= 5
    words = [word for line in options for word in line]
    job = slurm.submit(*words, "--wrap", cron_command(text))
    slurm.wait(lambda: slurm.states(job) in (["COMPLETED"], ["FAILED"]))
    assert slurm.states(job) == ["COMPLETED"]
    assert state_of(place.run).batches
    place.call(place.l2s("stop", "run"))
    slurm.wait(lambda: not place.jobs())


def test_a_controller_of_ones_own_making(
    slurm: SlurmCluster, tmp_path: Path, undisturbed: dict[str, object]
) -> None:
    place = new_place(slurm, tmp_path, delay=0.5)
    text = filled_in("controller.sbatch", place).replace("1-30%1", "1-3%1")
    (place.folder / "own.sbatch").write_text(text, encoding="utf-8")
    array = int(place.call(["sbatch", "--parsable", "own.sbatch"]))
    log = place.folder / "l2s-run.log"
    slurm.wait(lambda: place.run.exists() and bool(state_of(place.run).accepted))
    place.call(["scancel", f"{array}_1"])  # as its time limit would
    slurm.wait(lambda: set(slurm.states(array)) <= set(OVER), timeout=300)
    text = log.read_text(encoding="utf-8")
    assert "interrupted by SIGTERM" in text and "Traceback" not in text
    assert text.count("Final front") == 1 and text.count("The run is complete") == 1
    assert outcome(place.run) == undisturbed
    assert not place.jobs()


def test_a_chain_of_links(chained: Place, undisturbed: dict[str, object]) -> None:
    chained.wait_complete()
    assert outcome(chained.run) == undisturbed
    links = re.findall(r"job (\d+) is the controller", chained.log)
    assert len(links) >= 3 and len(set(links)) == len(links)
    promised = re.findall(r"job (\d+) goes on when this one, job (\d+), ends", chained.log)
    assert {(after, before) for before, after in itertools.pairwise(links)} <= set(promised)
    heard = (chained.run / "heard").read_text(encoding="utf-8").splitlines()
    assert len(heard) == 1 and heard[0].startswith("completed")
