"""docs/scores.md says what the files hold; its snippets run; other readers see the same rows."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from l2s_hpc import open_run
from l2s_hpc.controller.import_run import import_run
from l2s_hpc.controller.regrade import GradeReceipt
from l2s_hpc.records import Evaluation, Item, Protocol, Receipt
from l2s_hpc.store.scores import GRADES, OUTPUTS, SCORES
from tests.foreign import row, write_outputs

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "results" / "sample"
DOCUMENT = (ROOT / "docs" / "scores.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
TYPES = {"string": pa.string(), "int32": pa.int32(), "int64": pa.int64(), "bool": pa.bool_()}


def section(title: str) -> str:
    """Return the text below a heading."""
    found = DOCUMENT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    assert found, title
    return found


def cells(text: str) -> list[list[str]]:
    """Return the rows of the tables in a text, without their heads."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def keys(text: str) -> list[str]:
    """Return the names in the first column of the tables in a text."""
    return [name for row in cells(text) for name in re.findall(r"`(\w+)`", row[0])]


@pytest.mark.parametrize(
    ("title", "schema"), [("Score tables", SCORES), ("Full texts", OUTPUTS), ("Grades", GRADES)]
)
def test_the_documented_columns_are_those_of_the_schema(title: str, schema: pa.Schema) -> None:
    documented = cells(section(title))
    assert [row[0].strip("`") for row in documented] == schema.names
    for name, kind, null, meaning in documented:
        field = schema.field(name.strip("`"))
        assert TYPES[kind] == field.type, name
        assert (null == "never") is (not field.nullable) or null == "never in ours", name
        assert meaning


def test_the_documented_keys_are_those_of_the_records() -> None:
    assert sorted(keys(section("Receipts"))) == sorted(Receipt.model_fields)
    items, protocol = section("Evaluations").split("| key of the protocol |")
    assert sorted(keys(items)) == sorted(Item.model_fields)
    assert sorted(keys(protocol)) == sorted(Protocol.model_fields)
    assert re.findall(r'"(\w+)"', items.partition("`{")[2].partition("}`")[0]) == [
        *Evaluation.model_fields
    ]
    beside = section("Grades").rpartition("The JSON file beside it")[2]
    assert set(re.findall(r"`(\w+)`", beside)) == set(GradeReceipt.model_fields)


def test_the_whole_of_a_sound_run_is_documented() -> None:
    """No file of the sample run is of a kind that the page does not name."""
    named = set(re.findall(r"^  (\w[\w.]*?)[/ ]", DOCUMENT, re.MULTILINE)) | {"journal"}
    assert {path.name for path in SAMPLE.iterdir()} <= named | {"report.html"}


def run_snippet(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", code]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        command, cwd=folder, env=offline, capture_output=True, text=True, check=False, timeout=300
    )


def copied(tmp_path: Path) -> Path:
    """Return a folder with the sample run in it, where nothing else is."""
    shutil.copytree(SAMPLE, tmp_path / "results" / "sample")
    return tmp_path


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_every_snippet_runs_offline(number: int, tmp_path: Path) -> None:
    done = run_snippet(SNIPPETS[number], copied(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "candidate" in done.stdout


def test_there_is_a_snippet_for_each_reader() -> None:
    for reader in ("duckdb", "pandas", "pyarrow", "polars", "datasets"):
        assert sum(f"import {reader}" in s or f"from {reader}" in s for s in SNIPPETS) == 1


ALL_READERS = """
import json
from pathlib import Path
import duckdb, pandas as pd, polars as pl, pyarrow.parquet as pq
from datasets import load_dataset

pattern = "{scores}/**/*.parquet"
files = sorted(Path("{scores}").rglob("*.parquet"))
relation = duckdb.sql(f"FROM read_parquet('{{pattern}}', hive_partitioning = false)")
frame = pd.concat(pd.read_parquet(file, partitioning=None) for file in files)
data = load_dataset("parquet", data_files=pattern, split="train")
polar = pl.read_parquet(pattern, hive_partitioning=False)
one = pq.ParquetDataset(files, partitioning=None).read()
key = ["candidate", "benchmark", "item", "sample"]
def rows(frame):
    frame = frame.sort_values(key)[["correct", "n_output_tokens", "extracted", "gold"]]
    return frame.astype(object).where(frame.notna(), None).values.tolist()
found = [rows(f) for f in (frame, relation.df(), data.to_pandas(), polar.to_pandas(), one.to_pandas())]
assert all(f == found[0] for f in found), [f[:3] for f in found]
print(json.dumps([list(relation.columns), list(data.features), len(found[0])]))
"""  # noqa: E501


@pytest.mark.parametrize("kind", ["sample", "imported"])
def test_all_readers_see_the_same_rows(kind: str, tmp_path: Path) -> None:
    """Also where columns are null in all rows of a file, as in imports."""
    if kind == "imported":
        for name in ("a/1", "b=2/model"):
            rows = [row(n, str(n), "1") for n in range(4)]
            write_outputs(tmp_path / "theirs", name, "alpha", rows)
        import_run(tmp_path / "theirs", tmp_path / "run")
        folder, scores, evaluation = tmp_path / "run", "run/scores/imported", "imported"
    else:
        folder, scores, evaluation = SAMPLE, "results/sample/scores/report", "report"
        copied(tmp_path)
    done = run_snippet(ALL_READERS.format(scores=scores), tmp_path)
    assert done.returncode == 0, done.stderr
    count = open_run(folder).scores(evaluation).collect().height
    assert f", {count}]" in done.stdout
    assert done.stdout.count('"finish_reason"') == 2
