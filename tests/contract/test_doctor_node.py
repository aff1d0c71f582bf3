"""`l2s doctor --node`, for real: this machine's packages, and two candidates through a worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import doctor_node, findings


@pytest.mark.slow
def test_two_candidates_of_the_toy_family() -> None:
    done = doctor_node("--json", "--set", "site.engine=transformers")
    rows = findings(done)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "two candidates of the toy family" in done.stderr
    assert rows["self-test grader"]["found"].endswith("finds x + 1 equal to 1 + x")
    for label in ("average", "task_arithmetic"):
        found = rows[f"self-test {label}"]["found"]
        assert found.startswith("16 answers, ") and " right, " in found and "generate" in found
        tokens = int(found.split(", ")[1].removesuffix(" tokens"))
        assert 16 < tokens <= 16 * 230


def test_a_site_that_cannot_generate(tmp_path: Path) -> None:
    """An engine that fails on one candidate, and one that stands still."""
    site = tmp_path / "site.toml"
    site.write_text('name = "s"\nexecutor = "local"\nengine = "scripted"\n[scripted]\n', "utf-8")
    done = doctor_node("--site", str(site))
    assert done.returncode == 3, done.stdout + done.stderr
    site.write_text(
        'name = "s"\nexecutor = "local"\nengine = "scripted"\n[scripted]\ndelay = 100\n', "utf-8"
    )
    done = doctor_node("--site", str(site), "--wait", "3", "--json")
    rows = findings(done)
    assert done.returncode == 3
    assert "no receipt" in rows["self-test average"]["found"]
    assert "--wait" in rows["self-test average"]["remedy"]


SCRIPTED = 'name = "s"\nexecutor = "local"\nengine = "scripted"\nsetup = ["echo hello"]\n'
SHORT_OF_MEMORY = """
import resource
if resource.getrlimit(resource.RLIMIT_AS)[0] == 1024**3:
    raise MemoryError("no room for sympy")
"""


def other_sympy(
    folder: Path, file: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, dict[str, dict[str, str]]]:
    """Ask about a node that finds this file before the real package."""
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text(text, encoding="utf-8")
    (folder / "site.toml").write_text(SCRIPTED, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")
    done = doctor_node("--site", str(folder / "site.toml"), "--json", "--wait", "60")
    return done.returncode, findings(done)


def test_a_grader_that_works_in_no_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, rows = other_sympy(tmp_path, "sympy.py", SHORT_OF_MEMORY, monkeypatch)
    row = rows["self-test grader"]
    assert code == 3 and rows["node packages"]["result"] == "ok" and row["result"] == "failure"
    assert "cannot be imported: MemoryError: no room for sympy" in row["found"] and row["remedy"]


def test_another_version_of_the_grader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = "sympy-0.0.1.dist-info/METADATA"
    text = "Name: sympy\nVersion: 0.0.1\n"
    code, rows = other_sympy(tmp_path, file, text, monkeypatch)
    assert code == 3 and rows["grader"]["result"] == "failure"
    assert rows["grader"]["found"].startswith("sympy 0.0.1; verdicts need 1.14.0")
    assert "pip install sympy==1.14.0" in rows["grader"]["remedy"]
    assert rows["self-test"]["found"] == "not run: see the failures above"


def test_setup_lines_come_first_and_an_interpreter_may_be_wrong(tmp_path: Path) -> None:
    site = tmp_path / "site.toml"
    site.write_text(
        'name = "s"\nexecutor = "slurm"\npython = "/nowhere/$NAME/python"\n'
        'setup = ["echo hello from setup"]\n',
        "utf-8",
    )
    done = doctor_node("--site", str(site), "--json")
    (row,) = findings(done).values()
    assert done.returncode == 3 and row["result"] == "failure"
    assert "hello from setup" in row["found"] and "l2s-hpc[node]" in row["remedy"]


@pytest.mark.parametrize("words", [("--probe",), ("toy",)])
def test_it_goes_with_nothing_else(words: tuple[str, ...]) -> None:
    done = doctor_node(*words)
    assert done.returncode == 2 and "--node looks at this machine alone" in done.stderr
