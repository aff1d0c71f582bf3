"""A private Slurm cluster on this machine, for tests that must not be fooled by a mock.

    with SlurmCluster(tmp_path) as slurm:
        job = slurm.submit("--array=0-2", "--wrap", "echo $SLURM_ARRAY_TASK_ID")
        slurm.wait(lambda: slurm.states(job) == ["COMPLETED"] * 3)

munged, slurmctld and one slurmd per node run in the foreground, listen on 127.0.0.1 only, and keep
every file below one folder; any number of clusters run side by side.  The fault verbs
(`kill_node`, `kill_controller`, ...) do to the cluster what a bad night does to a real one.

Needs Debian's munge, slurmctld, slurmd and slurm-client (22.05 or later), as root or as an
ordinary user.  `squeue` and `scontrol` forget a job some time after `min_job_age`; `sacct`, which
does not, and the limits of a QOS need `accounting=True` and Debian's slurmdbd and mariadb-server.
If Python itself is killed, its daemons stay.
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
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final, Literal

from .accounting import DAEMONS as ACCOUNTING_DAEMONS
from .accounting import Accounting
from .processes import (
    LOOPBACK,
    POLL,
    SEARCH_PATH,
    TERM_GRACE,
    ClusterError,
    Daemon,
    Process,
    kill,
    open_files,
    reserve_port,
    tail,
    variables,
)

__all__ = ["ClusterError", "Job", "Process", "SlurmCluster", "missing_commands"]

COMMANDS: Final = (
    "munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sinfo",
)  # fmt: skip
NO_VARIABLES: Final[Mapping[str, str]] = MappingProxyType({})
SAVE_DELAY: Final = 6.0  # slurmctld may keep a change in memory for 5 s
# What `parse_job` reads; the name comes last, for it may hold anything.
SQUEUE_FIELDS: Final = (
    "JobID", "ArrayJobID", "ArrayTaskID", "State", "Reason", "NodeList", "RestartCnt", "Name",
)  # fmt: skip
# Variables of an outer job or of the user's habits would steer the commands under test.
CLIENT_PREFIXES: Final = (
    "SLURM", "SBATCH", "SQUEUE", "SCANCEL", "SCONTROL", "SINFO", "SACCT", "SALLOC", "SRUN",
)  # fmt: skip
# The kernel's memory limit for jobs; Slurm's folders there are called slurm_<node>.
CGROUPS: Final = Path("/sys/fs/cgroup")


def missing_commands(wanted: Sequence[str] = COMMANDS) -> list[str]:
    """Those commands (default: of Slurm and MUNGE) that this machine lacks."""
    return [name for name in wanted if shutil.which(name, path=SEARCH_PATH) is None]


@dataclass(frozen=True)
class Job:
    """One row of `squeue -r`: a job, or one element of an array.

    Elements that are cancelled before their start leave no row, or, if all that were left are
    cancelled together, a single row without `index`.
    """

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


class SlurmCluster:
    """A running Slurm, from `with` to the end of the block.

    Jobs go to the partition `main`; those of `urgent` take its nodes away (see `preempt`).

    Args:
        folder: for every file of the cluster; created if need be.  Not more than about 70
            characters, because Slurm and MUNGE put sockets into it.
        nodes: number of nodes, named n1, n2, ...
        cpus: CPUs of each node; Slurm believes it, whatever this machine has.
        memory: MiB of each node; counted by the scheduler, not enforced.
        memory_kill: who ends a job that takes more than its --mem.  "slurm" looks every second, and
            the job is FAILED, 0:9; "kernel" makes it OUT_OF_MEMORY, see `kernel_kills`; use it on
            one cluster at a time, for the kernel takes nodes of the same name for one.
        accounting: a database, so that `sacct` works and `limit_submits` can refuse jobs; 5 s more.
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
        memory_kill: Literal["slurm", "kernel"] | None = None,
        accounting: bool = False,
        config: Sequence[str] = (),
    ) -> None:
        self.folder = folder.resolve()
        self.nodes = tuple(f"n{i}" for i in range(1, nodes + 1))
        # slurmctld refuses the saved state of another name, so the name follows from the folder.
        self.name = f"test_{zlib.crc32(os.fsencode(self.folder)):08x}"
        self._shape = f"CPUs={cpus} CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory={memory}"
        self._settings = [f"MaxArraySize={max_array_size}", f"MinJobAge={min_job_age}"]
        self._memory_kill = memory_kill
        self._accounting = Accounting(self.folder) if accounting else None
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
        if self._memory_kill == "kernel":
            (self.folder / "cgroup.conf").write_text(self._cgroup_conf(), encoding="utf-8")
        self._start_munged()
        if self._accounting is not None:
            self._start_database(self._accounting)
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
        for name in [*ACCOUNTING_DAEMONS, "munged"]:
            self._end_daemon(name)
        if self._accounting is not None:
            self._accounting.close()
        if self._memory_kill == "kernel":
            self._remove_control_groups()
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
            "PreemptType=preempt/partition_prio",
            "PreemptMode=REQUEUE",
            *self._settings,
            *self._memory_settings(),
        ]
        if self._accounting is not None:
            settings += self._accounting.settings()
        replaced = {line.partition("=")[0] for line in self._extra}
        lines = [line for line in settings if line.partition("=")[0] not in replaced]
        lines += [
            f"NodeName={name} NodeHostname={host} NodeAddr={LOOPBACK} Port={port} {self._shape}"
            for name, port in zip(self.nodes, nodes, strict=True)
        ]
        everywhere = "Nodes=ALL MaxTime=2-0 DefMemPerCPU=100"
        lines += [
            f"PartitionName=main {everywhere} Default=YES PriorityTier=10",
            f"PartitionName=urgent {everywhere} PriorityTier=100 PreemptMode=OFF",
        ]
        return "\n".join([*lines, *self._extra, ""])

    def _memory_settings(self) -> list[str]:
        if self._memory_kill == "slurm":
            gather = "JobAcctGatherType=jobacct_gather/linux"
            return [gather, "JobAcctGatherFrequency=1", "JobAcctGatherParams=OverMemoryKill"]
        return ["TaskPlugin=task/cgroup"] if self._memory_kill == "kernel" else []

    def _cgroup_conf(self) -> str:
        return f"CgroupMountpoint={CGROUPS}\nCgroupPlugin=cgroup/v1\nConstrainRAMSpace=yes\n"

    def _remove_control_groups(self) -> None:
        """Slurm leaves folders behind; those that another cluster uses cannot be removed."""
        for node in self.nodes:
            top = CGROUPS / "memory" / f"slurm_{node}"
            for folder in [*sorted(top.rglob("*/"), reverse=True), top]:
                with contextlib.suppress(OSError):
                    folder.rmdir()

    def _start_database(self, accounting: Accounting) -> None:
        user = getpass.getuser()
        accounting.install(self.env)
        self._spawn("mariadbd", *accounting.database())
        self.wait(accounting.socket.exists)
        self.start_accounting()
        self.sacctmgr("add", "cluster", self.name)
        self.sacctmgr("add", "account", "test", f"Cluster={self.name}")
        self.sacctmgr("add", "user", user, "Account=test", "DefaultAccount=test")

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

    def tasks(self, job: int | str) -> list[Process]:
        """The live processes of a job, an array, or one element such as "123_4"; the oldest first.

        That is the batch shell, unless it has exec'ed its command.  No stepd is among them.  The
        controller is not asked; it may be dead.
        """
        array, _, index = str(job).partition("_")
        either = [{f"SLURM_JOB_ID={array}"}, {f"SLURM_ARRAY_JOB_ID={array}"}]
        element = [{f"SLURM_ARRAY_JOB_ID={array}", f"SLURM_ARRAY_TASK_ID={index}"}]
        wanted = [{os.fsencode(mark) for mark in marks} for marks in (element if index else either)]
        work = [p for p in self.processes() if any(m <= variables(p.pid) for m in wanted)]
        return sorted(work, key=lambda process: (process.start, process.pid))

    def sacctmgr(self, *argv: str) -> str:
        """Changes or shows the database of `accounting`."""
        return self.run("sacctmgr", "--immediate", "--noheader", "--parsable2", *argv).stdout

    def node_states(self) -> dict[str, str]:
        """sinfo's word for each node: idle, mixed, drained, ...; `*` at its end: no answer."""
        rows = self.run("sinfo", "--noheader", "--Node", "--format=%N %T").stdout.splitlines()
        return dict(row.split(maxsplit=1) for row in rows)

    def wait(self, predicate: Callable[[], object], timeout: float = 60.0) -> None:
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

        If it had saved that a job waits, but not that it has started, `start_controller` starts the
        job once more, with the same id and no restart counted; an orphan that still runs is killed.
        If the orphan ends shortly before or while that happens, the job is queued for ever,
        "launch failed requeued held", and the node is drained: see `resume`.
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
            self.wait_up(name)

    def wait_up(self, name: str) -> None:
        """Until the controller believes that a node is alive."""
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

    def hold(self, job: int | str) -> None:
        """The job or array element is not started before `release`; it runs on if it runs."""
        self.run("scontrol", "hold", str(job))

    def release(self, job: int | str) -> None:
        """Ends `hold`."""
        self.run("scontrol", "release", str(job))

    def set_time_limit(self, job: int | str, limit: str) -> None:
        """The limit of a job or array element, in minutes or as Slurm writes it, "1-0" or "2:30".

        Slurm counts whole minutes, so that one which runs lives a minute at least: see `time_out`.
        """
        self.run("scontrol", "update", f"JobId={job}", f"TimeLimit={limit}")

    def time_out(self, job: int | str) -> None:
        """The time of a running job or array element is up: SIGTERM within 30 s, then SIGKILL."""
        for _ in range(10):
            try:
                self.run("scontrol", "update", f"JobId={job}", "EndTime=now")
                return
            except ClusterError as error:
                # Another second began between scontrol's look at the clock and slurmctld's.
                if "Invalid time specified" not in str(error):
                    raise
        raise ClusterError(f"the time of {job} cannot be cut")

    def preempt(self, *nodes: str) -> int:
        """An urgent job takes these nodes (default: all) from those of `main`, until `cancel`.

        Returns its id when it runs.  By then the others are queued again, or PREEMPTED for good if
        they were submitted with --no-requeue.
        """
        wanted = nodes or self.nodes
        place = [f"--nodelist={','.join(wanted)}", f"--nodes={len(wanted)}", "--exclusive"]
        options = ["--partition=urgent", "--job-name=urgent", "--output=/dev/null", *place]
        job = self.submit(*options, "--wrap", "exec sleep infinity")
        self.wait(lambda: self.states(job) == ["RUNNING"])
        return job

    def stop_accounting(self) -> None:
        """slurmdbd leaves: sacct fails, and slurmctld goes on and remembers what to tell it."""
        self._end_daemon("slurmdbd")

    def start_accounting(self) -> None:
        """Starts slurmdbd, until it answers; slurmctld may need some 10 s more to find it."""
        if self._accounting is None:
            raise ClusterError("the cluster was made without accounting=True")
        self._spawn("slurmdbd", "slurmdbd", "-D", env=self._accounting.variables)
        ask = ("sacctmgr", "--noheader", "show", "cluster")
        self.wait(lambda: self.run(*ask, check=False).returncode == 0)

    def limit_submits(self, most: int | None, by: Literal["qos", "user"] = "qos") -> None:
        """Jobs that a user may have in the queue, array elements counted; None: any number.

        More are refused: sbatch says QOSMaxSubmitJobPerUserLimit or AssocMaxSubmitJobLimit.
        """
        number = -1 if most is None else most  # the controller knows it when sacctmgr returns
        if by == "qos":
            self.sacctmgr("modify", "qos", "normal", "set", f"MaxSubmitJobsPerUser={number}")
        else:
            self.sacctmgr("modify", "user", getpass.getuser(), "set", f"MaxSubmitJobs={number}")

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
            if self._marks(node) <= variables(pid):
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


def kernel_kills() -> bool:
    """Whether `memory_kill="kernel"` can work: Slurm may limit memory by a control group, v1."""
    limits = CGROUPS / "memory"
    return (limits / "memory.limit_in_bytes").exists() and os.access(limits, os.W_OK)


def parse_job(row: str) -> Job:
    raw, array, index, state, reason, node, restarts, name = row.removesuffix("|").split("|", 7)
    number = int(index) if index.isdecimal() else None
    return Job(int(raw), int(array), number, state, reason, node, int(restarts), name)
