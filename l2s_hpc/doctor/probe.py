"""The probe job: one small job with a task's flags, that says what a node sees."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from l2s_hpc.cluster.jobs import never_runs
from l2s_hpc.cluster.watch import Row, query, run_slurm
from l2s_hpc.config import SiteConfig
from l2s_hpc.doctor.check import Check, failure, ok
from l2s_hpc.doctor.script import script
from l2s_hpc.doctor.verdict import Answer, verdicts
from l2s_hpc.errors import DamageError, L2SError, Unreachable
from l2s_hpc.store.files import read_json, write_json

Say = Callable[[str], None]

_MINUTES = 10
_LOOK_SECONDS = 0.25
_ASK_SECONDS = 3.0
_END_SECONDS = 10.0


class Probe:
    """A probe job from its submission to its removal.

    Use it in a `with` block: at its end, whatever happened, the job is gone from Slurm's queue (or
    told to end) and the folder is removed.
    """

    def __init__(self, site: SiteConfig, place: Path, say: Say) -> None:
        self._site = site
        self._say = say
        self._nonce = secrets.token_hex(8)
        self.name = f"l2s-probe-{self._nonce}"
        self.folder = place / f".{self.name}"
        self._job = ""
        self._hello = self._reply = 0.0
        self._answered = False
        self._state: Row | None = None

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_: object) -> None:
        if self._job:
            self._end()
        deadline = time.monotonic() + _END_SECONDS
        shutil.rmtree(self.folder, ignore_errors=True)
        # On NFS a file that a process still holds open keeps its folder alive for a while.
        while self.folder.exists() and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)
            shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.exists():
            self._say(f"could not remove {self.folder}: remove it by hand")

    def submit(self) -> None:
        """Write a file for the node to find, and submit the job right after it.

        Raises:
            Unreachable: sbatch failed; the message holds its text.
        """
        self.folder.mkdir(parents=True)
        path = self.folder / "probe.sh"
        of_site = [self._site.device, self._site.scratch]
        module = ["l2s_hpc.task.probe", str(self.folder), self._nonce, *of_site]
        path.write_text(script(self._site, self.name, self.folder, module), encoding="utf-8")
        write_json(self.folder / "login.json", {"nonce": self._nonce})
        # Options on the command line win over those in the text.
        log = f"--output={self.folder}/log.txt"
        limit = f"--time={min(self._site.minutes, _MINUTES)}"
        # Set before sbatch: whatever interrupts it, a job of this name is looked for and ended.
        self._job = self.name
        answer = run_slurm(
            ["sbatch", "--parsable", limit, log, f"--error={self.folder}/log.txt", str(path)]
        )
        self._job = answer.strip().partition(";")[0]
        self._say(f"probe job {self._job} ({self.name}) is submitted")

    def wait(self, seconds: float) -> Answer:
        """Wait for the node's answer, and say meanwhile what is waited for.

        Raises:
            L2SError: it did not come in time, or the job ended without it.
        """
        deadline = time.monotonic() + seconds
        asked, ended = 0.0, 0.0
        while True:
            answer = self._look()
            if answer is not None:
                return answer
            now = time.monotonic()
            if ended and now > ended + self._site.grace_seconds:
                raise self._silent()
            if now > deadline:
                raise self._late(seconds)
            if now >= asked + _ASK_SECONDS:
                asked = now
                ended = ended or (now if self._over() else 0.0)
                self._say(self._status(deadline - now))
            time.sleep(_LOOK_SECONDS)

    def _look(self) -> Answer | None:
        """Read what the node has written; answer its first file at once."""
        names = {path.name for path in self.folder.iterdir()}
        if "hello.json" in names and not self._reply:
            self._hello = time.time()
            self._reply = time.time()
            write_json(self.folder / "reply.json", {"nonce": self._nonce})
        if "node.json" not in names:
            return None
        try:
            node = read_json(self.folder / "node.json")
        except (OSError, DamageError):
            return None
        self._answered = True
        return Answer(node, self._hello, self._reply)

    def _over(self) -> bool:
        """Ask Slurm how the job fares; an outage tells nothing."""
        try:
            rows = query([self.name])
        except Unreachable as error:
            self._say(error.message)
            return False
        self._state = rows[-1] if rows else None
        return self._state is None or not self._state.alive

    def _status(self, left: float) -> str:
        row = self._state
        if row is None:
            return f"job {self._job} is not in the queue; {left:.0f} s left"
        if row.state == "PENDING":
            why = never_runs(row.reason)
            hint = f": {why}" if why else ""
            return f"job {self._job} waits in the queue ({row.reason}{hint}); {left:.0f} s left"
        where = f" on {row.node}" if row.node else ""
        seen = "it has said hello" if self._reply else "nothing from it is seen here yet"
        return f"job {self._job} is {row.state}{where}, {seen}; {left:.0f} s left"

    def _silent(self) -> L2SError:
        state = f"{self._state.state} on {self._state.node}" if self._state else "gone"
        log = self._log()
        if log:
            return L2SError(
                f"the job is {state} and left no result; the end of its log: {log}",
                hint="see site.python and site.setup: the nodes must be able to import l2s_hpc",
            )
        return L2SError(
            f"the job is {state}, and nothing that it wrote is seen here",
            hint=f"is {self.folder.parent} on a disk that nodes and login node share?",
        )

    def _late(self, seconds: float) -> L2SError:
        status = self._status(0).rpartition(";")[0]
        hint = "wait longer with --wait SECONDS, or see `squeue --me --start`"
        return L2SError(f"no answer in {seconds:g} s: {status}; it is cancelled", hint=hint)

    def _log(self) -> str:
        try:
            text = (self.folder / "log.txt").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return " | ".join(text.strip().splitlines()[-3:])[-600:]

    def _end(self) -> None:
        """End the job by its name; one that has answered gets a moment to end by itself."""
        deadline = time.monotonic() + (_END_SECONDS if self._answered else 0)
        try:
            while not (over := self._over()) and time.monotonic() < deadline:
                time.sleep(_LOOK_SECONDS)
            # Where sbatch was interrupted, a job may show up that nobody has heard of.
            if not over or self._job == self.name:
                run_slurm(["scancel", "--me", f"--name={self.name}"])
        except Unreachable as error:
            self._say(f"{error.message}: end it yourself: scancel --name={self.name}")


def probe_checks(site: SiteConfig, place: Path, wait: float, say: Say) -> Iterator[Check]:
    """Send the probe job and yield what came of it, one check for each thing it looked at.

    Args:
        site: the site.
        place: the folder, shared with the nodes, in which the job gets a folder of its own.
        wait: how many seconds to wait for it, its time in the queue included.
        say: told what is waited for.
    """
    with Probe(site, place, say) as probe:
        try:
            probe.submit()
            answer = probe.wait(wait)
        except L2SError as error:
            yield failure("probe job", error.message, error.hint or "see the checks above")
            return
    yield ok("probe job", f"ran on {answer.node['host']} as job {answer.node['job']}")
    yield from verdicts(site, answer)
