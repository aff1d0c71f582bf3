"""Begins a run, or goes on with one: its directory, and the check that it is the same search."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from l2s_hpc.config import (
    OPERATIONAL,
    NoiseConfig,
    SearchConfig,
    SiteConfig,
    flatten,
    validate,
)
from l2s_hpc.controller.executors import check_executor, make_executor
from l2s_hpc.controller.memory import check_memory
from l2s_hpc.controller.resolve import Resolved, model_sources, resolve
from l2s_hpc.controller.step import Controller
from l2s_hpc.errors import IncompleteError, UserError
from l2s_hpc.store.files import create_json, remove_stale_temporaries, write_json
from l2s_hpc.store.journal import Event
from l2s_hpc.store.layout import RunPaths, safe_name
from l2s_hpc.store.run import RunInfo, check_free, read_run
from l2s_hpc.store.state import check_journal

_PACKAGES = ("l2s_hpc", "pymoo", "numpy", "pyarrow", "polars", "submitit", "sympy")


def open_controller(
    config: SearchConfig,
    site: SiteConfig,
    folder: Path,
    command: str,
    resubmit_cancelled: bool = False,
    by_user: bool = True,
) -> Controller:
    """Begin a run in a folder, or go on with the one that is there.

    Args:
        config: the job.
        site: the site.
        folder: the run directory.
        command: what the user typed, for the record.
        resubmit_cancelled: send again what somebody has cancelled until now.
        by_user: somebody gave the command, no script and no clock.

    Raises:
        UserError: the job or site is wrong, or the folder holds another search; nothing is written.
        DamageError: the run has score tables and no journal.
    """
    paths = RunPaths(folder)
    check_executor(site)
    if paths.run_json.exists():
        info = read_run(folder)
        check_journal(paths)
        resolved = resolve(_as_begun(config, info), site, frozen=info.frozen)
        _check_same_search(info, resolved, folder)
    else:
        check_free(folder)
        resolved = resolve(config, site)
        check_memory(resolved)
        info = _create(paths, resolved, command)
    remove_stale_temporaries(folder)
    controller = Controller(paths, info, resolved, make_executor(paths, site))
    said = {"by_user": by_user, "resubmit": resubmit_cancelled}
    _record_start(controller, info, resolved, command, said)
    return controller


def _as_begun(config: SearchConfig, info: RunInfo) -> SearchConfig:
    """Return the job as a run means it that is older than noise twins: none, unless asked for."""
    if "noise" in info.config or "noise" in config.model_fields_set:
        return config
    return config.model_copy(update={"noise": NoiseConfig(twins=0)})


def _create(paths: RunPaths, resolved: Resolved, command: str) -> RunInfo:
    """Write the evaluations, then run.json, which makes the folder a run; the first one wins."""
    name = safe_name(resolved.config.name)
    info = RunInfo(
        id=f"{name}-{secrets.token_hex(4)}",
        name=name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        versions=versions(),
        git=git_state(),
        config=resolved.config.model_dump(mode="json"),
        site=resolved.site.model_dump(mode="json"),
        models={n: s.model_dump() for n, s in model_sources(resolved.config).items()},
        identities=resolved.identities,
        frozen=resolved.space.frozen,
        liveness=resolved.liveness,
        references=resolved.references,
        science=resolved.science,
    )
    for evaluation_name, evaluation in resolved.evaluations.items():
        write_json(paths.evaluation(evaluation_name), evaluation.model_dump(mode="json"))
    if not create_json(paths.run_json, info.model_dump(mode="json")):
        return read_run(paths.folder)
    return info


def _check_same_search(info: RunInfo, resolved: Resolved, folder: Path) -> None:
    ours, theirs = resolved.science, info.science
    rows = difference(theirs, ours)
    if rows:
        raise UserError(
            "the run directory holds another search:\n" + side_by_side(rows),
            hint="name another directory with --run, or give the same settings to go on",
            path=folder,
        )


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return (key, old value, new value) of the settings that differ."""
    return [
        (key, _shown(old, key), _shown(new, key))
        for key in sorted(old.keys() | new.keys())
        if _plain(old.get(key)) != _plain(new.get(key))
    ]


def side_by_side(rows: list[tuple[str, str, str]]) -> str:
    """Return differing settings as text in two columns."""
    table = [("setting", "in the run", "given now"), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    return "\n".join(
        "  "
        + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    )


def _record_start(
    controller: Controller, info: RunInfo, resolved: Resolved, command: str, said: Event
) -> None:
    """Journal that a controller starts, on which site, and what differs from the run's first start.

    Only operational settings can differ: others were refused.
    """
    if controller.finished:
        return
    site = resolved.site.model_dump(mode="json")
    config = flatten(resolved.config.model_dump(mode="json"))
    given = config | flatten(site, "site")
    job = {"noise": {"twins": 0}, **info.config}
    before = flatten(validate(SearchConfig, job).model_dump(mode="json"))
    before |= flatten(validate(SiteConfig, info.site).model_dump(mode="json"), "site")
    changed = [
        {"event": "changed", "key": key, "old": old, "new": new}
        for key, old, new in difference(before, given)
    ]
    started = {
        "event": "started",
        "command": command,
        "site": site,
        "operational": {key: config.get(key) for key in OPERATIONAL},
        **said,
    }
    while not _recorded(controller, [started, *changed], said["by_user"]):
        controller.refresh()


def _recorded(controller: Controller, events: list[Event], by_user: bool) -> bool:
    """Record a start; one that no user has asked for does not undo `l2s stop`, however late."""
    if controller.state.stopped and not by_user:
        raise IncompleteError("stopped by `l2s stop`", hint="`l2s run` by hand goes on")
    return controller.record(events)


def versions() -> dict[str, str]:
    """Return the versions of this package and of those that decide what a controller does."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_state() -> dict[str, str] | None:
    """Return commit and cleanliness of the working tree that the job is run from, if it is one."""
    try:
        commit = _git("rev-parse", "HEAD")
        dirty = _git("status", "--porcelain")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": "yes" if dirty else "no"}


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()


def _shown(settings: Mapping[str, Any], key: str) -> str:
    return str(settings[key]) if key in settings else "(not set)"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
