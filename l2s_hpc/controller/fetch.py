"""`l2s fetch`: parents and benchmarks into the cache that offline nodes read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from l2s_hpc.config import SearchConfig
from l2s_hpc.controller.resolve import model_sources
from l2s_hpc.errors import UserError
from l2s_hpc.evaluation.benchmarks import load_from_hub, read, sources, strangers
from l2s_hpc.recipes.models import Model, is_hub_id
from l2s_hpc.records import short_hash
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


def fetch(config: SearchConfig, offline: bool) -> dict[str, Any]:
    """Bring what a job needs from the hub into the cache, and say what came.

    Args:
        config: the job.
        offline: check the cache only, and use no network.

    Returns:
        `{"models": {name: {id, revision, folder, files: {name: sha256}}}, "benchmarks": {name:
        {dataset, revision, rows, rows_hash, unknown, missing}}}`; shipped and local parts are left
        out. `unknown` and `missing` count the problems that are other than the published ones.

    Raises:
        UserError: something cannot be fetched, or is not in the cache.
    """
    models = {
        name: _fetch_model(name, where.path, where.revision, offline)
        for name, where in model_sources(config).items()
        if is_hub_id(where.path)
    }
    benchmarks = {}
    for name in config.benchmarks:
        entry = sources().get(name)
        if entry is not None and entry.dataset:
            rows, revision = load_from_hub(entry, offline)
            items = [problem.item for problem in read(entry, rows, entry.dataset)]
            unknown, missing = strangers(entry, items)
            benchmarks[name] = {
                "dataset": entry.dataset,
                "revision": revision,
                "rows": len(rows),
                "rows_hash": short_hash([{k: str(v) for k, v in row.items()} for row in rows], 64),
                "unknown": len(unknown),
                "missing": len(missing),
            }
    return {"models": models, "benchmarks": benchmarks}


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
