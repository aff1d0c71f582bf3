"""`l2s doctor`: checks for real whether a job can run on a site; each failure with its remedy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from l2s_hpc.cluster.watch import run_slurm
from l2s_hpc.config import SearchConfig, SiteConfig
from l2s_hpc.controller.resolve import resolve
from l2s_hpc.errors import L2SError
from l2s_hpc.store.files import create_json, link_durably, write_json

_NEEDED_BYTES = 5_000_000_000
_NEEDED_INODES = 20_000
_NODE_PACKAGES = ("torch", "transformers", "mergekit", "math_verify", "submitit")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    result: Literal["ok", "warning", "failure"]
    found: str
    remedy: str = ""

    def row(self) -> dict[str, Any]:
        """Return it as a row of a table."""
        return asdict(self)


def examine(config: SearchConfig | None, site: SiteConfig, folder: Path) -> Iterator[Check]:
    """Yield the checks of a site, and of a job on it, one by one as they are done.

    Args:
        config: the job, or None to check the site alone.
        site: the site.
        folder: where runs are to be kept.
    """
    yield _guarded("run folder", lambda: _file_system(folder), "use a folder that you can write to")
    yield _guarded("free space", lambda: _space(folder), "free some space, or use another disk")
    yield _guarded(
        "node packages",
        lambda: _packages(site),
        "install l2s-hpc[node] in the site's interpreter (site.python)",
    )
    if site.executor == "slurm":
        yield _guarded("Slurm", _slurm, "run this on a login node of the cluster")
        yield _guarded("partition", lambda: _partition(site), "see `sinfo -s` for the valid names")
    if config is not None:
        yield _guarded("job", lambda: _job(config, site), "mend the job file, or run `l2s fetch`")


def _guarded(name: str, check: Callable[[], str], remedy: str) -> Check:
    try:
        return Check(name, "ok", check())
    except (L2SError, OSError, subprocess.SubprocessError) as error:
        return Check(name, "failure", str(error), remedy)


def _file_system(folder: Path) -> str:
    """Try what the store does: create by link, replace by rename, link across folders."""
    existing = next(p for p in [folder.resolve(), *folder.resolve().parents] if p.exists())
    with tempfile.TemporaryDirectory(dir=existing, prefix=".l2s-doctor-") as place:
        first, second = Path(place) / "a.json", Path(place) / "sub" / "b.json"
        if not create_json(first, {"n": 1}) or create_json(first, {"n": 2}):
            raise L2SError("hard links do not decide between two writers", path=existing)
        write_json(first, {"n": 3})
        link_durably(first, second)
        linked = second.stat().st_nlink == 2
        read = json.loads(second.read_text(encoding="utf-8"))
    if read != {"n": 3}:
        raise L2SError("a file that was written is not read back", path=existing)
    return f"{existing}: links, renames" + ("" if linked else "; no hard links, files are copied")


def _space(folder: Path) -> str:
    existing = next(p for p in [folder.resolve(), *folder.resolve().parents] if p.exists())
    free, inodes = shutil.disk_usage(existing).free, os.statvfs(existing).f_favail
    if free < _NEEDED_BYTES:
        raise L2SError(f"only {free / 1e9:.1f} GB are free", path=existing)
    # Some file systems (btrfs, some NFS servers) report no inode counts at all.
    if 0 < inodes < _NEEDED_INODES:
        raise L2SError(f"only {inodes} more files can be made", path=existing)
    return f"{free / 1e9:.0f} GB free"


def _packages(site: SiteConfig) -> str:
    """Import the node's packages in the site's interpreter, as a node does."""
    code = (
        "import importlib, importlib.metadata as m, json\n"
        f"names = {_NODE_PACKAGES!r}\n"
        "for name in names: importlib.import_module(name)\n"
        "import torch\n"
        "found = {n: m.version(n.replace('_', '-')) for n in names}\n"
        "print(json.dumps(found | {'cuda': torch.cuda.is_available()}))\n"
    )
    python = site.python or sys.executable
    done = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=False, timeout=300
    )
    if done.returncode != 0:
        raise L2SError((done.stderr.strip().splitlines() or ["no output"])[-1], path=python)
    found = json.loads(done.stdout)
    if site.device == "cuda" and site.executor == "local" and not found["cuda"]:
        raise L2SError("the site says device = 'cuda', and torch sees no GPU here", path=python)
    return ", ".join(f"{name} {version}" for name, version in found.items() if name != "cuda")


def _slurm() -> str:
    version = run_slurm(["sinfo", "--version"]).strip()
    run_slurm(["scontrol", "ping"])
    return version


def _partition(site: SiteConfig) -> str:
    command = ["sinfo", "-h", "-o", "%R|%l|%D"]
    lines = run_slurm(command).splitlines()
    known = {line.split("|")[0]: line.split("|")[1:] for line in lines}
    if site.partition and site.partition not in known:
        raise L2SError(f"no partition '{site.partition}'; there are: {', '.join(sorted(known))}")
    name = site.partition or "(default)"
    limit = known.get(site.partition, ["the default's limit"])[0]
    return f"{name}, time limit {limit}, tasks ask for {site.minutes} minutes"


def _job(config: SearchConfig, site: SiteConfig) -> str:
    resolved = resolve(config, site, frozen={})
    items = {name: len(evaluation.items) for name, evaluation in resolved.evaluations.items()}
    return f"{len(resolved.models)} compatible models; items: {items}"
