"""`l2s doctor --node`, for real: this machine's packages, and two candidates through a worker."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def doctor(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "l2s_hpc.cli.main", "doctor", "--node", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)


@pytest.mark.slow
def test_two_candidates_of_the_toy_family() -> None:
    done = doctor("--json", "--set", "site.engine=transformers")
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert done.returncode == 0, done.stdout + done.stderr
    assert "two candidates of the toy family" in done.stderr
    for label in ("average", "task_arithmetic"):
        found = rows[f"self-test {label}"]["found"]
        assert found.startswith("16 answers, ") and " right, " in found and "generate" in found
        tokens = int(found.split(", ")[1].removesuffix(" tokens"))
        assert 16 < tokens <= 16 * 230


def test_a_site_that_cannot_generate(tmp_path: Path) -> None:
    """An engine that fails on one candidate, and one that stands still."""
    site = tmp_path / "site.toml"
    site.write_text('name = "s"\nexecutor = "local"\nengine = "scripted"\n[scripted]\n', "utf-8")
    done = doctor("--site", str(site))
    assert done.returncode == 3, done.stdout + done.stderr
    site.write_text(
        'name = "s"\nexecutor = "local"\nengine = "scripted"\n[scripted]\ndelay = 100\n', "utf-8"
    )
    done = doctor("--site", str(site), "--wait", "3", "--json")
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert done.returncode == 3
    assert "no receipt" in rows["self-test average"]["found"]
    assert "--wait" in rows["self-test average"]["remedy"]


def test_setup_lines_come_first_and_an_interpreter_may_be_wrong(tmp_path: Path) -> None:
    site = tmp_path / "site.toml"
    site.write_text(
        'name = "s"\nexecutor = "slurm"\npython = "/nowhere/$NAME/python"\n'
        'setup = ["echo hello from setup"]\n',
        "utf-8",
    )
    done = doctor("--site", str(site), "--json")
    (row,) = json.loads(done.stdout)
    assert done.returncode == 3 and row["result"] == "failure"
    assert "hello from setup" in row["found"] and "l2s-hpc[node]" in row["remedy"]


@pytest.mark.parametrize("words", [("--probe",), ("toy",)])
def test_it_goes_with_nothing_else(words: tuple[str, ...]) -> None:
    done = doctor(*words)
    assert done.returncode == 2 and "--node looks at this machine alone" in done.stderr
