"""Makes `data/benchmarks/NAME.items` from files with the problems of the published benchmarks.

    python data/make_manifests.py FOLDER

FOLDER holds NAME.jsonl for each benchmark, with question, answer, level or subject, and `prose:
true` where the gold is a sentence that no rule can grade. A line is: item id, level, mark; in the
order of the ids, so that the order of the rows does not matter.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from l2s_hpc.evaluation.benchmarks import read
from l2s_hpc.evaluation.manifests import Source, sources
from l2s_hpc.evaluation.rows import read_rows


def lines(entry: Source, file: Path) -> list[str]:
    """Return the lines of a manifest; its count must be that of the file."""
    bare = replace(entry, count=0)
    items = [problem.item for problem in read(bare, read_rows(file), str(file))]
    if len(items) != entry.count:
        raise SystemExit(f"{entry.name}: {len(items)} problems, its manifest says {entry.count}")
    level = {item.item: (item.level or "") if entry.level else "" for item in items}
    mark = {item.item: "prose" if item.ungradable == "prose" else "" for item in items}
    return [f"{name}\t{level[name]}\t{mark[name]}".rstrip("\t") + "\n" for name in sorted(level)]


def main(folder: Path) -> None:
    """Write the lines of every published benchmark beside its TOML file."""
    for name, entry in sources().items():
        if entry.dataset:
            found = lines(entry, folder / f"{name}.jsonl")
            target = Path(__file__).parent / "benchmarks" / f"{name}.items"
            target.write_text("".join(found), encoding="utf-8")
            print(f"{name}: {len(found)} items, {sum('prose' in line for line in found)} prose")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
