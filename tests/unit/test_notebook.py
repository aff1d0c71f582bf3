"""docs/analysis.ipynb: every cell runs with the present code on the committed sample run."""

from __future__ import annotations

import copy
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from l2s_hpc import open_run
from l2s_hpc.controller.verify import verify

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "analysis.ipynb"
SAMPLE = ROOT / "results" / "sample"


@pytest.fixture(scope="module")
def committed() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]


def shown(cell: nbformat.NotebookNode) -> list[str]:
    """What a cell shows beside printed text, which comes in as many pieces as it happens to."""
    kinds = [output.output_type for output in cell.get("outputs", [])]
    return [kind for kind in kinds if kind != "stream"]


@pytest.mark.slow
@pytest.mark.parametrize("place", [".", "docs"])
def test_every_cell_runs(place: str, committed: nbformat.NotebookNode, tmp_path: Path) -> None:
    """From the folder of the checkout, and from the notebook's own; an error in a cell fails."""
    shutil.copytree(SAMPLE, tmp_path / "results" / "sample")
    (tmp_path / "docs").mkdir()
    resources = {"metadata": {"path": str(tmp_path / place)}}
    done = NotebookClient(copy.deepcopy(committed), timeout=300, resources=resources).execute()
    for before, after in zip(committed.cells, done.cells, strict=True):
        assert shown(before) == shown(after), before.source


def test_its_outputs_are_stored_and_small(committed: nbformat.NotebookNode) -> None:
    code = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in code)
    assert not any(o.output_type == "error" for cell in code for o in cell.outputs)
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 300_000
    assert not re.search(r"/home/|/root/|/tmp/|/work/", text)


def test_the_sample_run_is_whole_small_and_of_no_machine() -> None:
    tables, damage = verify(SAMPLE)
    assert tables > 10 and damage == []
    assert open_run(SAMPLE).stage == "complete"
    files = [path for path in SAMPLE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_000_000
    for path in files:
        if path.suffix == ".json":
            found = re.findall(r'"/\w[^"]*"|/(?:home|root|tmp|work)/', path.read_text("utf-8"))
            assert not found, (path, found)
