"""Joins the tables of a generation into one file, and maps them in a manifest.

Each step is durable before the next: the joined file is written beside the old ones, read again and
compared row by row, then named by the manifest, which counts from then on; only then are the old
files removed. Whatever ends it in between, all tables can be read, and the next call goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from l2s_hpc.errors import DamageError
from l2s_hpc.store.files import remove_durably, sha256_file, write_durably, write_json
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.store.scores import GRADES, KEY, OUTPUTS, SCORES, content_sha256, rows_sha256
from l2s_hpc.store.tables import JoinedTable, Manifest, Tables, places, read_manifest

_GROUP_TABLES = 8
"""Candidates in a row group: they share dictionaries and pages, and a flipped bit costs them all.

More of them take fewer bytes: what all have in common, ids of items and seeds, is in each group.
"""

_PAGE_BYTES = 4 << 20
_PAGE_ROWS = 1 << 20
"""A page holds the items of many candidates, so that zstd sees how they repeat."""

_SPLIT = ("n_output_tokens", "n_charged_tokens")
"""Columns of many different numbers: with their bytes apart they take less than any dictionary."""


@dataclass(frozen=True)
class Source:
    """A table that shall be found through the manifest.

    Attributes:
        candidate: whose it is.
        read: checks it and returns its rows.
        receipt: what the manifest keeps beside it.
        joined: whether it lies in the present joined file.
        files: what is removed once it is joined.
    """

    candidate: str
    read: Callable[[], pa.Table]
    receipt: dict[str, Any]
    joined: bool = False
    files: tuple[Path, ...] = ()


def join(
    paths: RunPaths, kind: str, evaluation: str, generation: int, sources: Sequence[Source]
) -> None:
    """Make one file of tables unless they are in one, and remove what it stands for.

    Args:
        paths: the run.
        kind: `scores`, `outputs` or a kind of grades.
        evaluation: theirs.
        generation: theirs.
        sources: all that the manifest shall name; none: joined tables that are there go.

    Raises:
        DamageError: a table, or what was written, is not what it should be; nothing is removed.
    """
    path = paths.joined(kind, evaluation, generation)
    manifest = read_manifest(path)
    known = [table.candidate for table in manifest.tables] if manifest else []
    if not sources:
        manifest = None
        if known:
            remove_durably([path])
    elif not all(source.joined for source in sources) or len(sources) != len(known):
        manifest = _write(paths, kind, evaluation, generation, sources)
        write_json(path, manifest.model_dump(mode="json"))
    clear(paths, kind, evaluation, generation, manifest)
    remove_durably(file for source in sources for file in source.files)


def clear(
    paths: RunPaths, kind: str, evaluation: str, generation: int, manifest: Manifest | None
) -> None:
    """Remove the parts that no manifest names."""
    named = manifest and paths.joined_part(kind, evaluation, generation, manifest.part)
    parts = paths.joined_parts(kind, evaluation, generation)
    remove_durably(part for part in parts if part != named)


def schema_of(kind: str) -> pa.Schema:
    """Return the schema of a kind of tables."""
    return {"scores": SCORES, "outputs": OUTPUTS}.get(kind, GRADES)


def content_of(kind: str, table: pa.Table) -> str:
    """Return the hash that a manifest has of a table of this kind."""
    return content_sha256(table) if kind == "scores" else rows_sha256(table)


def _write(
    paths: RunPaths, kind: str, evaluation: str, generation: int, sources: Sequence[Source]
) -> Manifest:
    """Write the next part, read it again, and return its manifest."""
    taken = [_number(path) for path in paths.joined_parts(kind, evaluation, generation)]
    part = max(taken, default=0) + 1
    path = paths.joined_part(kind, evaluation, generation, part)
    tables: list[JoinedTable] = []
    write_durably(path, lambda temporary: tables.extend(_stream(temporary, kind, sources)))
    manifest = Manifest(
        kind=kind,
        evaluation=evaluation,
        generation=generation,
        part=part,
        file_sha256=sha256_file(path),
        tables=tuple(tables),
    ).sealed()
    read = Tables(paths)
    for place in places(paths, manifest).values():
        table = place.table
        rows = read.rows(place, schema_of(kind))
        if table is None or content_of(kind, rows) != table.content_sha256:
            raise DamageError("what was joined is not what is read from it", path=path)
    return manifest


def _stream(path: Path, kind: str, sources: Iterable[Source]) -> Iterator[JoinedTable]:
    """Write tables one after another, and yield where each one lies."""
    schema, first = schema_of(kind), 0
    group: list[pa.Table] = []
    with _writer(path, schema) as writer:
        for source in sources:
            table = source.read()
            if kind != "outputs":
                # Candidates have the same items: in one order, what repeats is compressed away.
                keys = [(name, "ascending") for name in KEY if name in schema.names]
                table = table.sort_by(keys)
            # Scores were compared with their receipt's when they were read.
            scores = kind == "scores"
            content = source.receipt["content_sha256"] if scores else rows_sha256(table)
            yield JoinedTable(
                candidate=source.candidate,
                first=first,
                rows=table.num_rows,
                content_sha256=content,
                receipt=source.receipt,
            )
            first += table.num_rows
            group.append(table)
            # Full texts are long, and one candidate's are asked for: a row group each.
            if kind == "outputs" or len(group) == _GROUP_TABLES:
                _flush(writer, group)
        _flush(writer, group)


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=9,
        use_dictionary=[name for name in schema.names if name not in (*_SPLIT, "text")],
        column_encoding={name: "BYTE_STREAM_SPLIT" for name in _SPLIT if name in schema.names},
        write_page_checksum=True,
        data_page_size=_PAGE_BYTES,
        max_rows_per_page=_PAGE_ROWS,
        dictionary_pagesize_limit=_PAGE_BYTES,
    )


def _flush(writer: pq.ParquetWriter, group: list[pa.Table]) -> None:
    if group:
        table = pa.concat_tables(group)
        writer.write_table(table, row_group_size=max(table.num_rows, 1))
        group.clear()


def _number(part: Path) -> int:
    number = part.stem.rpartition("-")[2]
    return int(number) if number.isdecimal() else 0
