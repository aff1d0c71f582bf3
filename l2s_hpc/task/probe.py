"""What `l2s doctor --probe` runs on a node: `python -m l2s_hpc.task.probe FOLDER NONCE DEVICE`.

Answers with two files in the folder, which the login node watches: `hello.json` at once, so that it
can be timed how fast a new file shows, and `node.json` with all that was found. In between it waits
a while for the login node's `reply.json`: the four times of that exchange tell clocks that differ
from files that show late. A fault of the node is written down, not raised.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from l2s_hpc.errors import DamageError
from l2s_hpc.store.files import read_json, write_json
from l2s_hpc.task.node import job

NEEDED = ("torch", "transformers", "mergekit", "math_verify")
"""Packages without which no task runs."""

OPTIONAL = ("vllm",)
_REPLY_SECONDS = 90.0
_LOOK_SECONDS = 0.2


def main(arguments: list[str]) -> int:
    """Look at this node and leave what was found in the folder."""
    folder, nonce, device = Path(arguments[0]), arguments[1], arguments[2]
    said = time.time()
    write_json(folder / "hello.json", {"nonce": nonce, "time": said})
    shared = {"early": _early(folder, nonce), **_shared(folder)}
    reply = _reply(folder, nonce)
    found = {
        "nonce": nonce,
        "host": job().host,
        "job": job().id,
        "said": said,
        "reply": reply,
        "shared": shared,
        "scratch": _scratch(),
        "python": {"version": platform.python_version(), "command": sys.executable},
        "l2s_hpc": {"path": str(_package()), "source": source_hash()},
        "packages": _packages(),
        "gpu": _gpu() if device == "cuda" else None,
    }
    write_json(folder / "node.json", found)
    return 0


def source_hash() -> str:
    """Return a hash of this package's source: equal versions of a checkout can still differ."""
    digest = hashlib.sha256()
    for path in sorted(_package().rglob("*.py")):
        digest.update(path.relative_to(_package()).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _package() -> Path:
    return Path(__file__).resolve().parents[1]


def _early(folder: Path, nonce: str) -> str:
    """Say what of the file shows that the login node wrote just before it submitted."""
    try:
        found = read_json(folder / "login.json")
    except (OSError, DamageError) as error:
        return f"not readable: {error}"
    return "whole" if found == {"nonce": nonce} else f"other content: {found}"


def _shared(folder: Path) -> dict[str, Any]:
    """Try on the shared disk what the store does: rename, and a hard link."""
    place = folder / "from-node"
    try:
        place.mkdir()
        first, second, third = place / "first", place / "second", place / "third"
        first.write_text("here", encoding="utf-8")
        first.rename(second)
        renamed = second.read_text(encoding="utf-8") == "here" and not first.exists()
    except OSError as error:
        return {"rename": False, "hard_link": False, "fault": str(error)}
    try:
        third.hardlink_to(second)
        linked, fault = second.stat().st_nlink == 2, ""
    except OSError as error:
        linked, fault = False, str(error)
    return {"rename": renamed, "hard_link": linked, "fault": fault}


def _reply(folder: Path, nonce: str) -> float | None:
    """Return when the login node's answer showed here, by this node's clock; None: it did not."""
    deadline = time.monotonic() + _REPLY_SECONDS
    while time.monotonic() < deadline:
        # Listing a folder makes NFS look anew, where asking for a name that was missing does not.
        if any(path.name == "reply.json" for path in folder.iterdir()):
            seen = time.time()
            try:
                if read_json(folder / "reply.json").get("nonce") == nonce:
                    return seen
            except (OSError, DamageError):
                pass
        time.sleep(_LOOK_SECONDS)
    return None


def _scratch() -> dict[str, Any]:
    """Say where this node keeps temporary files, and how much room is there."""
    named = next((n for n in ("SLURM_TMPDIR", "TMPDIR") if os.environ.get(n)), "")
    path = os.environ[named] if named else tempfile.gettempdir()
    try:
        with tempfile.TemporaryFile(dir=path):
            free = shutil.disk_usage(path).free
    except OSError as error:
        return {"path": path, "variable": named, "free_gb": None, "fault": str(error)}
    return {"path": path, "variable": named, "free_gb": round(free / 1e9, 1), "fault": ""}


def _packages() -> dict[str, dict[str, str]]:
    """Return each package's version, or why it cannot be used; the needed ones are imported."""
    found = {"l2s_hpc": _version("l2s_hpc")}
    for name in (*NEEDED, *OPTIONAL):
        found[name] = _version(name)
        if name in NEEDED and not found[name]["fault"]:
            found[name]["fault"] = _import_fault(name)
    return found


def _version(name: str) -> dict[str, str]:
    try:
        return {"version": version(name.replace("_", "-")), "fault": ""}
    except PackageNotFoundError:
        return {"version": "", "fault": "not installed"}


def _import_fault(name: str) -> str:
    # A library that does not fit the node fails in many ways: OSError for a missing .so, and so on.
    try:
        importlib.import_module(name)
    except (ImportError, OSError, RuntimeError, AttributeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"[:500]
    return ""


def _gpu() -> dict[str, Any]:
    """Return the GPUs that torch sees, after a sum on each; or why there are none."""
    try:
        import torch

        cards = []
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            total = torch.ones(1000, device=f"cuda:{number}").sum().item()
            if total != 1000:
                return {"cards": [], "fault": f"GPU {number} adds up 1000 ones to {total}"}
            cards.append({"name": properties.name, "gb": round(properties.total_memory / 1e9, 1)})
        cuda = torch.version.cuda or "none: this torch is built for CPUs"
    except (ImportError, OSError, RuntimeError) as error:
        return {"cards": [], "fault": f"{type(error).__name__}: {error}"[:500]}
    fault = "" if cards else f"torch sees no GPU (its CUDA: {cuda})"
    return {"cards": cards, "fault": fault, "cuda": cuda, "driver": _driver()}


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return (done.stdout.strip().splitlines() or ["unknown"])[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
