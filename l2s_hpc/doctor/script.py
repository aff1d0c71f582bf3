"""The site's real flags in an sbatch text: validated without a job, and with a small one."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path

from l2s_hpc.cluster.jobs import python_command
from l2s_hpc.cluster.watch import ask_slurm
from l2s_hpc.config import SiteConfig
from l2s_hpc.doctor.check import Check, failure, ok
from l2s_hpc.errors import Unreachable
from l2s_hpc.store.layout import RunPaths

_COMMAND = "\n# command\n"


def script(site: SiteConfig, name: str, folder: Path, module: Sequence[str]) -> str:
    """Return the text of one task of a site with another command: flags and setup lines are kept.

    Args:
        site: the site.
        name: the job's name.
        folder: for the run directory that the flags may name.
        module: a module of ours and its arguments, run by the site's interpreter.
    """
    from l2s_hpc.cluster.slurm import SlurmExecutor

    head = SlurmExecutor(RunPaths(folder), site).preview(name, 1).partition(_COMMAND)[0]
    command = shlex.join([*python_command(site), "-uPm", *module])
    return f"{head}{_COMMAND}exec {command}\n"


def test_only_check(site: SiteConfig, place: Path) -> Check:
    """Let sbatch validate a task's flags; nothing is submitted."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh", encoding="utf-8") as stream:
        stream.write(script(site, "l2s-doctor", place, ["l2s_hpc.task.probe"]))
        stream.flush()
        try:
            done = ask_slurm(["sbatch", "--test-only", stream.name])
        except Unreachable as error:
            return failure("sbatch", error.message, error.hint or "try again later")
    said = " ".join(done.stderr.replace("sbatch: ", "").split())
    if done.returncode != 0:
        return failure("sbatch", f"Slurm refuses a task: {said}", _remedy(said))
    return ok("sbatch", f"Slurm takes a task (only tested, nothing submitted): {said}")


def _remedy(said: str) -> str:
    """Return which settings a refusal is about."""
    lower = said.lower()
    for sign, keys in (
        ("account", "site.account and site.partition"),
        ("partition", "site.partition"),
        ("qos", "site.qos"),
        ("generic resource", "site.gres (`sinfo -o '%P %G'`)"),
        ("feature", "site.constraint (`sinfo -o '%P %f'`)"),
        ("node configuration", "site.cpus, site.memory and site.gres"),
        ("time limit", "site.minutes"),
    ):
        if sign in lower:
            return f"see {keys}"
    return "see the site's flags, and [sbatch] in it"
