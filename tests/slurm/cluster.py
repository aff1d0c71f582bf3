"""A private Slurm cluster on this machine, for tests that must not be fooled by a mock.

    with SlurmCluster(tmp_path) as slurm:
        job = slurm.submit("--array=0-2", "--wrap", "echo $SLURM_ARRAY_TASK_ID")
        slurm.wait(lambda: slurm.states(job) == ["COMPLETED"] * 3)

munged, slurmctld and one slurmd per node run in the foreground, listen on 127.0.0.1 only, and keep
every file below one folder; any number of clusters run side by side.  The fault verbs
(`kill_node`, `kill_controller`, ...) do to the cluster what a bad night does to a real one.

Needs Debian's munge, slurmctld, slurmd and slurm-client (22.05 or later), as root or as an
ordinary user.  There is no accounting: `squeue` and `scontrol` forget a job some time after
`min_job_age`, and `sacct` fails.  If Python itself is killed, its daemons stay.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final

COMMANDS: Final = (
    "munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sinfo",
)  # fmt: skip
LOOPBACK: Final = "127.0.0.1"
NO_VARIABLES: Final[Mapping[str, str]] = MappingProxyType({})
POLL: Final = 0.1  # seconds between two looks
TERM_GRACE: Final = 5.0  # seconds between SIGTERM and SIGKILL
SAVE_DELAY: Final = 6.0  # slurmctld may keep a change in memory for 5 s
# What `parse_job` reads; the name comes last, for it may hold anything.
SQUEUE_FIELDS: Final = (
    "JobID", "ArrayJobID", "ArrayTaskID", "State", "Reason", "NodeList", "RestartCnt", "Name",
)  # fmt: skip
# Variables of an outer job or of the user's habits would steer the commands under test.
CLIENT_PREFIXES: Final = (
    "SLURM", "SBATCH", "SQUEUE", "SCANCEL", "SCONTROL", "SINFO", "SACCT", "SALLOC", "SRUN",
)  # fmt: skip
# Debian keeps daemons where an ordinary user's PATH does not look.
SEARCH_PATH: Final = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


class ClusterError(RuntimeError):
    """The cluster did not do what was asked; the message carries the evidence."""


def missing_commands() -> list[str]:
    """The commands of Slurm and MUNGE that this machine lacks."""
    return [name for name in COMMANDS if shutil.which(name, path=SEARCH_PATH) is None]


@dataclass(frozen=True)
class Job:
    """One row of `squeue -r`: a job, or one element of an array."""

    raw: int  # what Slurm counts; a pending element still has its array's
    array: int  # what sbatch printed
    index: int | None  # the element; None: not an array
    state: str
    reason: str
    node: str
    restarts: int
    name: str

    @property
    def id(self) -> str:
        """The id that scontrol and scancel take: `123`, or `123_4` for an element."""
        return str(self.array) if self.index is None else f"{self.array}_{self.index}"


@dataclass(frozen=True)
class Process:
    """A process, told apart from a later one with the same pid by its kernel start time."""

    pid: int
    start: int  # clock ticks after boot

    @classmethod
    def find(cls, pid: int) -> Process | None:
        """The live process with this pid; a zombie is not alive."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        fields = stat.rpartition(")")[2].split()  # the name before it may hold spaces and ")"
        return None if fields[0] in "ZX" else cls(pid, int(fields[19]))

    def alive(self) -> bool:
        return Process.find(self.pid) == self

    def send(self, signum: signal.Signals) -> None:
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)


def kill(processes: Collection[Process]) -> None:
    """SIGKILL; returns when all are gone."""
    for process in processes:
        process.send(signal.SIGKILL)
    while any(p.alive() for p in processes):  # nobody can refuse, it only takes a moment
        time.sleep(POLL / 5)


class Daemon:
    """A child process in a session of its own; what it prints is kept in `log`."""

    def __init__(self, name: str, argv: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        program = shutil.which(argv[0], path=SEARCH_PATH)
        if program is None:
            raise ClusterError(f"{argv[0]} is not installed")
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                [program, *argv[1:]],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C in the terminal is for pytest alone
            )

    @property
    def pid(self) -> int:
        return self._child.pid

    def check(self) -> None:
        """Raises ClusterError, with the end of its log, if the daemon has died."""
        status = self._child.poll()
        if status is not None:
            raise ClusterError(f"{self.name} died, exit {status}:\n{tail(self.log)}")

    def stop(self, *, grace: float = TERM_GRACE) -> None:
        """SIGTERM, `grace` seconds to comply, SIGKILL; returns when it is gone.  0: no SIGTERM."""
        if grace:
            self._child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(grace)
        self._child.kill()  # no signal if it is gone: until wait() its pid is nobody else's
        self._child.wait()


