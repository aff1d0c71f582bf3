"""The benchmarks that are known by name: `data/benchmarks/NAME.toml`, and `NAME.items` beside it.

The TOML file says where the problems come from and how their gold answers stand there. The other
holds what this version knows of each problem, one a line, with tabs: item id, level, and why no
rule can grade it. It is made by `data/make_manifests.py`. No problem text of a published benchmark
is shipped.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from l2s_hpc.errors import UserError, did_you_mean
from l2s_hpc.store.layout import shipped

_TAKEN = ("all", "macro")
"""What stands beside the names of benchmarks in tables: pooled over items, mean of benchmarks."""


@dataclass(frozen=True)
class Known:
    """What a manifest knows of an item: its level, and why no rule can grade it (or empty)."""

    level: str | None
    ungradable: str


@dataclass(frozen=True)
class Source:
    """A benchmark: where its problems come from, and how they stand there.

    Attributes:
        path: a file below `data/` (toy family).
        dataset: else the hub's data set, with its subset, split and revision (empty: what is
            fetched, or is in the cache). Neither: a file of the user's own.
        count: how many items the manifest knows; 0 if it knows none.
        question: the column of the question; `question` and `problem` are understood as well.
        answer: the column of the answer, read by the rule `gold`; else `answer` is taken plainly.
        level: the column of the level or subject by which splits are stratified.
    """

    name: str
    licence: str = ""
    gold: str = "plain"
    question: str = "question"
    answer: str = "answer"
    level: str = ""
    path: str = ""
    dataset: str = ""
    subset: str | None = None
    split: str = "test"
    revision: str = ""
    count: int = 0

    @cached_property
    def items(self) -> dict[str, Known]:
        """What the manifest knows of each item, by id; empty for a user's own benchmark."""
        file = _folder() / f"{self.name}.items"
        if not self.count:
            return {}
        lines = file.read_text(encoding="utf-8").splitlines()
        fields = [[*line.split("\t"), "", ""][:3] for line in lines]
        return {item: Known(level or None, mark) for item, level, mark in fields}


def sources(files: Mapping[str, str] | None = None) -> dict[str, Source]:
    """Return every benchmark by name: those of `data/`, and the site's files of other names."""
    known = _shipped()
    own = {name: Source(name, level="level") for name in files or () if name not in known}
    return known | own


def source(name: str, files: Mapping[str, str] | None = None) -> Source:
    """Return one benchmark, or raise `UserError` with the nearest valid name.

    Args:
        name: its name.
        files: the site's local files by benchmark name; a new name is a benchmark of one's own.
    """
    known = sources(files)
    if name not in known:
        raise UserError(
            f"unknown benchmark '{name}'",
            hint=f"{did_you_mean(name, known)} (a file of your own gets a name in the site's "
            "[benchmarks])",
        )
    if not re.fullmatch(r"[A-Za-z0-9_]+", name) or name in _TAKEN:
        raise UserError(
            f"'{name}' cannot be the name of a benchmark",
            hint=f"use letters, digits and '_', and not {' or '.join(_TAKEN)}: the name follows a "
            "dot in objectives, as in `accuracy.gsm8k`",
        )
    return known[name]


@cache
def _shipped() -> dict[str, Source]:
    files = sorted(_folder().glob("*.toml"))
    entries = {path.stem: tomllib.loads(path.read_text(encoding="utf-8")) for path in files}
    return {name: Source(name, **entry) for name, entry in entries.items()}


def _folder() -> Path:
    return shipped("data") / "benchmarks"
