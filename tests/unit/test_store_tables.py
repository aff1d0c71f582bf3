"""A flipped byte, a lost row: found before a number is printed, in any table of a large run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bench.analysis_run import Size, make_run
from l2s_hpc import open_run
from l2s_hpc.controller.compact import compact
from l2s_hpc.controller.verify import quarantine, verify
from l2s_hpc.errors import DamageError
from l2s_hpc.store.files import read_json, sha256_file, write_json
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.store.scores import SCORES, content_sha256, read_table, rows_sha256
from l2s_hpc.store.tables import Manifest, Tables, read_manifest


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 200 tables."""
    run = tmp_path_factory.mktemp("whole") / "run"
    make_run(run, Size(candidates=200, items=8, samples=1))
    return run


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def tables(run: Path) -> list[Path]:
    return sorted((run / "scores").rglob("*.parquet"))


def test_the_run_is_sound(run: Path) -> None:
    assert verify(run) == (200, [])
    assert len(open_run(run).measures("search")) == 200


@pytest.mark.parametrize("part", range(4))
def test_a_flipped_byte_anywhere_is_found_by_verify(run: Path, part: int) -> None:
    """Each table has another byte flipped: 800 places from the first to the last byte."""
    for number, path in enumerate(tables(run)):
        flip(path, (number + 200 * part) / 799)
    assert sorted(damage.path for damage in verify(run)[1]) == tables(run)


def test_a_flipped_byte_anywhere_is_found_before_a_number_is_printed(run: Path) -> None:
    opened, found = tables(run), 0
    for number in range(0, 200, 5):
        path = opened[number]
        content = path.read_bytes()
        flip(path, number / 199)
        for ask in (open_run(run).measures, open_run(run).ntr, open_run(run).scores):
            with pytest.raises(DamageError, match="sha256 differs") as caught:
                ask("search")
            assert caught.value.path == path
            found += 1
        path.write_bytes(content)
    assert found == 120


def test_a_flipped_byte_is_left_out_and_said_where_that_is_asked_for(run: Path) -> None:
    path = tables(run)[77]
    flip(path, 0.5)
    with pytest.warns(UserWarning, match=path.stem):
        assert len(open_run(run, strict=False).measures("search")) == 199


def test_a_flipped_bit_of_joined_tables_costs_the_candidates_of_a_row_group(tmp_path: Path) -> None:
    run = tmp_path / "run"
    make_run(run, Size(candidates=23, items=50, samples=1))
    before = open_run(run).measures("search")
    assert not compact(run).damage
    (part,) = tables(run)
    file = pq.ParquetFile(part)
    assert [file.metadata.row_group(n).num_rows for n in range(3)] == [400, 400, 350]
    hit = file.read_row_group(1, columns=["candidate"]).column(0).unique().to_pylist()
    tokens = file.metadata.row_group(1).column(SCORES.get_field_index("n_output_tokens"))
    content = bytearray(part.read_bytes())
    content[tokens.data_page_offset + tokens.total_compressed_size - 1] ^= 1
    part.write_bytes(content)
    _, damage = verify(run)
    assert [sorted(a.candidate for a in d.accepted) for d in damage] == [[], sorted(hit)]
    assert quarantine(run, damage) == len(hit) == 8
    assert verify(run) == (15, [])
    with pytest.warns(UserWarning, match="8 tables are in quarantine"):
        left = open_run(run).measures("search")
    assert left == {c: row for c, row in before.items() if c not in hit}


def test_a_table_that_changes_while_a_run_is_open_is_found(run: Path) -> None:
    opened = open_run(run)
    opened.scores("search")
    flip(tables(run)[3], 0.7)
    with pytest.raises(DamageError):
        opened.scores("search")


def test_a_row_less_is_an_error_and_no_smaller_mean(run: Path) -> None:
    """Whatever else is made to fit: the sha256 of the receipt, or its content hash and rows."""
    path = tables(run)[5]
    table = read_table(path)
    less = table.slice(1)
    pq.write_table(less, path)
    receipt = run / "receipts" / path.relative_to(run / "scores").with_suffix(".json")
    said = read_json(receipt)
    with pytest.raises(DamageError, match="sha256"):
        open_run(run).measures("search")
    write_json(receipt, said | {"file_sha256": sha256_file(path)})
    with pytest.raises(DamageError, match="7 rows, 8 were accepted"):
        open_run(run).measures("search")
    assert [damage.path for damage in verify(run)[1]] == [path]
    whole = {"file_sha256": sha256_file(path), "content_sha256": content_sha256(less), "rows": 7}
    write_json(receipt, said | whole)
    with pytest.raises(DamageError, match="not the one that was accepted"):
        open_run(run).measures("search")
    assert len(verify(run)[1]) == 1


def test_a_manifest_is_sealed(tmp_path: Path) -> None:
    path = tmp_path / "0000.json"
    assert read_manifest(path) is None
    manifest = Manifest(
        kind="scores", evaluation="search", generation=0, part=1, file_sha256="ab", tables=()
    ).sealed()
    write_json(path, manifest.model_dump(mode="json"))
    assert read_manifest(path) == manifest
    write_json(path, manifest.model_dump(mode="json") | {"file_sha256": "cd"})
    with pytest.raises(DamageError, match="the manifest of joined tables was changed"):
        read_manifest(path)
    write_json(path, {"kind": "scores"})
    with pytest.raises(DamageError, match="not a manifest of joined tables"):
        read_manifest(path)


def test_the_hash_of_rows_depends_on_values_and_order_alone(run: Path) -> None:
    table = read_table(tables(run)[0])
    chunked = table.slice(0, 3), table.slice(3, 0), table.slice(3)
    import pyarrow as pa

    assert rows_sha256(pa.concat_tables(chunked)) == rows_sha256(table)
    assert rows_sha256(table.take([1, 0, *range(2, 8)])) != rows_sha256(table)
    assert content_sha256(table.take([1, 0, *range(2, 8)])) == content_sha256(table)


def test_what_lies_nowhere_has_a_place_all_the_same(run: Path) -> None:
    where = ("search", 3, "nobody")
    paths = RunPaths(run)
    found = Tables(paths)
    assert found.scores(where).path == paths.scores(*where)
    with pytest.raises(DamageError, match="the receipt of an accepted table is missing"):
        found.receipt(where)


def flip(path: Path, place: float) -> None:
    """Flip a bit of the byte at a place between 0, the first, and 1, the last."""
    content = bytearray(path.read_bytes())
    content[round(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)
