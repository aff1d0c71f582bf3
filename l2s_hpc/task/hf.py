"""The `transformers` engine: `generate` in fixed batches of prompts of similar length."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from l2s_hpc.recipes.models import (
    Model,
    compatibility_faults,
    merged_config,
    merged_tensors,
)
from l2s_hpc.records import Protocol, Recipe, short_hash
from l2s_hpc.task.cycles import CycleGuard
from l2s_hpc.task.engines import EngineError, Generated, Tell, answer, cut, limits_of
from l2s_hpc.task.merge import merge
from l2s_hpc.task.parents import Parents


class TransformersEngine:
    """Keeps one model in memory and copies each candidate's tensors into it.

    On a CPU it computes in float32 (faster there than bfloat16), on a GPU in bfloat16. The
    protocol's `batch_size` decides which prompts share a batch, and so belongs to the result.
    """

    fingerprint = ""
    broken = False
    needs_new_process = False

    def __init__(self, protocol: Protocol, models: Mapping[str, Model]) -> None:
        torch.set_num_threads(int(protocol.engine_settings["threads"]))
        self._where = protocol.merge_device
        self.device = torch.cuda.get_device_name() if self._where == "cuda" else self._where
        self.versions = {name: version(name) for name in ("torch", "transformers", "mergekit")}
        self._protocol = protocol
        faults = compatibility_faults(models)
        if faults:
            raise EngineError("\n".join(faults))
        self._weights = Parents(models, self._where, room=0)
        self._names = merged_tensors(models)
        source = models[protocol.tokenizer]
        self.tokenizer: Any = AutoTokenizer.from_pretrained(source.folder)
        self._model = _empty_model(models, protocol.tokenizer, self._where)
        self._parameters = dict(self._model.named_parameters())
        _check_names(self._names, self._parameters)

    def load(self, recipe: Recipe) -> Mapping[str, float]:
        start = time.perf_counter()
        merging = 0.0
        self._weights.check()
        tensors = merge(recipe, self._weights, self._names, self._where)
        with torch.no_grad():
            while True:
                before = time.perf_counter()
                pair = next(tensors, None)
                merging += time.perf_counter() - before
                if pair is None:
                    break
                self._parameters[pair[0]].copy_(pair[1])
        self._weights.check()
        return {"merge": merging, "load": time.perf_counter() - start - merging}

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int] | None = None,
        tell: Tell | None = None,
    ) -> list[list[Generated]]:
        answers: list[list[Generated]] = [[] for _ in prompts]
        budgets = limits_of(self._protocol, prompts, limits)
        done = tokens = 0
        for sample in range(self._protocol.samples):
            for batch in self._batches(prompts):
                first = list(prompts[batch[0]])
                seed = int(short_hash([self._protocol.seed, sample, first], 8), 16)
                longest = max(budgets[index] for index in batch)
                rows = self._generate_batch([prompts[index] for index in batch], seed, longest)
                for index, row in zip(batch, rows, strict=True):
                    ids = cut(row[: budgets[index]], self._protocol.stop_ids)
                    found = self._answer(ids, sample, seed)
                    answers[index].append(found)
                    tokens += found.n_output_tokens
                done += len(batch)
                if tell is not None:
                    tell(done, tokens)
        return answers

    def usage(self) -> Mapping[str, float]:
        return {}

    def close(self) -> None:
        self._weights.close()

    def _batches(self, prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Yield the indices of each batch: by prompt length, then by order."""
        size = int(self._protocol.engine_settings["batch_size"])
        order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
        for start in range(0, len(order), size):
            yield order[start : start + size]

    def _generate_batch(
        self, prompts: Sequence[Sequence[int]], seed: int, longest: int
    ) -> list[list[int]]:
        """Return for each prompt what was generated, padding included."""
        width = max(len(prompt) for prompt in prompts)
        pad = self._protocol.stop_ids[0]
        ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        torch.manual_seed(seed)
        with torch.inference_mode():
            out = self._model.generate(
                input_ids=ids.to(self._where),
                attention_mask=mask.to(self._where),
                generation_config=self._settings(pad, longest),
            )
        rows: list[list[int]] = out[:, width:].tolist()
        return rows

    def _answer(self, ids: list[int], sample: int, seed: int) -> Generated:
        """Make an answer of generated ids. The cycle guard sees them only now, when it saves no
        time any more; it ends the answer where it would have ended it on the way."""
        guard = self._protocol.cycle_guard
        keep = CycleGuard(guard).feed(ids) if guard else None
        in_cycle = keep is not None and keep < len(ids)
        kept = ids[:keep] if in_cycle else ids
        found = answer(self.tokenizer, self._protocol, kept, sample, seed)
        return replace(found, finish_reason="cycle") if in_cycle else found

    def _settings(self, pad: int, longest: int) -> GenerationConfig:
        sampled = self._protocol.temperature > 0
        options = {
            "temperature": self._protocol.temperature,
            "top_p": self._protocol.top_p,
            "top_k": 0,
        }
        return GenerationConfig(
            max_new_tokens=longest,
            eos_token_id=list(self._protocol.stop_ids),
            pad_token_id=pad,
            do_sample=sampled,
            **(options if sampled else {}),
        )


def _empty_model(models: Mapping[str, Model], tokenizer: str, device: str) -> Any:
    config = merged_config(models, tokenizer)
    kind = AutoConfig.for_model(config["model_type"]).from_dict(config)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(kind, dtype=dtype)
    return model.eval()


def _check_names(names: Sequence[str], parameters: Mapping[str, Any]) -> None:
    """Every parameter must be merged, or an old candidate's would stay alive in it."""
    missing = sorted(set(parameters) - set(names))
    extra = sorted(set(names) - set(parameters))
    if missing or extra:
        raise EngineError(
            f"the models' tensors are not the architecture's: missing {missing[:3]}, "
            f"unknown {extra[:3]}"
        )
