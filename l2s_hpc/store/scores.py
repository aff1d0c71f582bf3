"""Score tables: one row per (candidate, item, sample) of an evaluation, in Parquet.

Every table is written with page checksums, and the sha256 of the whole file stands in its
receipt: a flipped bit inside a page is otherwise read silently.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from l2s_hpc.errors import DamageError
from l2s_hpc.records import Receipt
from l2s_hpc.store.files import sha256_file, write_durably

SCHEMA_VERSION = "2"
"""Version 1, which stays readable, allowed no nulls in gold, tokens, finish_reason and truncated.

An import knows none of these where the foreign files do not tell them: null is the honest value.
"""

SCORES = pa.schema(
    [
        pa.field("run", pa.string(), nullable=False),
        pa.field("evaluation", pa.string(), nullable=False),
        pa.field("protocol", pa.string(), nullable=False),
        pa.field("generation", pa.int32(), nullable=False),
        pa.field("candidate", pa.string(), nullable=False),
        pa.field("benchmark", pa.string(), nullable=False),
        pa.field("item", pa.string(), nullable=False),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("correct", pa.bool_(), nullable=False),
        pa.field("gradable", pa.bool_(), nullable=False),
        pa.field("extracted", pa.string()),
        pa.field("gold", pa.string()),
        pa.field("grader", pa.string(), nullable=False),
        pa.field("grade_status", pa.string(), nullable=False),
        pa.field("n_prompt_tokens", pa.int32()),
        pa.field("n_output_tokens", pa.int32()),
        pa.field("n_charged_tokens", pa.int32()),
        pa.field("finish_reason", pa.string()),
        pa.field("truncated", pa.bool_()),
    ],
    metadata={"schema": f"l2s_hpc scores {SCHEMA_VERSION}"},
)

GRADES = pa.schema(
    [
        pa.field("run", pa.string(), nullable=False),
        pa.field("evaluation", pa.string(), nullable=False),
        pa.field("generation", pa.int32(), nullable=False),
        pa.field("candidate", pa.string(), nullable=False),
        pa.field("benchmark", pa.string(), nullable=False),
        pa.field("item", pa.string(), nullable=False),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("grader", pa.string(), nullable=False),
        pa.field("correct", pa.bool_(), nullable=False),
        pa.field("grade_status", pa.string(), nullable=False),
        pa.field("extracted", pa.string()),
        pa.field("rule", pa.string()),
        pa.field("reason", pa.string()),
    ],
    metadata={"schema": f"l2s_hpc grades {SCHEMA_VERSION}"},
)
"""The verdicts of another grader, or of another version, on the outputs of a score table."""

OUTPUTS = pa.schema(
    [
        pa.field("candidate", pa.string(), nullable=False),
        pa.field("benchmark", pa.string(), nullable=False),
        pa.field("item", pa.string(), nullable=False),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("n_prompt_tokens", pa.int32()),
        pa.field("n_output_tokens", pa.int32()),
        pa.field("n_charged_tokens", pa.int32()),
        pa.field("finish_reason", pa.string()),
        pa.field("text", pa.string(), nullable=False),
    ],
    metadata={"schema": f"l2s_hpc outputs {SCHEMA_VERSION}"},
)

KEY = ("evaluation", "candidate", "benchmark", "item", "sample")

_HASHED_ROWS = 16384
"""Rows that are turned into text at once: full texts are long."""

_ENCODER = json.JSONEncoder(ensure_ascii=False)


def write_table(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> str:
    """Write rows durably as Parquet and return the sha256 of the file."""
    return write_arrow(path, pa.Table.from_pylist(rows, schema=schema))


def write_arrow(path: Path, table: pa.Table) -> str:
    """Write a table durably as Parquet and return the sha256 of the file."""
    write_durably(
        path,
        lambda temporary: pq.write_table(
            table, temporary, compression="zstd", write_page_checksum=True
        ),
    )
    return sha256_file(path)


def read_table(path: Path, schema: pa.Schema = SCORES) -> pa.Table:
    """Read a table and check its columns.

    Raises:
        DamageError: the file is not Parquet, its checksums fail, or its columns differ.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DamageError(f"not a readable table: {error}", path=path) from error
    return _parsed(content, path, schema)


def rows_in(path: Path) -> int:
    """Return how many rows a file says that it has.

    Raises:
        DamageError: it is not Parquet.
    """
    try:
        return int(pq.read_metadata(path).num_rows)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DamageError(f"not a readable table: {error}", path=path) from error


