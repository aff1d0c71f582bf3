"""Commands made up by a test: small shell scripts that record what they are called with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

SCRIPT = """#!/bin/sh
here='{folder}'
{{ for word in "$@"; do printf '%s\\0' "$word"; done; printf '\\n'; }} >> "$here/{name}.calls"
cat "$here/{name}.out"
cat "$here/{name}.err" >&2
exit "$(cat "$here/{name}.rc")"
"""


class Commands:
    """Puts commands on PATH, before all others, and tells how they were called."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def answer(self, name: str, out: str = "", err: str = "", rc: int = 0) -> None:
        """Let a command print this from now on."""
        script = self.folder / name
        if not script.exists():
            text = SCRIPT.format(folder=self.folder, name=name)
            script.write_text(text, encoding="utf-8")
            script.chmod(0o755)
        for ending, value in (("out", out), ("err", err), ("rc", str(rc))):
            (self.folder / f"{name}.{ending}").write_text(value, encoding="utf-8")

    def calls(self, name: str) -> list[list[str]]:
        """The words of every call of a command."""
        path = self.folder / f"{name}.calls"
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").splitlines()
        return [line.split("\0")[:-1] for line in lines]


def rows(*columns: Sequence[object]) -> str:
    """What squeue or sacct print for rows of columns."""
    return "".join("|".join(map(str, row)) + "\n" for row in columns)
