"""What can be looked at from here: the folder of runs, this machine's packages, the job."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from l2s_hpc.cluster.jobs import python_command
from l2s_hpc.config import SearchConfig, SiteConfig
from l2s_hpc.controller.resolve import resolve
from l2s_hpc.doctor.check import Check, guarded, ok, warning
from l2s_hpc.errors import L2SError
from l2s_hpc.store.files import create_json, link_durably, write_json
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.task.look import NEEDED

_NEEDED_BYTES = 5_000_000_000
_NEEDED_INODES = 20_000
_MOST_SKEW = 5.0


def folder_checks(folder: Path) -> Iterator[Check]:
    """Yield the checks of the place where runs are to be kept."""
    place = existing(folder)
    yield guarded("run folder", lambda: _file_system(place), "use a folder that you can write to")
    yield guarded("free space", lambda: _space(place), "free some space, or use another disk")
    yield guarded("clock", lambda: _clock(place), "ask the administrators: clocks differ")
    yield _purge(folder)


def existing(folder: Path) -> Path:
    """Return where a folder is or will be: the nearest one above it that is there.

    A run directory stands for the folder that holds it: nothing foreign is put into a run.
    """
    if RunPaths(folder).run_json.exists():
        folder = folder.resolve().parent
    return next(p for p in [folder.resolve(), *folder.resolve().parents] if p.is_dir())


def packages_check(site: SiteConfig) -> Check:
    """Import the node's packages in the site's interpreter on this machine.

    A site's own interpreter may work on its nodes only: that is a warning, and the probe knows
    more. Where it is the one that runs us, or the nodes are this machine, it must work.
    """
    remedy = "install l2s-hpc[node] in the site's interpreter (site.python)"
    found = guarded("node packages", lambda: _packages(site), remedy)
    if found.result == "failure" and site.executor == "slurm" and site.python:
        said = f"not on this machine, perhaps on the nodes: {found.found}"
        return warning(found.name, said, "`l2s doctor --probe` looks on a node")
    return found


def job_check(config: SearchConfig, site: SiteConfig) -> Check:
    """Find a job's models and items."""
    return guarded("job", lambda: _job(config, site), "mend the job file, or run `l2s fetch`")


def skew_check(name: str, skew: float, uncertain: float, who: str) -> Check:
    """Judge by how many seconds another clock is ahead of ours."""
    shown = f"{who} is {abs(skew):.1f} s {'ahead' if skew > 0 else 'behind'}"
    shown += f" (± {uncertain:.1f} s)" if uncertain >= 0.05 else ""
    if abs(skew) - uncertain > _MOST_SKEW:
        return warning(
            name,
            shown,
            "ask the administrators to set the clocks (NTP): deadlines and times in receipts and "
            "journal are off by as much",
        )
    return ok(name, shown)


def _file_system(place: Path) -> str:
    """Try what the store does: create by link, replace by rename, link across folders."""
    with tempfile.TemporaryDirectory(dir=place, prefix=".l2s-doctor-") as scratch:
        first, second = Path(scratch) / "a.json", Path(scratch) / "sub" / "b.json"
        if not create_json(first, {"n": 1}) or create_json(first, {"n": 2}):
            raise L2SError("hard links do not decide between two writers", path=place)
        write_json(first, {"n": 3})
        link_durably(first, second)
        linked = second.stat().st_nlink == 2
        read = json.loads(second.read_text(encoding="utf-8"))
    if read != {"n": 3}:
        raise L2SError("a file that was written is not read back", path=place)
    return f"{place}: links, renames" + ("" if linked else "; no hard links, files are copied")


def _space(place: Path) -> str:
    free, inodes = shutil.disk_usage(place).free, os.statvfs(place).f_favail
    if free < _NEEDED_BYTES:
        raise L2SError(f"only {free / 1e9:.1f} GB are free", path=place)
    # Some file systems (btrfs, some NFS servers) report no inode counts at all.
    if 0 < inodes < _NEEDED_INODES:
        raise L2SError(f"only {inodes} more files can be made", path=place)
    return f"{free / 1e9:.0f} GB free (a quota of yours may be smaller)"


def _clock(place: Path) -> Check:
    """Compare the time that the file system gives to a new file with this machine's."""
    before = time.time()
    with tempfile.NamedTemporaryFile(dir=place, prefix=".l2s-doctor-") as stream:
        stream.write(b"now")
        stream.flush()
        os.fsync(stream.fileno())
        stamp = Path(stream.name).stat().st_mtime
    after = time.time()
    return skew_check("clock", stamp - (before + after) / 2, (after - before) / 2, "the disk")


def _purge(folder: Path) -> Check:
    """Nobody can ask a disk for its purge policy, but its path often gives a hint."""
    path = folder.resolve()
    if any("scratch" in part.lower() or part.lower() == "tmp" for part in path.parts):
        return warning(
            "purge",
            f"{path} looks like a scratch disk, where old files are deleted",
            "find out how long files stay there; keep runs on a disk that is not purged, or copy "
            "finished ones away",
        )
    return ok("purge", "the path does not look like a scratch disk (nobody can ask a disk)")


def _packages(site: SiteConfig) -> str:
    code = (
        "import importlib, importlib.metadata as m, json\n"
        f"names = {NEEDED!r}\n"
        "for name in names: importlib.import_module(name)\n"
        "import torch\n"
        "found = {n: m.version(n.replace('_', '-')) for n in names}\n"
        "print(json.dumps(found | {'cuda': torch.cuda.is_available()}))\n"
    )
    python = python_command(site)
    done = subprocess.run(
        [*python, "-c", code], capture_output=True, text=True, check=False, timeout=300
    )
    shown = " ".join(python)
    if done.returncode != 0:
        raise L2SError((done.stderr.strip().splitlines() or ["no output"])[-1], path=shown)
    try:
        # Containers and module systems may say something of their own first.
        found = json.loads((done.stdout.strip().splitlines() or [""])[-1])
    except ValueError:
        raise L2SError("it is no Python: it does not run what it is given", path=shown) from None
    if site.device == "cuda" and site.executor == "local" and not found["cuda"]:
        raise L2SError("the site says device = 'cuda', and torch sees no GPU here", path=shown)
    return ", ".join(f"{name} {version}" for name, version in found.items() if name != "cuda")


def _job(config: SearchConfig, site: SiteConfig) -> str:
    resolved = resolve(config, site, frozen={})
    items = {name: len(evaluation.items) for name, evaluation in resolved.evaluations.items()}
    return f"{len(resolved.models)} compatible models; items: {items}"