def _parsed(content: bytes, path: Path, schema: pa.Schema) -> pa.Table:
    """Return the table that a file's bytes hold."""
    try:
        with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True) as file:
            # Most tables are small: handing columns to threads takes longer than reading them.
            table = file.read(use_threads=False)
    # A name in the footer that is no UTF-8 is a plain ValueError.
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DamageError(f"not a readable table: {error}", path=path) from error
    return conforming(table, path, schema)


def conforming(table: pa.Table, path: Path, schema: pa.Schema) -> pa.Table:
    """Return a table that was read from a file with this schema, or raise `DamageError`."""
    if table.schema.names != schema.names or table.schema.types != schema.types:
        raise DamageError("its columns are not those of this version's tables", path=path)
    try:
        return table.cast(schema)
    except ValueError:
        raise DamageError("a column that is always known holds a null", path=path) from None


def content_sha256(table: pa.Table) -> str:
    """Return the hash of a score table's content: rows sorted by key, without `run`.

    Two tables with equal content hashes say the same of every item, whatever run, file order or
    compression they come from.
    """
    return rows_sha256(table.drop_columns(["run"]).sort_by([(name, "ascending") for name in KEY]))


def rows_sha256(table: pa.Table) -> str:
    """Return the hash of a table's values in their order, column by column as JSON."""
    digest = hashlib.sha256()
    for name in table.column_names:
        digest.update(f"[{json.dumps(name, ensure_ascii=False)}, [".encode())
        separator = ""
        for start in range(0, table.num_rows, _HASHED_ROWS):
            text = separator + _as_json(table.column(name).slice(start, _HASHED_ROWS))
            digest.update(text.encode())
            separator = ", "
        digest.update(b"]]")
    return digest.hexdigest()


def _as_json(values: pa.ChunkedArray) -> str:
    """Return values as JSON, with commas between; where many are equal, each is written once."""
    parts = []
    for chunk in values.chunks:
        coded = chunk.dictionary_encode()
        if 2 * len(coded.dictionary) > len(chunk):
            parts.append(json.dumps(chunk.to_pylist(), ensure_ascii=False)[1:-1])
            continue
        words = [*map(_ENCODER.encode, coded.dictionary.to_pylist()), "null"]
        codes = coded.indices.fill_null(len(words) - 1).to_pylist()
        parts.append(", ".join([words[code] for code in codes]))
    return ", ".join(part for part in parts if part)


def verify_table(path: Path, receipt: Receipt) -> pa.Table:
    """Check a score table against its receipt and return it.

    Raises:
        DamageError: the file is missing, differs from its receipt by a byte, holds another
            evaluation or candidate than the receipt says, or repeats a key.
    """
    if not path.is_file():
        raise DamageError("the score table is missing", path=path)
    # Read once, so that what is hashed is what is parsed.
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != receipt.file_sha256:
        raise DamageError("the sha256 differs from the receipt's", path=path)
    table = _parsed(content, path, SCORES)
    check_content(table, receipt, path)
    return table


def check_content(table: pa.Table, receipt: Receipt, path: Path) -> None:
    """Check rows of scores, from whatever file they come, against the receipt of their table.

    Raises:
        DamageError: they are not those, by count, owner or content, or repeat a key.
    """
    _check_owner(table, receipt, path)
    keys = table.select(["benchmark", "item", "sample"])
    if keys.group_by(keys.column_names, use_threads=False).aggregate([]).num_rows != table.num_rows:
        raise DamageError("a key (benchmark, item, sample) is repeated", path=path)
    if content_sha256(table) != receipt.content_sha256:
        raise DamageError("the content hash differs from the receipt's", path=path)


def verify_outputs(path: Path, receipt: Receipt) -> None:
    """Check that the full texts are those that a receipt names.

    Raises:
        DamageError: the file is missing, or differs by a byte.
    """
    if not path.is_file():
        raise DamageError("the table of outputs is missing", path=path)
    if sha256_file(path) != receipt.outputs_sha256:
        raise DamageError("the sha256 differs from the receipt's", path=path)


def _check_owner(table: pa.Table, receipt: Receipt, path: Path) -> None:
    if table.num_rows != receipt.rows or not table.num_rows:
        raise DamageError(f"{table.num_rows} rows, the receipt says {receipt.rows}", path=path)
    expected = {
        "run": receipt.run,
        "evaluation": receipt.evaluation,
        "protocol": receipt.protocol,
        "generation": receipt.generation,
        "candidate": receipt.candidate,
    }
    for column, value in expected.items():
        found = table.column(column).unique().to_pylist()
        if found != [value]:
            raise DamageError(f"column {column} holds {found}, not '{value}'", path=path)
