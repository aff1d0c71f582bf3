"""A scripted engine: no model, answers drawn from hashes. For tests of everything around it.

Accuracy and length rise with the share of the first model in the recipe, so that a search over it
has a front to find; which items are right depends on candidate and item alone.

Settings, as `[scripted]` of the site (part of the protocol), or as JSON in the node's environment
variable `L2S_SCRIPTED` (of the node alone, so that the tables are those of an undisturbed run):

- `delay`: seconds that a candidate takes to load; `chunk_delay`: seconds of each `generate` call
- `faults`: how a share of the candidates fails, as `{kill = 0.2}`:
  error, engine, kill, memory, hang
- `new_process`: an engine failure spoils the whole process, as a broken GPU context would
- `once`: a folder; a candidate whose fault is recorded there does not fail again
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from l2s_hpc.errors import L2SError
from l2s_hpc.records import Protocol, Recipe
from l2s_hpc.store.files import create_json
from l2s_hpc.task.engines import EngineError, Generated, Tell, limits_of

_spoilt: list[str] = []
"""Candidates at which an engine failed that needs a new process."""


class _Words:
    """Stands for a tokenizer: one id per byte."""

    chat_template = "scripted"

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return list(text.encode())

    def apply_chat_template(self, conversation: Sequence[dict[str, str]], **options: Any) -> str:
        return "".join(turn["content"] for turn in conversation)

    def get_added_vocab(self) -> dict[str, int]:
        return {}


class ScriptedEngine:
    """Answers at once, or after the delays that are set."""

    device = "none"
    fingerprint = ""
    broken = False

    def __init__(self, protocol: Protocol) -> None:
        self.tokenizer = _Words()
        self.versions: Mapping[str, str] = {"scripted": "1"}
        self._protocol = protocol
        of_node = json.loads(os.environ.get("L2S_SCRIPTED") or "{}")
        self._settings: Mapping[str, Any] = {**protocol.engine_settings, **of_node}
        self._recipe: Recipe | None = None
        self.needs_new_process = bool(self._settings.get("new_process"))
        if _spoilt:
            raise EngineError("this process is spoilt since an engine failure")

    def load(self, recipe: Recipe) -> Mapping[str, float]:
        self._recipe = recipe
        time.sleep(float(self._settings.get("delay", 0)))
        self._fault(recipe.candidate)
        return {"merge": 0.0, "load": 0.0}

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int] | None = None,
        tell: Tell | None = None,
    ) -> list[list[Generated]]:
        if self._recipe is None:
            raise EngineError("generate before load")
        recipe = self._recipe
        time.sleep(float(self._settings.get("chunk_delay", 0)))
        return [
            [
                self._answer(recipe, bytes(prompt), sample, limit)
                for sample in range(self._protocol.samples)
            ]
            for prompt, limit in zip(
                prompts, limits_of(self._protocol, prompts, limits), strict=True
            )
        ]

    def usage(self) -> Mapping[str, float]:
        return {}

    def close(self) -> None:
        self._recipe = None

    def _answer(self, recipe: Recipe, prompt: bytes, sample: int, limit: int) -> Generated:
        share = _share_of_first(recipe)
        draw = _draw(recipe.candidate.encode(), prompt, str(sample).encode())
        right = _draw(prompt) < 0.3 + 0.65 * share or draw < 0.05
        gold = prompt.rsplit(b"=", 1)[-1].strip().decode(errors="replace")
        tokens = 4 + int(share * 80 + 12 * draw)
        text = f"\\boxed{{{gold if right else -1}}}"
        if tokens > limit:
            return Generated(sample, 0, "", limit, "length")
        return Generated(sample, 0, text, tokens, "stop")

    def _fault(self, candidate: str) -> None:
        faults: Mapping[str, float] = self._settings.get("faults", {})
        for kind, share in faults.items():
            if _draw(kind.encode(), candidate.encode()) < share and self._again(kind, candidate):
                if kind == "engine" and self.needs_new_process:
                    _spoilt.append(candidate)
                _FAULTS[kind](candidate)

    def _again(self, kind: str, candidate: str) -> bool:
        """Whether a fault is to happen: always, or only the first time."""
        if "once" not in self._settings:
            return True
        return create_json(Path(self._settings["once"]) / f"{kind}-{candidate}.json", {})


def _share_of_first(recipe: Recipe) -> float:
    """Return the first model's part of all weights, averaged over groups."""
    totals = {"slow": 0.0, "other": 0.0}
    for entry in recipe.config["models"]:
        weight = entry["parameters"].get("weight", 1.0)
        values = [part["value"] for part in weight] if isinstance(weight, list) else [weight]
        key = "slow" if entry["model"] == "slow" else "other"
        totals[key] += sum(values) / len(values)
    total = totals["slow"] + totals["other"]
    return min(max(totals["slow"] / total, 0.0), 1.0) if total else 0.0


def _draw(*parts: bytes) -> float:
    return int.from_bytes(hashlib.sha256(b"\0".join(parts)).digest()[:7], "big") / 2**56


def _raise(candidate: str) -> None:
    raise L2SError(f"scripted failure of {candidate}")


def _engine(candidate: str) -> None:
    raise EngineError(f"scripted engine failure at {candidate}")


def _die(candidate: str) -> None:
    os.kill(os.getpid(), 9)


def _fill_memory(candidate: str) -> None:
    """Take more and more memory, until the node ends this process or refuses it."""
    blocks = []
    while True:
        blocks.append(bytearray(64_000_000))
        time.sleep(0.05)


def _hang(candidate: str) -> None:
    time.sleep(1e6)


_FAULTS = {
    "error": _raise,
    "engine": _engine,
    "kill": _die,
    "memory": _fill_memory,
    "hang": _hang,
}
