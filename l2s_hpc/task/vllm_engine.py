"""The vLLM engine: one live model in this process, into which each candidate is merged."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

import torch
from transformers import AutoTokenizer

from l2s_hpc.recipes.models import (
    Model,
    compatibility_faults,
    merged_bytes,
    merged_config,
    merged_shapes,
)
from l2s_hpc.recipes.placement import merging_bytes, room_beside
from l2s_hpc.records import Protocol, Recipe, short_hash
from l2s_hpc.task.cycles import CycleGuard
from l2s_hpc.task.engines import EngineError, EngineStartError, Generated, Tell, answer, limits_of
from l2s_hpc.task.merge import merge
from l2s_hpc.task.mirror import mirrored, unknown
from l2s_hpc.task.parents import Parents
from l2s_hpc.task.renewal import keep_parents_away, parents_may_stay
from l2s_hpc.task.swap import FAULTS, forget, swap
from l2s_hpc.task.vllm_start import context, kv_bytes, start_vllm, vllm_version

_CANARY = (
    "User: What is 12 * 12? Assistant:",
    "User: Find the smallest prime above 90. Assistant:",
    "User: Simplify (x^2 - 1) / (x - 1). Assistant:",
    "User: How many days are three weeks? Assistant:",
)
_CANARY_TOKENS = 24


class VllmEngine:
    """Keeps vLLM warm, and merges each candidate straight into its live parameters.

    It starts with the weights of one input model, as any checkpoint is started. The canary then
    swaps to another model and back, mirrored (see `mirror`): the same prompts must get the same ids
    as at first. So each start shows that a swapped model is a fresh one on this node.

    Whatever fails in the middle of a swap leaves a mixture: `broken` is true then, and nothing is
    generated any more.
    """

    needs_new_process = True

    def __init__(self, protocol: Protocol, models: Mapping[str, Model], cache: str = "") -> None:
        faults = compatibility_faults(models)
        if faults:
            raise EngineError("\n".join(faults))
        self._protocol = protocol
        self._where = protocol.merge_device
        self._shapes = merged_shapes(models)
        self._names = list(self._shapes)
        config = merged_config(models, protocol.tokenizer)
        self._context = context(protocol, config)
        self._live = ""
        self.broken = False
        self._steps = self._running = 0
        first = next(m for m in models.values() if m.tied == config["tie_word_embeddings"])
        needs = merged_bytes(models) + kv_bytes(protocol, config)
        room, share = _room(self._where, needs, models)
        self._parents = Parents(models, self._where, room)
        try:
            with self._memory_watched():
                self._parents.read()
                self._llm = start_vllm(protocol, models, first, cache, share)
                self._begin(first, models)
        except EngineError:
            self._parents.close()
            raise
        self.device = "cpu" if self._where == "cpu" else torch.cuda.get_device_name()
        self.versions = {"vllm": vllm_version()} | {
            name: version(name) for name in ("torch", "transformers", "mergekit")
        }

    def _begin(self, first: Model, models: Mapping[str, Model]) -> None:
        """Check the engine that has started; where it fails, it stays in this process."""
        try:
            folder = models[self._protocol.tokenizer].folder
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
            self.fingerprint = self._check_swap(first, models)
        except EngineStartError:
            raise
        except (EngineError, *FAULTS) as error:
            raise EngineStartError(f"the engine fails at its first swap: {error}") from error

    def load(self, recipe: Recipe) -> Mapping[str, float]:
        """Merge a candidate into the live model; see `Engine.load`."""
        if self.broken:
            raise EngineError("the engine holds a mixture of models since a swap that failed")
        if self._where != "cpu":
            torch.cuda.reset_peak_memory_stats()
        self._steps = self._running = 0
        self._live = ""
        start = time.perf_counter()
        merging = _Timed(merge(recipe, self._parents, self._names, self._where))
        self._parents.check()
        with self._memory_watched():
            self._swap(merging, recipe.candidate)
        return {"merge": merging.seconds, "load": time.perf_counter() - start - merging.seconds}

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int] | None = None,
        tell: Tell | None = None,
    ) -> list[list[Generated]]:
        """Answer a chunk of prompts; see `Engine.generate`."""
        if not self._live:
            raise EngineError("generate before load, or after one that failed")
        budgets = limits_of(self._protocol, prompts, limits)
        self._check_lengths(prompts, budgets)
        samples = self._protocol.samples
        chunk = _Chunk(self._llm, self._protocol, tell)
        for prompt, budget in zip(prompts, budgets, strict=True):
            for sample in range(samples):
                chunk.ask(prompt, budget, self._seed(sample, prompt))
        with self._memory_watched():
            try:
                chunk.run()
            except FAULTS as error:
                self.broken, self._live = True, ""
                raise EngineError(f"vLLM failed: {type(error).__name__}: {error}") from error
        self._steps += chunk.steps
        self._running += chunk.running
        rows = [self._answer(n % samples, asked) for n, asked in enumerate(chunk.asked)]
        return [rows[n : n + samples] for n in range(0, len(rows), samples)]

    def usage(self) -> Mapping[str, float]:
        """Return what was used since the last `load`; see `Engine.usage`."""
        found: dict[str, float] = {}
        if self._steps:
            most = int(self._protocol.engine_settings["max_num_seqs"])
            found["batch_occupancy"] = round(self._running / self._steps / most, 4)
        if self._where != "cpu":
            found["peak_gpu_gb"] = round(torch.cuda.max_memory_reserved() / 1e9, 2)
        return found

    def close(self) -> None:
        """Free what can be freed; the rest goes with the process."""
        self._live = ""
        self._parents.close()

    @contextlib.contextmanager
    def _memory_watched(self) -> Iterator[None]:
        """Keep the parents off the device from now on, if it has no room for all."""
        try:
            yield
        except EngineError as error:
            if self._parents.placement == "device" and "out of memory" in str(error).lower():
                keep_parents_away()
            raise

    def _swap(self, tensors: Iterator[tuple[str, torch.Tensor]], live: str) -> None:
        self._live = ""
        self.broken = True
        swap(self._llm, tensors, self._shapes, self._where)
        self._parents.check()
        self.broken = False
        self._live = live

    def _check_swap(self, first: Model, models: Mapping[str, Model]) -> str:
        """Compare a swapped model with the fresh one; return a hash of all that was answered."""
        self._live = first.name
        fresh = self._canary()
        other = next((m for m in models.values() if m.identity != first.identity), first)
        self._swap(self._copied(other), other.name)
        answers = [fresh, self._canary()]
        self._swap(self._mirrored(first), first.name)
        if self._canary() != fresh:
            raise EngineStartError(
                f"the canary found that weights of '{first.name}' that are written into the live "
                "engine answer otherwise than those that it was started with",
                hint="is this version of vLLM tested? `l2s doctor --node` shows it",
            )
        self._live = ""
        return short_hash(answers)

    def _copied(self, model: Model) -> Iterator[tuple[str, torch.Tensor]]:
        for name in self._names:
            yield name, self._parents.get(model.name, name).to(torch.bfloat16)

    def _mirrored(self, model: Model) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors of a model of other weights that answers the same, if it can be made.

        Back as it was would not show what stayed from the start.
        """
        strange = unknown(self._names)
        if strange:
            logging.getLogger("vllm").warning(
                "the canary shows less for models with tensors such as %s: weights that stay from "
                "the start of the engine would not be seen",
                strange[0],
            )
            return self._copied(model)
        return ((name, mirrored(name, tensor)) for name, tensor in self._copied(model))

    def _canary(self) -> list[list[int]]:
        chunk = _Chunk(self._llm, self._protocol, None)
        for text in _CANARY:
            ids = self.tokenizer.encode(text, add_special_tokens=False)
            chunk.ask(ids, _CANARY_TOKENS, 0, greedy=True)
        chunk.run()
        return [asked.ids for asked in chunk.asked]

    def _check_lengths(self, prompts: Sequence[Sequence[int]], budgets: Sequence[int]) -> None:
        for prompt, budget in zip(prompts, budgets, strict=True):
            if len(prompt) + budget > self._context:
                raise EngineError(
                    f"a prompt of {len(prompt)} tokens and an answer of up to {budget} do not fit "
                    f"into the model's context of {self._context}",
                    hint="lower protocol.max_tokens, or leave long questions out",
                )

    def _seed(self, sample: int, prompt: Sequence[int]) -> int:
        if self._protocol.temperature == 0:
            return 0
        return int(short_hash([self._protocol.seed, sample, list(prompt)], 8), 16)

    def _answer(self, sample: int, asked: _Asked) -> Generated:
        found = answer(self.tokenizer, self._protocol, asked.ids, sample, asked.seed)
        return replace(found, finish_reason="cycle") if asked.in_cycle else found


