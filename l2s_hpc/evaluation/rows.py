"""The rows of a benchmark: from a JSON Lines or Parquet file, or from the hub's cache."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from l2s_hpc.errors import UserError
from l2s_hpc.evaluation.manifests import Source
from l2s_hpc.records import short_hash

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a Parquet file, or of a file with one JSON object a line.

    Raises:
        UserError: there is no such file, or it is neither.
    """
    if not path.exists():
        raise UserError("file not found", path=path)
    try:
        if path.suffix == ".parquet":
            rows: list[Any] = pq.read_table(path, partitioning=None).to_pylist()
        else:
            # Not splitlines: a line may hold U+2028 and the like.
            lines = path.read_text(encoding="utf-8").split("\n")
            rows = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"not JSON Lines or Parquet: {error}", path=path) from None
    if not all(isinstance(row, dict) for row in rows):
        raise UserError("a row is not an object with named fields", path=path)
    return rows


def rows_sha256(rows: Iterable[Row]) -> str:
    """Return the sha256 of rows in their order, with each value as text."""
    return short_hash([{name: str(value) for name, value in row.items()} for row in rows], 64)


def load_from_hub(entry: Source, offline: bool) -> tuple[list[Row], str | None]:
    """Read a benchmark with `datasets` from a snapshot of its repository on the hub.

    Args:
        entry: the benchmark.
        offline: True reads the cache alone; False (`l2s fetch`) fills it from the network.

    Returns:
        The rows, and the commit that they were read from (None: the snapshot is not named after
        one). The cache remembers it: an offline node reads the one that was fetched.

    Raises:
        UserError: the snapshot is not there or cannot be read.
    """
    import datasets
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            entry.dataset,
            repo_type="dataset",
            revision=entry.revision or None,
            local_files_only=offline,
        )
        table = datasets.load_dataset(folder, entry.subset, split=entry.split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"benchmark '{entry.name}' ({entry.dataset}) cannot be read: {error}",
            hint="run `l2s fetch JOB` on a node with network, or name a local file in the site's "
            "[benchmarks]",
        ) from error
    name = Path(folder).name
    return [dict(row) for row in table], name if re.fullmatch(r"[0-9a-f]{40}", name) else None
