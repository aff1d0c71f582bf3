"""What a worker remembers of a GPU that had no room, also as a new process image."""

from __future__ import annotations

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
