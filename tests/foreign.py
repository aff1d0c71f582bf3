"""Foreign results as the Qwen2.5-Math evaluation and torch write them, made without either."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

UPSTREAM = Path(__file__).resolve().parents[2] / "shared" / "upstream"
"""Recorded results of real models, where they are at hand."""


def found_upstream() -> Path | None:
    """Return the folder of recorded results beside this checkout; None if there is none."""
    return UPSTREAM if UPSTREAM.is_dir() else None


def short(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def description(
    count: int,
    *,
    storage: str = "torch\nByteStorage",
    rebuild: str = "torch._utils\n_rebuild_tensor_v2",
    numel: int | None = None,
    offset: int = 0,
    stride: int = 1,
    shape: bytes | None = None,
    key: str = "0",
) -> bytes:
    """Return a `data.pkl` as torch writes it for a tensor of bytes."""
    stored = short("storage") + f"c{storage}\n".encode() + short(key) + short("cpu")
    stored += number(count if numel is None else numel)
    size = shape if shape is not None else number(count) + b"\x85"
    hooks = b"ccollections\nOrderedDict\n)R"
    arguments = b"((" + stored + b"tQ" + number(offset) + size + number(stride) + b"\x85\x89"
    return b"\x80\x02c" + rebuild.encode() + b"\n" + arguments + hooks + b"tR."


def archive(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as made:
        for name, content in entries.items():
            entry = zipfile.ZipInfo(name)  # of no date: the same bytes each time
            entry.compress_type = compression
            made.writestr(entry, content)
    return stream.getvalue()


def pt(values: Sequence[int], **changed: Any) -> bytes:
    """Return a `.pt` file of a 1-D tensor of bytes."""
    entries = {
        "x_scores/data.pkl": description(len(values), **changed),
        "x_scores/byteorder": b"little",
        "x_scores/data/0": bytes(values),
        "x_scores/version": b"3\n",
    }
    return archive(entries)


def write_scores(folder: Path, model: str, **benchmarks: Sequence[int] | bytes) -> None:
    """Write `MODEL/scores/BENCHMARK_scores.pt`; bytes are written as they are."""
    target = folder / model / "scores"
    target.mkdir(parents=True, exist_ok=True)
    for name, values in benchmarks.items():
        content = values if isinstance(values, bytes) else pt(values)
        (target / f"{name}_scores.pt").write_bytes(content)


def row(idx: int, answer: str, gold: str, question: str = "", **changed: Any) -> dict[str, Any]:
    """Return an item's row of an output file: the box holds the answer, judged by equality."""
    return {
        "idx": idx,
        "question": question or f"What is {gold} in item {idx}?",
        "gt_cot": "None",
        "gt": gold,
        "answer": gold,
        "code": [f"I think it is \\boxed{{{answer}}}."],
        "pred": [answer],
        "report": [None],
        "score": [answer == gold],
    } | changed


STEM = "test_deepseek-math_1000_seed42_t0_s0_e-1"


def write_outputs(
    folder: Path, model: str, benchmark: str, rows: Sequence[dict[str, Any]], metrics: bool = True
) -> Path:
    """Write `MODEL/BENCHMARK/test_….jsonl` and the metrics beside it; return the first."""
    target = folder / model / benchmark
    target.mkdir(parents=True, exist_ok=True)
    path = target / f"{STEM}.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    if metrics:
        accuracy = round(100 * sum(r["score"][0] for r in rows) / len(rows), 1)
        said = {"num_samples": len(rows), "acc": accuracy}
        beside = target / f"{STEM}_deepseek-math_metrics.json"
        beside.write_text(json.dumps(said), encoding="utf-8")
    return path
