"""`l2s fetch`: parents and benchmarks into the cache that offline nodes read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from l2s_hpc.config import SearchConfig, SiteConfig
from l2s_hpc.controller.resolve import model_sources
from l2s_hpc.errors import UserError
from l2s_hpc.evaluation.benchmarks import Source, load_from_hub, origin_of, read, source, strangers
from l2s_hpc.evaluation.rows import rows_sha256
from l2s_hpc.recipes.models import Model, is_hub_id
from l2s_hpc.store.files import sha256_file

_FILES = [
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "*.jinja",
    "*.txt",
    "LICENSE*",
    "NOTICE*",
    "README.md",
]


NOT_FETCHED = {"package": "comes with the package", "file": "local file", None: "has no source"}
"""What is said of a benchmark that is not fetched, by where its rows are read from."""


def fetch(config: SearchConfig, site: SiteConfig, offline: bool) -> dict[str, Any]:
    """Bring what a job needs from the hub into the cache, and say what came.

    Args:
        config: the job.
        site: its local files of benchmarks are used instead of the hub's.
        offline: check the cache only, and use no network.

    Returns:
        `{"models": {name: {id, revision, folder, files: {name: sha256}}}, "benchmarks": {name:
        {dataset, revision, rows, rows_sha256, unknown, missing}}}`; models in local folders are
        left out. `unknown` and `missing` count the problems that are other than the published ones.
        A benchmark that is not the hub's has `{note}`, what is in `NOT_FETCHED`, and a local file
        its `path`.

    Raises:
        UserError: a benchmark is unknown; something cannot be fetched, or is not in the cache.
    """
    # Names first: a misspelt one should not wait for gigabytes.
    entries = {name: source(name, site.benchmarks) for name in config.benchmarks}
    models = {
        name: _fetch_model(name, where.path, where.revision, offline)
        for name, where in model_sources(config).items()
        if is_hub_id(where.path)
    }
    benchmarks = {
        name: _fetch_benchmark(entry, site.benchmarks, offline) for name, entry in entries.items()
    }
    return {"models": models, "benchmarks": benchmarks}


def _fetch_benchmark(entry: Source, files: Mapping[str, str], offline: bool) -> dict[str, Any]:
    kind = origin_of(entry, files)
    if kind != "hub":
        local = {"path": files[entry.name]} if kind == "file" else {}
        return {"note": NOT_FETCHED[kind], **local}
    rows, revision = load_from_hub(entry, offline)
    items = [problem.item for problem in read(entry, rows, entry.dataset)]
    unknown, missing = strangers(entry, items)
    return {
        "dataset": entry.dataset,
        "revision": revision,
        "rows": len(rows),
        "rows_sha256": rows_sha256(rows),
        "unknown": len(unknown),
        "missing": len(missing),
    }


def _fetch_model(name: str, hub_id: str, revision: str | None, offline: bool) -> dict[str, Any]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(
                hub_id, revision=revision, allow_patterns=_FILES, local_files_only=offline
            )
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(
            f"model '{name}' ({hub_id}) cannot be fetched: {error}",
            hint="this needs network; on a cluster run it on a login or transfer node",
        ) from error
    model = Model(name, folder)
    files = {
        path.name: sha256_file(path) for path in sorted({t.file for t in model.tensors.values()})
    }
    # A snapshot's folder is named after its commit: that is the revision that was seen.
    return {"id": hub_id, "revision": folder.name, "folder": str(folder), "files": files}
