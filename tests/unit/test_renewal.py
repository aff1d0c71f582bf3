"""What a worker remembers of a GPU that had no room, also as a new process image."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from l2s_hpc.task.renewal import _PARENTS_VARIABLE, keep_parents_away, parents_may_stay


def test_parents_that_had_no_room_stay_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(_PARENTS_VARIABLE, "")
    assert parents_may_stay()
    keep_parents_away()
    assert not parents_may_stay()
    said = "the GPU is out of memory: from now on the parents come from the page cache\n"
    assert capsys.readouterr().err == said
    # What a worker begins anew in, and nothing else, has its environment.
    program = "from l2s_hpc.task.renewal import parents_may_stay as stay; print(stay())"
    found = subprocess.check_output([sys.executable, "-c", program], text=True, env=os.environ)
    assert found == "False\n"


BEGINS_ANEW = """
import json, os, sys
from l2s_hpc.task import renewal

if not renewal.unfinished():
    os.environ |= {"VLLM_CACHE_ROOT": "/full", "TRITON_CACHE_DIR": "/full/triton", "MORE": "x"}
    renewal.keep_parents_away()
    renewal.begin_anew("t")
names = ("VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "MORE")
told = [renewal.unfinished(), renewal.parents_may_stay(), renewal.job().key]
print(json.dumps([os.environ.get(name) for name in names] + told))
"""


def test_a_new_process_has_the_environment_that_the_first_one_began_with() -> None:
    """And not what vLLM has set since, perhaps for a disk that is full now."""
    found = subprocess.check_output(
        [sys.executable, "-c", BEGINS_ANEW],
        text=True,
        env=os.environ | {"VLLM_CACHE_ROOT": "/own", "L2S_TEAM": "team"},
    )
    assert json.loads(found) == ["/own", None, None, "t", False, "team"]
