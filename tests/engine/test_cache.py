"""Where vLLM's compiled code lies: one place for a model and its copy, and never a full disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.helpers import ROOT, toy_models

PROGRAM = """
import json, os, sys
from pathlib import Path
from l2s_hpc.recipes.models import Model
from l2s_hpc.task.engines import EngineError
from l2s_hpc.task.vllm_start import start_vllm
from tests.engine.common import vllm_protocol

how, place, *caches = sys.argv[1:]
if how == "prepare":  # all but the engine itself, which takes a while
    import vllm
    vllm.LLM = lambda **given: None
models = {name: Model(name, Path(place) / name) for name in ("slow", "fast", "base")}
found = []
for cache in caches:
    try:
        start_vllm(vllm_protocol(), models, models["slow"], cache, 0.5)
        error = ""
    except EngineError as fault:
        error = str(fault)
    found.append([error, os.environ.get("VLLM_CACHE_ROOT", "")])
print(json.dumps(found))
"""


def outcomes(how: str, place: Path, *caches: Path | str, **env: str) -> list[Any]:
    """Start vLLM with one cache after another, or only prepare it: its error, what is set then."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how, str(place), *map(str, caches)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def links(cache: Path) -> dict[str, Path]:
    (folder,) = (cache / "l2s-models").iterdir()
    return {path.name: path.readlink() for path in folder.iterdir() if path.is_symlink()}


def test_a_model_and_its_copy_share_the_compiled_code(tmp_path: Path) -> None:
    """vLLM keys it by the path of the model."""
    toy = toy_models("slow")["slow"].folder.parent
    shutil.copytree(toy, tmp_path / "copies")
    cache = tmp_path / "cache"
    assert outcomes("prepare", tmp_path / "copies", cache)[0][0] == ""
    assert links(cache) == {"model.safetensors": tmp_path / "copies/slow/model.safetensors"}
    shutil.rmtree(tmp_path / "copies")
    assert outcomes("start", toy, cache)[0][0] == ""
    assert links(cache) == {"model.safetensors": toy / "slow/model.safetensors"}


def test_without_a_cache_it_is_where_it_would_be_without_us(tmp_path: Path) -> None:
    toy = toy_models("slow")["slow"].folder.parent
    own, named = str(tmp_path / "own"), str(tmp_path / "named")
    assert outcomes("prepare", toy, "", named, VLLM_CACHE_ROOT=own) == [["", own], ["", named]]


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    toy = toy_models("slow")["slow"].folder.parent
    (tmp_path / "file").touch()
    ((error, *_),) = outcomes("prepare", toy, tmp_path / "file")
    assert error.startswith("vLLM's cache cannot be written: Not a directory\n  in ")
    assert error.endswith("Hint: name another folder in site.vllm.cache or site.scratch")
