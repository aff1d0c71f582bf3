"""Twenty minutes of bad luck: searches on a real cluster, and a random fault every few seconds.

    python bench/soak.py [--minutes 20] [--seed 1]

Needs Debian's Slurm (`apt install munge slurmctld slurmd slurm-client`) and the tests' folder. One
search after another runs until the time is up; each must come to what it comes to undisturbed.
Prints a table; ends with exit code 1 if a search came to anything else.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests import mini
from tests.mini import outcome
from tests.slurm.cluster import Job, SlurmCluster
from tests.slurm.faults import Lab, l2s, make_lab
from tests.slurm.processes import ClusterError

SITE = """
name = "soak"
executor = "slurm"
engine = "scripted"
memory = "300M"
minutes = 5
candidates_per_task = 2
poll_seconds = 0.5
grace_seconds = 5
attempts = 10
node_faults = 5
resubmit_cancelled = 1000
disk_seconds = 60
"""
PAUSE = (2.0, 6.0)  # seconds between two faults


class Soak:
    """One search, and what can befall it."""

    def __init__(self, lab: Lab, draw: random.Random) -> None:
        self.lab = lab
        self.slurm = lab.slurm
        self.draw = draw
        self.faults: Counter[str] = Counter()
        self.controller = lab.begin()
        self.repairs: list[tuple[float, Callable[[], object]]] = []

    def disturb(self) -> None:
        """One fault; what does not apply at the moment is not counted."""
        kinds: list[Callable[[], bool]] = [
            self.kill_controller,
            self.freeze_controller,
            self.second_controller,
            self.kill_task,
            self.requeue_task,
            self.hold_task,
            self.cancel_task,
            self.cancel_array,
            self.preempt_node,
            self.kill_node,
            self.drain_node,
            self.stop_slurmctld,
            self.kill_slurmctld,
            self.damage_table,
            self.damage_receipt,
        ]
        kind = self.draw.choice(kinds)
        with contextlib.suppress(ClusterError, subprocess.TimeoutExpired, FileNotFoundError):
            if kind():
                self.faults[kind.__name__.replace("_", " ")] += 1

    def repair(self, everything: bool = False) -> None:
        """Mend what has been broken for long enough."""
        for repair in list(self.repairs):
            if everything or time.monotonic() >= repair[0]:
                self.repairs.remove(repair)
                try:
                    repair[1]()
                except ClusterError:  # slurmctld is away, too: a little later
                    self.later(2, repair[1])

    def keep_going(self) -> bool:
        """Start the controller again where it has ended; False when the search is complete."""
        code = self.controller.poll()
        if code is None:
            return True
        text, _ = self.controller.communicate()
        if code == 0:
            return False
        if code not in (-signal.SIGKILL, 3):
            raise SystemExit(f"the controller ended with {code}:\n{text}")
        self.controller = self.lab.begin()
        return True

    def kill_controller(self) -> bool:
        self.controller.send_signal(signal.SIGKILL)
        return True

    def freeze_controller(self) -> bool:
        frozen = self.controller
        frozen.send_signal(signal.SIGSTOP)
        self.later(self.draw.uniform(2, 8), lambda: frozen.send_signal(signal.SIGCONT))
        return True

    def second_controller(self) -> bool:
        other = self.lab.begin()
        self.later(self.draw.uniform(3, 9), lambda: (other.kill(), other.communicate()))
        return True

    def kill_task(self) -> bool:
        job = self.running()
        processes = self.slurm.tasks(job.id) if job else []
        for process in processes:
            process.send(signal.SIGKILL)
        return bool(processes)

    def requeue_task(self) -> bool:
        return self.with_task("scontrol", "requeue")

    def hold_task(self) -> bool:
        """What a failed launch leaves: a job that is queued again and held."""
        job = self.running()
        if job is None:
            return False
        self.slurm.run("scontrol", "requeuehold", job.id)
        self.later(5, partial(self.undo, "scontrol", "release", job.id))
        return True

    def cancel_task(self) -> bool:
        return self.with_task("scancel")

    def cancel_array(self) -> bool:
        job = self.running()
        if job is not None:
            self.slurm.cancel(job.array)
        return job is not None

    def preempt_node(self) -> bool:
        job = self.running()
        if job is None:
            return False
        urgent = self.slurm.preempt(job.node)
        self.later(4, partial(self.undo, "scancel", str(urgent)))
        return True

    def kill_node(self) -> bool:
        node = self.draw.choice(self.slurm.nodes)
        if node not in self.slurm.daemons or len(self.slurm.daemons) < len(self.slurm.nodes):
            return False
        self.slurm.kill_node(node)
        self.later(self.draw.uniform(4, 20), lambda: self.slurm.start_node(node))
        return True

    def drain_node(self) -> bool:
        node = self.draw.choice(self.slurm.nodes)
        self.slurm.drain(node)
        self.later(5, lambda: self.slurm.resume(node))
        return True

    def stop_slurmctld(self) -> bool:
        if "slurmctld" not in self.slurm.daemons:
            return False
        self.slurm.stop_controller()
        self.later(self.draw.uniform(2, 15), self.slurm.start_controller)
        return True

    def kill_slurmctld(self) -> bool:
        if "slurmctld" not in self.slurm.daemons:
            return False
        self.slurm.kill_controller()
        self.later(self.draw.uniform(1, 8), self.slurm.start_controller)
        return True

    def damage_table(self) -> bool:
        return self.damage("scores.parquet")

    def damage_receipt(self) -> bool:
        return self.damage("receipt.json")

    def damage(self, name: str) -> bool:
        """Flip a bit of a file that a live attempt has left."""
        live = list(self.lab.state().live_attempts())
        files = [p for a in live if (p := self.lab.paths(a).folder / name).exists()]
        for path in files[:1]:
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 4
            path.write_bytes(data)
        return bool(files)

    def with_task(self, *command: str) -> bool:
        job = self.running()
        if job is not None:
            self.slurm.run(*command, job.id)
        return job is not None

    def undo(self, *command: str) -> None:
        """Run a command of Slurm's that may come too late, but must get through."""
        done = self.slurm.run(*command, check=False)
        if "Unable to contact" in done.stderr:
            raise ClusterError(done.stderr)

    def running(self) -> Job | None:
        """A task of the search that runs now; None where there is none."""
        jobs = [job for job in self.lab.jobs() if job.state == "RUNNING"]
        return self.draw.choice(jobs) if jobs else None

    def later(self, seconds: float, repair: Callable[[], object]) -> None:
        self.repairs.append((time.monotonic() + seconds, repair))


