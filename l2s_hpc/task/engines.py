"""The one interface between a node's task and what generates text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from l2s_hpc.errors import L2SError
from l2s_hpc.evaluation.prompts import Tokenizer
from l2s_hpc.recipes.models import Model
from l2s_hpc.records import FinishReason, Recipe
from l2s_hpc.records import Protocol as EvaluationProtocol


class MergeError(L2SError):
    """The recipe cannot be merged: a fault of the candidate, not of the node."""


class EngineError(L2SError):
    """The engine failed: a fault of the node until a second node fails in the same way."""


class EngineStartError(EngineError):
    """The engine did not start; what it has taken of the device goes with this process only."""


@dataclass(frozen=True)
class Generated:
    """One answer as an engine gives it: ids decided its length and why it ended."""

    sample: int
    seed: int
    text: str
    n_output_tokens: int
    finish_reason: FinishReason


Tell = Callable[[int, int], None]
"""Hears how many answers are done, and how many tokens were generated, of the running chunk."""


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

    @property
    def fingerprint(self) -> str:
        """A hash of what the canary's prompts were answered; empty where there is none."""

    @property
    def broken(self) -> bool:
        """Whether it cannot be used any more, whatever the error was that told so."""

    @property
    def needs_new_process(self) -> bool:
        """Whether only the end of this process frees what a broken engine holds."""

    def load(self, recipe: Recipe) -> Mapping[str, float]:
        """Merge a candidate into the live model; return seconds by phase (`merge`, `load`).

        Raises:
            MergeError: the recipe cannot be merged.
            EngineError: the engine is broken; it must be closed.
        """

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int] | None = None,
        tell: Tell | None = None,
    ) -> list[list[Generated]]:
        """Answer a chunk of prompts: for each prompt its samples in order.

        Args:
            prompts: token ids.
            limits: the longest answer to each, in tokens; None: the protocol's `max_tokens`.
            tell: hears now and then how far it is.

        Raises:
            EngineError: the engine is broken, or a prompt is too long for it.
        """

    def usage(self) -> Mapping[str, float]:
        """Return what was used since the last `load`; what an engine cannot tell is left out.

        `batch_occupancy`: sequences that are decoded together, averaged over
        steps, as a share of the most there can be; `peak_gpu_gb`: memory of the device, the parents
        on it included, in 1e9 bytes.
        """

    def close(self) -> None:
        """Free the device."""


def limits_of(
    protocol: EvaluationProtocol, prompts: Sequence[Sequence[int]], limits: Sequence[int] | None
) -> Sequence[int]:
    """Return the limit of each prompt's answers; where none are given, the protocol's."""
    return [protocol.max_tokens] * len(prompts) if limits is None else limits


def cut(ids: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    """Return generated ids up to the first stop id, that included."""
    end = next((n + 1 for n, token in enumerate(ids) if token in stop_ids), len(ids))
    return list(ids[:end])


def answer(
    tokenizer: Any, protocol: EvaluationProtocol, ids: Sequence[int], sample: int, seed: int
) -> Generated:
    """Make an answer of generated ids: counted with the end token, shown without it."""
    ended = bool(ids) and ids[-1] in protocol.stop_ids
    text = tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=False)
    return Generated(sample, seed, text, len(ids), "stop" if ended else "length")


def open_engine(
    protocol: EvaluationProtocol, models: Mapping[str, Model], cache: str = ""
) -> Engine:
    """Start the engine that a protocol names.

    Args:
        protocol: what can change a token.
        models: the input models.
        cache: a folder of this node for compiled code, that its tasks share; empty: the engine's
            own.

    Raises:
        EngineError: it does not start.
    """
    if protocol.engine == "scripted":
        from l2s_hpc.task.scripted import ScriptedEngine

        return ScriptedEngine(protocol)
    if protocol.engine == "vllm":
        from l2s_hpc.task.vllm_engine import VllmEngine

        return VllmEngine(protocol, models, cache)
    if protocol.engine == "transformers":
        from l2s_hpc.task.hf import TransformersEngine

        return TransformersEngine(protocol, models)
    raise EngineError(f"unknown engine '{protocol.engine}'")
