"""Score tables: what their hashes stand for, and that no damage gets past their check."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from l2s_hpc.errors import DamageError
from l2s_hpc.records import Receipt
from l2s_hpc.store.scores import (
    OUTPUTS,
    SCORES,
    content_sha256,
    read_table,
    verify_table,
    write_table,
)
from tests.unit import events

OTHER: dict[pa.DataType, Any] = {
    pa.string(): "another",
    pa.int32(): 77,
    pa.int64(): 2**40,
    pa.bool_(): True,
}


def row(number: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "run": "toy-1",
        "evaluation": "search",
        "protocol": "p1",
        "generation": 2,
        "candidate": "c1",
        "benchmark": "b1" if number % 3 else "b2",
        "item": f"item é {number}",
        "sample": number % 2,
        "seed": 2**62 + number,
        "correct": False,
        "gradable": False,
        "extracted": None if number % 5 else f"{number}",
        "gold": f"{number}",
        "grader": "g1",
        "grade_status": "ok",
        "n_prompt_tokens": 10,
        "n_output_tokens": number,
        "n_charged_tokens": number + 1,
        "finish_reason": "stop",
        "truncated": False,
        **changes,
    }


ROWS = [row(number) for number in range(40)]


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCORES)


def receipt(path: Path, **changes: Any) -> Receipt:
    """The receipt that an honest node writes for ROWS, with the file as it is."""
    fields: dict[str, Any] = {
        "generation": 2,
        "protocol": "p1",
        "rows": len(ROWS),
        "file_sha256": hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        "content_sha256": content_sha256(table(ROWS)),
    }
    return events.receipt(**{"candidate": "c1", **fields, **changes})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "scores.parquet"
    sha = write_table(found, ROWS, SCORES)
    assert sha == hashlib.sha256(found.read_bytes()).hexdigest()
    return found


def test_rows_and_schema_come_back(path: Path) -> None:
    found = read_table(path)
    assert found.to_pylist() == ROWS
    assert found.schema.equals(SCORES, check_metadata=True)
    assert verify_table(path, receipt(path)).equals(found)


def test_outputs_have_their_own_schema(tmp_path: Path) -> None:
    rows = [{name: row()[name] for name in OUTPUTS.names if name != "text"} | {"text": "a\0b"}]
    write_table(tmp_path / "o.parquet", rows, OUTPUTS)
    assert read_table(tmp_path / "o.parquet", OUTPUTS).to_pylist() == rows
    with pytest.raises(DamageError, match="its columns are not those"):
        read_table(tmp_path / "o.parquet")


def test_an_empty_table_can_be_written_but_never_counts(tmp_path: Path) -> None:
    write_table(tmp_path / "e.parquet", [], SCORES)
    assert read_table(tmp_path / "e.parquet").num_rows == 0
    with pytest.raises(DamageError, match="0 rows, the receipt says 0"):
        verify_table(tmp_path / "e.parquet", receipt(tmp_path / "e.parquet", rows=0))


@pytest.mark.parametrize("column", [f.name for f in SCORES if not f.nullable])
def test_what_must_be_there_cannot_be_null(tmp_path: Path, column: str) -> None:
    with pytest.raises((pa.ArrowException, TypeError), match="null"):
        write_table(tmp_path / "n.parquet", [row() | {column: None}], SCORES)
    assert list(tmp_path.iterdir()) == []


NULLABLE = [f.name for f in SCORES if f.nullable and f.name != "extracted"]


def test_tables_of_version_1_stay_readable(tmp_path: Path) -> None:
    strict = [f.with_nullable(f.name == "extracted") for f in SCORES]
    old = pa.schema(strict, metadata={"schema": "l2s_hpc scores 1"})
    write_table(tmp_path / "old.parquet", ROWS, old)
    found = verify_table(tmp_path / "old.parquet", receipt(tmp_path / "old.parquet"))
    assert found.to_pylist() == ROWS
    assert found.schema.equals(SCORES)


def test_what_an_import_cannot_know_is_null_and_nothing_else_is(tmp_path: Path) -> None:
    rows = [row() | dict.fromkeys(NULLABLE)]
    write_table(tmp_path / "n.parquet", rows, SCORES)
    assert read_table(tmp_path / "n.parquet").to_pylist() == rows
    loose = pa.schema([f.with_nullable(True) for f in SCORES])
    write_table(tmp_path / "n.parquet", [row() | {"correct": None}], loose)
    with pytest.raises(DamageError, match="a column that is always known holds a null"):
        read_table(tmp_path / "n.parquet")


@given(st.permutations(ROWS))
def test_the_content_hash_does_not_know_the_order_of_rows(rows: list[dict[str, Any]]) -> None:
    assert content_sha256(table(rows)) == content_sha256(table(ROWS))


def test_the_content_hash_does_not_know_the_run_nor_how_the_file_is_written(
    tmp_path: Path,
) -> None:
    wanted = content_sha256(table(ROWS))
    assert content_sha256(table([r | {"run": "another"} for r in ROWS])) == wanted
    options: list[dict[str, Any]] = [
        {"compression": "none"},
        {"compression": "snappy", "use_dictionary": False},
        {"row_group_size": 7},
    ]
    for number, option in enumerate(options):
        pq.write_table(table(ROWS), tmp_path / f"{number}.parquet", **option)
        assert content_sha256(read_table(tmp_path / f"{number}.parquet")) == wanted


@pytest.mark.parametrize("column", [name for name in SCORES.names if name != "run"])
def test_the_content_hash_knows_every_other_column(column: str) -> None:
    wanted = content_sha256(table(ROWS))
    for position in (0, 17, len(ROWS) - 1):
        rows = list(ROWS)
        rows[position] = rows[position] | {column: OTHER[SCORES.field(column).type]}
        assert content_sha256(table(rows)) != wanted


def test_the_content_hash_tells_null_from_text() -> None:
    hashes = {content_sha256(table([row(extracted=v)])) for v in (None, "", "None", "null")}
    assert len(hashes) == 4


def test_values_do_not_move_between_rows_unnoticed() -> None:
    one, two = row(1, correct=True), row(2)
    swapped = [one | {"correct": False}, two | {"correct": True}]
    assert content_sha256(table([one, two])) != content_sha256(table(swapped))


def test_a_flipped_bit_is_found_wherever_it_is(path: Path) -> None:
    honest, whole = receipt(path), path.read_bytes()
    draw = random.Random(1)
    for position in [0, len(whole) - 1, *draw.sample(range(len(whole)), 200)]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(DamageError, match="the sha256 differs") as error:
            verify_table(path, honest)
        assert str(path) in str(error.value)


def test_damage_before_the_file_was_hashed_is_found_or_changes_nothing(path: Path) -> None:
    """The file's hash is right, as if a bit had flipped on its way to the disk."""
    whole, draw, found = path.read_bytes(), random.Random(2), 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            verified = verify_table(path, receipt(path))
        except DamageError:
            found += 1
        else:
            assert verified.to_pylist() == ROWS
    assert found > 100


