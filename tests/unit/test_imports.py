"""What importing a part of the package loads: a login node has no torch, a laptop no pymoo."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NODE = {"torch", "transformers", "vllm", "mergekit", "safetensors"}
PROGRAM = (
    "import importlib, json, sys\n"
    "for name in sys.argv[1:]: importlib.import_module(name)\n"
    "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
)


def modules(folder: str) -> list[str]:
    found = sorted((ROOT / "l2s_hpc" / folder).glob("*.py"))
    return [f"l2s_hpc.{folder}.{path.stem}" for path in found if path.stem != "__init__"]


@cache
def loaded(*names: str) -> frozenset[str]:
    """The packages that a fresh interpreter has loaded after importing modules."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *names],
        capture_output=True,
        encoding="utf-8",
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return frozenset(json.loads(done.stdout))


@pytest.mark.parametrize(
    ("names", "forbidden"),
    [
        (["l2s_hpc"], NODE | {"polars", "pymoo", "pydantic", "numpy", "pyarrow", "submitit"}),
        (["l2s_hpc.config", "l2s_hpc.errors", "l2s_hpc.records"], NODE | {"polars", "pymoo"}),
        (modules("store"), NODE | {"polars", "pymoo", "submitit"}),
        (modules("recipes"), NODE | {"polars", "pymoo", "submitit"}),
        (modules("measures"), NODE | {"polars", "pymoo", "submitit"}),
        (modules("evaluation"), NODE | {"polars", "pymoo", "submitit"}),
        (modules("analysis"), NODE | {"pymoo", "submitit"}),
        (modules("search") + modules("controller"), NODE),
        (["l2s_hpc.controller.decide"], NODE | {"polars", "pymoo", "submitit"}),
        (["l2s_hpc.task.worker"], {"polars", "pymoo", "submitit", "vllm"}),
        (["l2s_hpc.cli.main"], NODE | {"polars", "pymoo"}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_imports_stay_cheap(names: list[str], forbidden: set[str]) -> None:
    assert len(names) > 0
    assert not loaded(*names) & forbidden


def test_the_help_is_cheap_too() -> None:
    program = (
        "import sys\nfrom l2s_hpc.cli.main import main\nsys.argv = ['l2s', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, encoding="utf-8", cwd=ROOT, check=True
    )
    assert "Usage" in done.stdout
    found = {name.partition(".")[0] for name in done.stderr.split()}
    assert not found & (NODE | {"polars", "pymoo"})


@pytest.mark.parametrize(
    ("names", "package"),
    [(modules("search") + modules("controller"), "pymoo"), (modules("analysis"), "polars")],
    ids=["pymoo", "polars"],
)
def test_the_tests_above_can_fail(names: list[str], package: str) -> None:
    assert package in loaded(*names)
    with pytest.raises(AssertionError):
        test_imports_stay_cheap(names, {package})


def test_an_import_that_fails_is_not_taken_for_a_cheap_one() -> None:
    with pytest.raises(AssertionError, match="No module named"):
        loaded("l2s_hpc.no_such_module")


def test_the_package_says_what_it_does_not_have() -> None:
    import l2s_hpc

    with pytest.raises(AttributeError, match="module 'l2s_hpc' has no attribute 'opn_run'"):
        l2s_hpc.opn_run  # noqa: B018