def search(lab: Lab, draw: random.Random, until: float) -> tuple[Counter[str], bool]:
    """Run one search, with faults until the time is up; return them, and whether it came out."""
    soak = Soak(lab, draw)
    next_fault = time.monotonic() + 4
    while soak.keep_going():
        soak.repair(everything=time.monotonic() > until)
        if next_fault < time.monotonic() < until:
            soak.disturb()
            next_fault = time.monotonic() + draw.uniform(*PAUSE)
        time.sleep(0.2)
    soak.repair(everything=True)
    lab.check()
    l2s("verify", str(lab.run), env=lab.env)
    return soak.faults, outcome(lab.run) == lab.expected


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    begun = time.monotonic()
    until = begun + 60 * arguments.minutes
    faults: Counter[str] = Counter()
    rows: list[tuple[int, int, int, int]] = []
    job = mini.JOB
    with (
        tempfile.TemporaryDirectory(prefix="soak-", dir="/tmp") as folder,
        SlurmCluster(Path(folder) / "c") as cluster,
    ):
        while time.monotonic() < until:
            number = len(rows)
            mini.JOB = job.replace("seed = 3", f"seed = {3 + number}").replace(
                "generations = 3", "generations = 8"
            )
            node = {"delay": 1.0}
            lab = make_lab(cluster, Path(folder) / f"search-{number}", site=SITE, node=node)
            found, equal = search(lab, draw, until)
            if not equal:
                raise SystemExit(f"search {number} came to something else")
            faults += found
            attempts = lab.attempts()
            accepted = sum(a.outcome == "accepted" for a in attempts)
            rows.append((number, sum(found.values()), len(attempts), accepted))
            print(f"search {number}: {rows[-1]}", file=sys.stderr, flush=True)
    show(rows, faults, time.monotonic() - begun)


def show(rows: list[tuple[int, int, int, int]], faults: Counter[str], seconds: float) -> None:
    """Print what befell the searches, as Markdown."""
    print("| fault | times |\n|---|---|")
    for kind, times in sorted(faults.items()):
        print(f"| {kind} | {times} |")
    print(f"| all | {sum(faults.values())} |\n")
    print(
        "| search | faults | attempts | accepted tables | as undisturbed |\n|---|---|---|---|---|"
    )
    for number, found, attempts, accepted in rows:
        print(f"| {number + 1} | {found} | {attempts} | {accepted} | yes |")
    print(f"\n{len(rows)} searches in {seconds / 60:.1f} minutes.")


if __name__ == "__main__":
    main()
