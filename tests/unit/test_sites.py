"""The shipped sites: each loads and plans, and the template can never go stale."""

from __future__ import annotations

import json
import re
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from l2s_hpc.cluster.jobs import python_command
from l2s_hpc.cluster.resources import allocation_notes, gpus_of
from l2s_hpc.config import Config, SiteConfig, documented, load_job, load_site
from l2s_hpc.controller.plan import plan
from l2s_hpc.controller.resolve import resolve, shipped_files
from l2s_hpc.store.layout import RunPaths, shipped

ROOT = Path(__file__).parents[2]
SITES = shipped_files(shipped("hpc/sites"))
TEMPLATE = SITES["template"]
GIVEN = {
    "name": "my-cluster",
    "description": "Every key of a site, with its default",
    "executor": "slurm",
}
"""What the template sets: two keys have no default, and every shipped site is described."""

HEAD = """\
# Every key of a site file, with its meaning and its default. Copy this file, remove the `# ` before
# the keys that you want to set, and give it with --site my-cluster.toml. The other files of this
# folder are short examples for kinds of clusters: most need a dozen keys.
"""

ONE_GPU = ("--gres=gpu:1", "--cpus-per-task=8", "--mem=64G", "--nodes=1", "--requeue")
SBATCH: dict[str, tuple[str, ...]] = {
    "gpu": (*ONE_GPU, "--partition=gpu", "--time=240", "--array=0-3%4"),
    "whole-nodes": ("--gres=gpu:4", "--cpus-per-task=32", "--mem=0", "--exclusive", "--requeue"),
    "preemptible": (*ONE_GPU, "--partition=preempt", "--time=60", "--array=0-6%7"),
    "apptainer": (*ONE_GPU, "--partition=gpu", "--time=240"),
    "offline": (*ONE_GPU, "--partition=gpu", "--time=240"),
    "no-accounting": (*ONE_GPU, "--partition=gpu"),
    "debug": (*ONE_GPU, "--partition=debug", "--time=30", "--array=0-1%2"),
    "slurm-cpu": ("--cpus-per-task=1", "--time=30", "--array=0-3%4"),
    "template": ("--cpus-per-task=1", "--time=60"),
}
LINES = {
    "apptainer": (
        "module load apptainer",
        "exec apptainer exec --nv --bind /shared /shared/l2s.sif python -uPm",
    ),
    "offline": ("export HF_HUB_OFFLINE=1", "export HF_DATASETS_OFFLINE=1"),
    "gpu": ("export OMP_NUM_THREADS=8",),
}


@pytest.fixture
def no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with Slurm's commands and no cluster that answers; submitit looks for srun."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("srun", "scontrol"):
        (commands / name).write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(commands), prepend=":")


def planned(site: SiteConfig, folder: Path) -> dict[str, Any]:
    config = load_job(ROOT / "jobs" / "toy.toml", ["search.grid=3", "search.generations=2"])
    return plan(resolve(config, site, frozen={}), RunPaths(folder / "toy"))


@pytest.mark.usefixtures("no_cluster")
@pytest.mark.parametrize("name", SITES)
def test_every_site_plans(name: str, tmp_path: Path) -> None:
    site = load_site(SITES[name])
    found = planned(site, tmp_path)
    assert found["site"] == site.name
    assert not [n for n in found["notes"] if "that fits" not in n and "the gene" not in n]
    if site.executor == "local":
        assert not found["sbatch"]
        return
    text = found["sbatch"][0]["text"]
    flags = [line.removeprefix("#SBATCH ") for line in text.splitlines()]
    assert set(SBATCH[name]) <= set(flags), text
    for line in LINES.get(name, ()):
        assert line in text
    # Slurm's signal reaches Python itself, which owns it.
    assert "--signal=B:USR2@60" in flags and "\nexec " in text


def test_every_site_is_checked_above() -> None:
    assert {*SBATCH, "local"} == set(SITES)


@pytest.mark.parametrize("name", SITES)
def test_what_a_site_asks_for_fits_together(name: str) -> None:
    site = load_site(SITES[name])
    assert allocation_notes(site) == []
    assert site.name == name or name == "template"
    if site.workers_per_task > 1:
        assert site.candidates_per_task % site.workers_per_task == 0
        assert gpus_of(site) == site.workers_per_task


def test_the_interpreter_may_be_a_command() -> None:
    words = python_command(load_site(SITES["apptainer"]))
    assert words[:3] == ["apptainer", "exec", "--nv"] and words[-1] == "python"


def test_a_site_says_what_a_newcomer_must_know() -> None:
    for name, path in SITES.items():
        text = path.read_text(encoding="utf-8")
        assert text.startswith("# "), name
        assert all(len(line) <= 100 for line in text.splitlines()), name
        assert len(text.splitlines()) < (200 if name == "template" else 60), name


def test_the_template_is_up_to_date() -> None:
    """Write it anew with `python -m tests.unit.test_sites`."""
    assert TEMPLATE.read_text(encoding="utf-8") == template()


def test_the_template_names_every_key_and_no_other() -> None:
    keys = re.findall(r"^(?:# )?([\w-]+) = ", TEMPLATE.read_text(encoding="utf-8"), re.MULTILINE)
    tables = re.findall(r"^\[([\w.]+)\]", TEMPLATE.read_text(encoding="utf-8"), re.MULTILINE)
    last = [key.rpartition(".")[2] for key, _, _ in documented(SiteConfig)]
    assert sorted([*keys, *(table.rpartition(".")[2] for table in tables)]) == sorted(last)


def test_the_templates_defaults_are_the_real_ones() -> None:
    text = TEMPLATE.read_text(encoding="utf-8")
    set_all = re.sub(r"^# ([\w-]+ = )", r"\1", text, flags=re.MULTILINE)
    assert set_all != text
    shown = SiteConfig.model_validate(tomllib.loads(set_all))
    assert shown == SiteConfig.model_validate(GIVEN) == load_site(TEMPLATE)


def template() -> str:
    """The text of the template, from the configuration classes."""
    return HEAD + "".join(_keys(SiteConfig, ""))


def _keys(kind: type[BaseModel], prefix: str) -> list[str]:
    """The keys of a table; tables within it come last, as TOML wants it."""
    keys, tables = [], []
    for name, field in kind.model_fields.items():
        meaning = "\n".join(
            textwrap.wrap(
                " ".join((field.description or "").split()),
                width=100,
                initial_indent="# ",
                subsequent_indent="# ",
                break_on_hyphens=False,
            )
        )
        value = GIVEN.get(name) if not prefix else None
        default = None if field.is_required() else field.get_default()
        if value is not None:
            keys.append(f"\n{meaning}\n{name} = {json.dumps(value)}\n")
        elif isinstance(default, dict | Config):
            tables.append(f"\n{meaning}\n[{prefix}{name}]\n")
            if isinstance(default, Config):
                tables += _keys(type(default), f"{prefix}{name}.")
        else:
            keys.append(f"\n{meaning}\n# {name} = {json.dumps(default)}\n")
    return keys + tables


if __name__ == "__main__":
    TEMPLATE.write_text(template(), encoding="utf-8")