def tail(log: Path, lines: int = 20) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def reserve_port() -> socket.socket:
    """A port of 127.0.0.1 that only a daemon of ours gets, for as long as the socket is open.

    The reservation never listens, and it allows address reuse *after* its bind(0): Slurm, which
    asks for reuse, may listen there, while the kernel gives the port to nobody else's bind(0) or
    connect(), not even while a killed daemon is away.
    """
    reservation = socket.socket()
    reservation.bind((LOOPBACK, 0))
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return reservation


class SlurmCluster:
    """A running Slurm, from `with` to the end of the block.

    Args:
        folder: for every file of the cluster; created if need be.  Not more than about 70
            characters, because Slurm and MUNGE put sockets into it.
        nodes: number of nodes, named n1, n2, ...
        cpus: CPUs of each node; Slurm believes it, whatever this machine has.
        memory: MiB of each node; counted by the scheduler, not enforced.
        max_array_size: indices of an array go up to one less.
        min_job_age: seconds for which squeue remembers an ended job (it may be twice as long).
        config: more lines for slurm.conf, "Key=Value"; a key set here replaces the default.
    """

    def __init__(
        self,
        folder: Path,
        *,
        nodes: int = 4,
        cpus: int = 2,
        memory: int = 1500,
        max_array_size: int = 1001,
        min_job_age: int = 20,
        config: Sequence[str] = (),
    ) -> None:
        self.folder = folder.resolve()
        self.nodes = tuple(f"n{i}" for i in range(1, nodes + 1))
        # slurmctld refuses the saved state of another name, so the name follows from the folder.
        self.name = f"test_{zlib.crc32(os.fsencode(self.folder)):08x}"
        self._shape = f"CPUs={cpus} CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory={memory}"
        self._settings = [f"MaxArraySize={max_array_size}", f"MinJobAge={min_job_age}"]
        self._extra = tuple(config)
        self._ports: list[socket.socket] = []
        self.daemons: dict[str, Daemon] = {}  # by name, those that ought to be alive
        longest = self.folder / "spool" / self.nodes[-1] / f"{self.nodes[-1]}_1000000.4294967291"
        if len(os.fsencode(longest)) > 107:  # sun_path
            raise ValueError(f"the path is too long for Slurm's sockets: {self.folder}")
        outer = {k: v for k, v in os.environ.items() if not k.startswith(CLIENT_PREFIXES)}
        self.env: Mapping[str, str] = MappingProxyType(
            outer | {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": SEARCH_PATH}
        )

    # ---- life ---------------------------------------------------------------------------------

    def __enter__(self) -> SlurmCluster:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def _start(self) -> None:
        for folder in ("log", "state", "spool", "work"):
            (self.folder / folder).mkdir(parents=True, exist_ok=True)
        self._ports = [reserve_port() for _ in range(1 + len(self.nodes))]
        (self.folder / "slurm.conf").write_text(self._slurm_conf(), encoding="utf-8")
        self._start_munged()
        self.start_controller()
        for node in self.nodes:
            self._spawn_node(node)
        self.wait(lambda: set(self.node_states().values()) == {"idle"})

    def _stop(self) -> None:
        # The controller first, lest it takes the end of a node for a fault; munged last, because
        # the others sign with it.
        for name in ["slurmctld", *self.nodes]:
            self._end_daemon(name)
        self._end_work(self.nodes)
        self._end_daemon("munged")
        while self._ports:
            self._ports.pop().close()

    def _start_munged(self) -> None:
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        files = {
            "--key-file": key,
            "--socket": self.folder / "munge.socket",
            "--pid-file": self.folder / "munged.pid",
            "--seed-file": self.folder / "munge.seed",
            "--log-file": self.folder / "log" / "munged.syslog",
        }
        # --force: a folder that others may not enter is a fault to munged, and a virtue here.
        options = [f"{option}={path}" for option, path in files.items()]
        self._spawn("munged", "munged", "--foreground", "--force", *options)
        self.wait((self.folder / "munge.socket").exists)

    def _slurm_conf(self) -> str:
        user, host = getpass.getuser(), socket.gethostname().partition(".")[0]
        controller, *nodes = [reservation.getsockname()[1] for reservation in self._ports]
        settings = [
            f"ClusterName={self.name}",
            f"SlurmctldHost={host}({LOOPBACK})",
            f"SlurmctldPort={controller}",
            f"SlurmUser={user}",
            f"SlurmdUser={user}",
            # cred_expire: a requeued job waits so long before it may start again (default 120 s).
            f"AuthInfo=socket={self.folder}/munge.socket,cred_expire=5",
            "CommunicationParameters=NoCtldInAddrAny,NoInAddrAny",  # listen on loopback only
            f"StateSaveLocation={self.folder}/state",
            f"SlurmctldPidFile={self.folder}/slurmctld.pid",
            f"SlurmctldLogFile={self.folder}/log/slurmctld.log",
            f"SlurmdSpoolDir={self.folder}/spool/%n",
            f"SlurmdPidFile={self.folder}/%n.pid",
            f"SlurmdLogFile={self.folder}/log/%n.log",
            "ProctrackType=proctrack/linuxproc",  # cgroups need more rights than a test has
            "TaskPlugin=task/none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_Core_Memory",
            "SlurmdParameters=config_overrides",  # invented CPUs and memory are believed
            # The defaults are meant for a machine that is busy for months.
            "SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0",
            "SlurmdTimeout=5",
            "MessageTimeout=3",  # with the default, 10, a dead node is seen after 26 s, not 12 s
            "KillWait=3",
            "ReturnToService=2",
            "MailProg=/bin/true",  # no mailer is no fault here
            *self._settings,
        ]
        replaced = {line.partition("=")[0] for line in self._extra}
        lines = [line for line in settings if line.partition("=")[0] not in replaced]
        lines += [
            f"NodeName={name} NodeHostname={host} NodeAddr={LOOPBACK} Port={port} {self._shape}"
            for name, port in zip(self.nodes, nodes, strict=True)
        ]
        lines += ["PartitionName=main Nodes=ALL Default=YES MaxTime=2-0 DefMemPerCPU=100"]
        return "\n".join([*lines, *self._extra, ""])

    def _spawn(self, name: str, *argv: str, env: Mapping[str, str] = NO_VARIABLES) -> None:
        if name in self.daemons:
            raise ClusterError(f"{name} runs already")
        log = self.folder / "log" / f"{name}.err"
        self.daemons[name] = Daemon(name, argv, {**self.env, **env}, log)

    def _spawn_node(self, name: str) -> None:
        # The variables mark a stepd from its birth on: see `_works_for`.
        self._spawn(name, "slurmd", "-D", "-N", name, env=self._identity(name))

    def _end_daemon(self, name: str, *, grace: float = TERM_GRACE) -> None:
        daemon = self.daemons.pop(name, None)
        if daemon is not None:
            daemon.stop(grace=grace)

    # ---- use ----------------------------------------------------------------------------------

    def run(
        self, *argv: str, timeout: float = 30.0, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Runs a client such as sbatch in `folder/work`, with `env`.

        Raises:
            ClusterError: with its output, if it fails and `check` is set.
            subprocess.TimeoutExpired: without a controller, clients give up after 2 s.
        """
        done = subprocess.run(
            argv,
            cwd=self.folder / "work",
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            output = done.stdout + done.stderr
            raise ClusterError(f"{' '.join(argv)}: exit {done.returncode}\n{output}")
        return done

    def submit(self, *argv: str) -> int:
        """sbatch with these arguments; the id of the job or of the array."""
        return int(self.run("sbatch", "--parsable", *argv).stdout.partition(";")[0])

    def jobs(self) -> list[Job]:
        """All jobs that the controller remembers, every array element by itself."""
        form = ",".join(f"{field}:|" for field in SQUEUE_FIELDS)
        rows = self.run("squeue", "--noheader", "--array", "--states=all", "--Format", form).stdout
        return [parse_job(row) for row in rows.splitlines()]

    def states(self, job: int) -> list[str]:
        """The states of a job, or of the elements of an array in the order of their indices."""
        ours = [row for row in self.jobs() if row.array == job]
        return [row.state for row in sorted(ours, key=lambda row: row.index or 0)]

    def node_states(self) -> dict[str, str]:
        """sinfo's word for each node: idle, mixed, drained, ...; `*` at its end: no answer."""
        rows = self.run("sinfo", "--noheader", "--Node", "--format=%N %T").stdout.splitlines()
        return dict(row.split(maxsplit=1) for row in rows)

    def wait(self, predicate: Callable[[], object], timeout: float = 30.0) -> None:
        """Asks until the answer is true.

        Raises:
            ClusterError: after `timeout` seconds, or when a daemon dies that nobody killed.
        """
        deadline = time.monotonic() + timeout
        while not predicate():
            for daemon in self.daemons.values():
                daemon.check()
            if time.monotonic() > deadline:
                raise ClusterError(f"not so after {timeout:g} s; {self._describe()}")
            time.sleep(POLL)

    def _describe(self) -> str:
        views = [self.run("squeue", "--array", "--states=all", check=False).stdout]
        views += [self.run("sinfo", "--Node", "--long", check=False).stdout]
        views += [f"{d.name}:\n{tail(d.log)}" for d in self.daemons.values()]
        return "\n".join(views)

    # ---- faults -------------------------------------------------------------------------------

    def kill_controller(self) -> None:
        """SIGKILL for slurmctld: what it had not saved is lost.

        That may be jobs of the last 5 s, although sbatch has confirmed them; those that run go on
        as orphans, and Slurm gives their ids to the next jobs.  See `wait_saved`.
        """
        self._end_daemon("slurmctld", grace=0)

    def stop_controller(self) -> None:
        """Maintenance: slurmctld saves its state and leaves; jobs run on."""
        self._end_daemon("slurmctld")

    def wait_saved(self) -> None:
        """Until the controller has written down all that it knows now."""
        time.sleep(SAVE_DELAY)  # there is no file to watch: it does not write what has not changed

    def start_controller(self) -> None:
        """Starts slurmctld, from the saved state if there is any, until it answers."""
        self._spawn("slurmctld", "slurmctld", "-D")
        self.wait(lambda: self.run("scontrol", "ping", check=False).returncode == 0)

    def kill_node(self, name: str) -> None:
        """Power failure: all processes of a node end at once, with no word to the controller.

        Slurm notices after some 12 s; until then the jobs look as if they ran.
        """
        self._end_daemon(name, grace=0)
        self._end_work([name])

    def start_node(self, name: str) -> None:
        """Boots a node, until the controller (if it is up) has heard of it."""
        begin = int(time.time())  # Slurm tells whole seconds
        self._spawn_node(name)
        if "slurmctld" in self.daemons:
            self.wait(lambda: self._started_at(name) >= begin)
            self.wait(lambda: not self.node_states()[name].startswith(("down", "unk")))
            self.wait(lambda: not self.node_states()[name].endswith("*"))

    def drain(self, name: str) -> None:
        """No new jobs for this node; those on it end in peace."""
        self.run("scontrol", "update", f"NodeName={name}", "State=DRAIN", "Reason=test")

    def resume(self, name: str) -> None:
        """The node takes jobs again, after `drain`."""
        self.run("scontrol", "update", f"NodeName={name}", "State=RESUME")

    def requeue(self, job: int | str) -> None:
        """Ends a running job or array element and queues it again under the same id."""
        self.run("scontrol", "requeue", str(job))

    def cancel(self, job: int | str) -> None:
        """scancel for a job, an array, or one element such as "123_4"."""
        self.run("scancel", str(job))

    def _started_at(self, node: str) -> float:
        fields = self.run("scontrol", "--oneliner", "show", "node", node).stdout.split()
        stamp = dict(f.partition("=")[::2] for f in fields)["SlurmdStartTime"]
        with contextlib.suppress(ValueError):  # "None" before the first registration
            return time.mktime(time.strptime(stamp, "%Y-%m-%dT%H:%M:%S"))
        return 0.0

    # ---- processes ----------------------------------------------------------------------------

    def processes(self, nodes: Collection[str] | None = None) -> list[Process]:
        """The live stepds and tasks on these nodes (default: all), whoever is their parent now."""
        wanted = self.nodes if nodes is None else nodes
        daemons = {daemon.pid for daemon in self.daemons.values()}
        pids = {int(entry.name) for entry in Path("/proc").glob("[0-9]*")} - daemons
        work = [pid for pid in pids if any(self._works_for(pid, node) for node in wanted)]
        return [process for pid in work if (process := Process.find(pid))]

    def _works_for(self, pid: int, node: str) -> bool:
        proc = Path("/proc", str(pid))
        with contextlib.suppress(OSError):  # it may end, or be somebody else's
            if self._marks(node) <= set((proc / "environ").read_bytes().split(b"\0")):
                return True
            # A stepd writes its title over its environment, but the log of its node stays open.
            if (proc / "comm").read_text(encoding="utf-8").strip() == "slurmstepd":
                return str(self.folder / "log" / f"{node}.log") in open_files(pid)
        return False

    def _marks(self, node: str) -> set[bytes]:
        """What Slurm puts into a task's environment, and `_spawn_node` into that of a slurmd."""
        return {os.fsencode(f"{key}={value}") for key, value in self._identity(node).items()}

    def _identity(self, node: str) -> dict[str, str]:
        return {"SLURM_CLUSTER_NAME": self.name, "SLURMD_NODENAME": node}

    def _end_work(self, nodes: Collection[str]) -> None:
        # A stepd that outlives its task by a moment would report a failure, where a dead node says
        # nothing: so all freeze first.  The second look finds what was born during the first.
        while frozen := self.processes(nodes):
            for process in frozen:
                process.send(signal.SIGSTOP)
            kill(frozen)


def parse_job(row: str) -> Job:
    raw, array, index, state, reason, node, restarts, name = row.removesuffix("|").split("|", 7)
    number = int(index) if index.isdecimal() else None
    return Job(int(raw), int(array), number, state, reason, node, int(restarts), name)


def open_files(pid: int) -> Iterator[str]:
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed since
            yield str(entry.readlink())
