"""The README's commands and names are those of the package."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mini import write_mini

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line, comments=True)[1:]
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("l2s ")
]
READING = [
    words
    for words in COMMANDS
    if words[0] in ("status", "front", "ntr", "report", "verify") and "results/demo" in words
]
SAMPLE = [words for words in COMMANDS if "results/sample" in words]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    write_mini(folder).run(folder / "run")
    return folder / "run"


def l2s(words: list[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "l2s_hpc.cli.main", *words]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, timeout=120
    )


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 15 and len(READING) >= 5 and len(SAMPLE) >= 8


@pytest.mark.parametrize("verb", sorted({words[0] for words in COMMANDS}))
def test_every_verb_and_option_exists(verb: str) -> None:
    text = l2s([verb, "--help"]).stdout
    used = {w for words in COMMANDS if words[0] == verb for w in words if w.startswith("--")}
    assert all(option in text for option in used), text


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_reading_commands_work(words: list[str], finished: Path) -> None:
    done = l2s([str(finished) if word.startswith("results/") else word for word in words])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", SAMPLE, ids=" ".join)
def test_the_sample_is_analysed_as_the_tour_says(words: list[str]) -> None:
    done = l2s(words, cwd=ROOT)
    assert done.returncode == 0 and done.stdout, done.stderr


def test_copying_and_planning_a_job(tmp_path: Path) -> None:
    """The commands under 'To search something of your own', as they stand."""
    own = [words for words in COMMANDS if "my-search" in " ".join(words)]
    assert len(own) == 2
    for words in own:
        done = l2s(words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr


def test_published_job_plans_as_the_tour_says_where_models_are_missing(tmp_path: Path) -> None:
    """Without the models the tour's plan says how to get them."""
    shutil.copy(ROOT / "hpc" / "sites" / "gpu.toml", tmp_path / "my-cluster.toml")
    words = ["plan", "published/ta-1.5b", "--site", "my-cluster.toml"]
    assert words in COMMANDS
    done = l2s(words, cwd=tmp_path)
    assert done.returncode == 2 and "l2s fetch" in done.stderr


def test_evaluating_checkpoints_and_grading_what_they_said(tmp_path: Path) -> None:
    """The commands under 'Evaluation that can be trusted', as they stand, in another folder."""
    for verb in ("evaluate", "grade"):
        words = next(words for words in COMMANDS if words[0] == verb and "results/eval" in words)
        words = [str(tmp_path / word) if word == "results/eval" else word for word in words]
        done = l2s(words, cwd=ROOT)
        assert done.returncode == 0, done.stderr
    assert list((tmp_path / "results/eval/grades").iterdir())


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"make (demo|test|lint|fast)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_the_file_tree_is_true() -> None:
    for name in ("jobs/toy.toml", "jobs/published", "hpc/sites", "hpc/locks", "docs/front.svg"):
        assert (ROOT / name).exists()
    packages = re.findall(r"^  (\w+)/ ", README, re.MULTILINE)
    assert len(packages) >= 9
    for name in packages:
        assert (ROOT / "l2s_hpc" / name).is_dir() or name in (
            "evaluations",
            "tasks",
            "scores",
            "logs",
        )


def test_the_python_tour(finished: Path) -> None:
    from l2s_hpc import open_run

    run = open_run(finished)
    assert run.candidates().height and run.scores("report").collect().height
    assert run.tensor("toy_easy").values.ndim == 2
    assert run.front() and run.ntr() and run.hypervolume() and run.cost()