@dataclass
class _Asked:
    """A request, and what was generated for it."""

    seed: int
    ids: list[int] = field(default_factory=list)
    in_cycle: bool = False
    guard: CycleGuard | None = None


class _Chunk:
    """The requests of one `generate` call: all are in the queue before the first step.

    Attributes:
        asked: in the order in which they were asked.
        steps: of the engine.
        running: requests under way, summed over the steps.
    """

    def __init__(self, llm: Any, protocol: Protocol, tell: Tell | None) -> None:
        forget(llm)
        self._engine = llm.llm_engine
        self._protocol = protocol
        self._tell = tell
        self._most = int(protocol.engine_settings["max_num_seqs"])
        self._done = self._tokens = 0
        self._told = time.monotonic()
        self.asked: list[_Asked] = []
        self.steps = self.running = 0

    def ask(self, prompt: Sequence[int], budget: int, seed: int, greedy: bool = False) -> None:
        """Put a request into the queue."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        protocol = self._protocol
        guard = CycleGuard(protocol.cycle_guard) if protocol.cycle_guard and not greedy else None
        sampled = protocol.temperature > 0 and not greedy
        parameters = SamplingParams(
            temperature=protocol.temperature if sampled else 0.0,
            top_p=protocol.top_p if sampled else 1.0,
            seed=seed if sampled else None,
            max_tokens=budget,
            stop_token_ids=list(protocol.stop_ids),
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA if guard else RequestOutputKind.FINAL_ONLY,
        )
        number = str(len(self.asked))
        self.asked.append(_Asked(seed, guard=guard))
        self._engine.add_request(number, {"prompt_token_ids": list(prompt)}, parameters)

    def run(self) -> None:
        """Generate until every request is answered; an error, or a signal, ends them all."""
        try:
            while self._engine.has_unfinished_requests():
                asked = self._engine.get_num_unfinished_requests()
                outputs = self._engine.step()
                self.steps += 1
                self.running += min(asked - self._waiting(), self._most)
                for output in outputs:
                    self._take(output)
                self._say()
        finally:
            self._abort()

    def _waiting(self) -> int:
        """Return the requests for which the step had no room; 0 where vLLM does not tell."""
        try:
            return int(self._engine.engine_core.engine_core.scheduler.get_request_counts()[1])
        except (AttributeError, TypeError, LookupError):
            return 0

    def _take(self, output: Any) -> None:
        asked = self.asked[int(output.request_id)]
        if asked.in_cycle:
            return
        if output.finished and output.outputs[0].finish_reason not in ("stop", "length"):
            reason = output.outputs[0].finish_reason
            raise RuntimeError(f"an answer was ended with '{reason}' after {len(asked.ids)} tokens")
        new = list(output.outputs[0].token_ids)
        asked.ids += new
        self._tokens += len(new)
        keep = asked.guard.feed(new) if asked.guard else None
        # What ends by itself at the very place where the guard would end it has ended by itself.
        if keep is not None and keep < len(asked.ids) + (not output.finished):
            asked.in_cycle = True
            del asked.ids[keep:]
            if not output.finished:
                self._engine.abort_request([output.request_id])
        self._done += asked.in_cycle or output.finished

    def _say(self) -> None:
        now = time.monotonic()
        if self._tell is not None and now - self._told > 1.0:
            self._told = now
            self._tell(self._done, self._tokens)

    def _abort(self) -> None:
        """End what is still under way, after an error or a signal."""
        with contextlib.suppress(*FAULTS):
            if self._engine.has_unfinished_requests():
                self._engine.abort_request([str(number) for number in range(len(self.asked))])


class _Timed:
    """Passes tensors on, and adds up the seconds that it takes to make them."""

    def __init__(self, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
        self._tensors = tensors
        self.seconds = 0.0

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self

    def __next__(self) -> tuple[str, torch.Tensor]:
        start = time.perf_counter()
        try:
            return next(self._tensors)
        finally:
            self.seconds += time.perf_counter() - start


def _room(where: str, needs: int, models: Mapping[str, Model]) -> tuple[int | None, float]:
    """Return the bytes of a GPU that are left for parents, and the share that vLLM needs."""
    if where == "cpu":
        return None, 0.0
    free, total = torch.cuda.mem_get_info()
    room = room_beside(free, needs, merging_bytes(models)) if parents_may_stay() else 0
    return room, min(needs / total, 0.9)
