"""The toy search on the GPU, from the command to the final front; its controller is killed once.

About four minutes, most of it for a start of vLLM in each array.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from l2s_hpc.records import Receipt
from l2s_hpc.store.files import read_json
from tests.helpers import ROOT
from tests.mini import state_of

pytestmark = pytest.mark.timeout(580)
SITE = """
name = "gpu-here"
executor = "local"
engine = "vllm"
device = "cuda"
threads = 4
candidates_per_task = 16
grace_seconds = 0
poll_seconds = 0.5
[vllm]
max_num_seqs = 64
max_num_batched_tokens = 2048
kv_cache_tokens = 16384
"""
SMALL = (
    "search.population=8",
    "search.generations=2",
    "search.grid=3",
    "references.sweep=3",
    "splits.search.max_items=8",
    "splits.selection.max_items=6",
    "splits.report.max_items=10",
)


def l2s(*words: str) -> list[str]:
    return [sys.executable, "-m", "l2s_hpc.cli.main", *words]


def search(run: Path) -> list[str]:
    changes = [word for change in SMALL for word in ("--set", change)]
    site = str(run.with_name("site.toml"))
    return l2s("run", "toy", "--site", site, "--run", str(run), *changes)


@pytest.fixture(scope="module")
def env() -> dict[str, str]:
    """What the commands see; skips where the controller's packages are missing."""
    for package in ("pymoo", "submitit"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed: l2s-hpc[controller]")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, env: dict[str, str]) -> Path:
    """The search, whose controller and workers are killed in its second generation."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    folder.with_name("site.toml").write_text(SITE, encoding="utf-8")
    command, said = search(folder), folder.with_name("first.log")
    with said.open("wb") as log:
        first = subprocess.Popen(
            command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        ends = time.monotonic() + 240
        while not _in_second_generation(folder):
            in_time = first.poll() is None and time.monotonic() < ends
            assert in_time, said.read_text(encoding="utf-8")[-4000:]
            time.sleep(0.2)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    second = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert second.returncode == 0, (second.stdout + second.stderr)[-4000:]
    return folder


def _in_second_generation(folder: Path) -> bool:
    if not (folder / "run.json").exists():
        return False
    state = state_of(folder)
    return state.told >= 1 and any(True for _ in state.live_attempts())


def test_it_comes_to_a_front_measured_on_the_report_items(run: Path, env: dict[str, str]) -> None:
    state = state_of(run)
    assert state.completed and state.told == 2 and state.looks == 1
    assert not state.penalised
    asked = subprocess.run(
        l2s("front", str(run), "--json"), env=env, capture_output=True, text=True, check=True
    )
    front: list[dict[str, Any]] = json.loads(asked.stdout)
    assert front and {row["candidate"] for row in front} <= set(state.front or ())
    assert all(0 <= row["accuracy"] <= 1 < row["tokens"] for row in front)


def test_every_table_is_of_the_gpu_and_sound(run: Path, env: dict[str, str]) -> None:
    state = state_of(run)
    files = sorted((run / "receipts").rglob("*.json"))
    receipts = [Receipt.model_validate(read_json(path)) for path in files]
    assert len(receipts) == len(state.accepted) >= 20
    assert {"NVIDIA" in receipt.device for receipt in receipts} == {True}
    assert all("vllm" in receipt.versions for receipt in receipts)
    assert len({receipt.fingerprint for receipt in receipts}) == 1
    verified = subprocess.run(
        l2s("verify", str(run)), env=env, capture_output=True, text=True, check=False
    )
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_the_same_command_has_nothing_left_to_do(run: Path, env: dict[str, str]) -> None:
    before = state_of(run).batches.keys()
    again = subprocess.run(search(run), env=env, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert state_of(run).batches.keys() == before
