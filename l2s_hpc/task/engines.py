"""The one interface between a node's task and what generates text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from l2s_hpc.errors import L2SError
from l2s_hpc.evaluation.prompts import Tokenizer
from l2s_hpc.recipes.models import Model
from l2s_hpc.records import FinishReason, Recipe
from l2s_hpc.records import Protocol as EvaluationProtocol


class MergeError(L2SError):
    """The recipe cannot be merged: a fault of the candidate, not of the node."""


class EngineError(L2SError):
    """The engine failed: a fault of the node until a second node fails in the same way."""


@dataclass(frozen=True)
class Generated:
    """One answer as an engine gives it: ids decided its length and why it ended."""

    sample: int
    seed: int
    text: str
    n_output_tokens: int
    finish_reason: FinishReason


class Engine(Protocol):
    """Holds one live model; `load` makes a candidate the live one."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The merged model's tokenizer."""

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions of what decides the tokens."""

    @property
    def device(self) -> str:
        """Where it runs."""

    def load(self, recipe: Recipe) -> Mapping[str, float]:
        """Merge a candidate into the live model; return seconds by phase (`merge`, `load`).

        Raises:
            MergeError: the recipe cannot be merged.
            EngineError: the engine is broken; it must be closed.
        """

    def generate(self, prompts: Sequence[Sequence[int]]) -> list[list[Generated]]:
        """Answer a chunk of prompts (token ids): for each prompt its samples in order."""

    def close(self) -> None:
        """Free the device."""


def open_engine(protocol: EvaluationProtocol, models: Mapping[str, Model]) -> Engine:
    """Start the engine that a protocol names."""
    if protocol.engine == "scripted":
        from l2s_hpc.task.scripted import ScriptedEngine

        return ScriptedEngine(protocol)
    if protocol.engine == "transformers":
        from l2s_hpc.task.hf import TransformersEngine

        return TransformersEngine(protocol, models)
    raise EngineError(f"unknown engine '{protocol.engine}'")