@given(st.binary(max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_other_bytes_are_damage(tmp_path: Path, content: bytes) -> None:
    found = tmp_path / "any.parquet"
    for bytes_ in (content, b"PAR1" + content + b"PAR1"):
        found.write_bytes(bytes_)
        with pytest.raises(DamageError):
            verify_table(found, receipt(found))


def test_a_cut_file_is_damage_whether_or_not_its_hash_is_known(path: Path) -> None:
    honest, whole = receipt(path), path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        for known in (honest, receipt(path)):
            with pytest.raises(DamageError):
                verify_table(path, known)


def test_a_missing_file_and_a_folder_are_damage(tmp_path: Path) -> None:
    (tmp_path / "folder.parquet").mkdir()
    for name in ("no.parquet", "folder.parquet"):
        with pytest.raises(DamageError, match="the score table is missing"):
            verify_table(tmp_path / name, receipt(tmp_path / name))


def rewritten(path: Path, others: list[dict[str, Any]], **changes: Any) -> Receipt:
    """Write other rows; their receipt is honest about the file and its content."""
    write_table(path, others, SCORES)
    content = content_sha256(table(others))
    return receipt(path, **{"content_sha256": content, "rows": len(others)} | changes)


def test_missing_and_surplus_rows_are_found(path: Path) -> None:
    for rows in (ROWS[1:], ROWS[:-1], [*ROWS, row(40)]):
        honest = rewritten(path, rows, rows=len(ROWS))
        with pytest.raises(DamageError, match=f"{len(rows)} rows, the receipt says {len(ROWS)}"):
            verify_table(path, honest)


def test_a_repeated_key_is_found(path: Path) -> None:
    honest = rewritten(path, [*ROWS[:-1], ROWS[0] | {"correct": True}])
    with pytest.raises(DamageError, match=r"a key \(benchmark, item, sample\) is repeated"):
        verify_table(path, honest)


@pytest.mark.parametrize("column", ["run", "evaluation", "protocol", "generation", "candidate"])
def test_a_table_that_belongs_elsewhere_is_found(path: Path, column: str) -> None:
    value = OTHER[SCORES.field(column).type]
    for rows in ([r | {column: value} for r in ROWS], [*ROWS[:-1], ROWS[-1] | {column: value}]):
        honest = rewritten(path, rows)
        with pytest.raises(DamageError, match=f"column {column} holds"):
            verify_table(path, honest)


def test_another_content_than_the_receipts_is_found(path: Path) -> None:
    honest = rewritten(path, [r | {"correct": True} for r in ROWS], **{"content_sha256": "0" * 64})
    with pytest.raises(DamageError, match="the content hash differs"):
        verify_table(path, honest)


def test_other_columns_are_found(path: Path) -> None:
    for changed in (
        table(ROWS).drop_columns(["truncated"]),
        table(ROWS).append_column("more", pa.array(range(len(ROWS)))),
        table(ROWS).set_column(9, "correct", pa.array([0] * len(ROWS))),
    ):
        pq.write_table(changed, path)
        with pytest.raises(DamageError, match="its columns are not those"):
            verify_table(path, receipt(path))
