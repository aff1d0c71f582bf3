"""The `transformers` engine: `generate` in fixed batches of prompts of similar length."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
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
from l2s_hpc.task.engines import EngineError, Generated
from l2s_hpc.task.merge import Weights, merge


class TransformersEngine:
    """Keeps one model in memory and copies each candidate's tensors into it.

    On a CPU it computes in float32 (faster there than bfloat16), on a GPU in bfloat16. The
    protocol's `batch_size` decides which prompts share a batch, and so belongs to the result.
    """

    def __init__(self, protocol: Protocol, models: Mapping[str, Model]) -> None:
        torch.set_num_threads(int(protocol.engine_settings["threads"]))
        self._where = protocol.merge_device
        self.device = torch.cuda.get_device_name() if self._where == "cuda" else self._where
        self.versions = {name: version(name) for name in ("torch", "transformers", "mergekit")}
        self._protocol = protocol
        faults = compatibility_faults(models)
        if faults:
            raise EngineError("\n".join(faults))
        self._weights = Weights(models)
        self._names = merged_tensors(models)
        source = models[protocol.tokenizer]
        self.tokenizer: Any = AutoTokenizer.from_pretrained(source.folder)
        self._model = _empty_model(models, protocol.tokenizer, self._where)
        self._parameters = dict(self._model.named_parameters())
        _check_names(self._names, self._parameters)

    def load(self, recipe: Recipe) -> Mapping[str, float]:
        start = time.perf_counter()
        merging = 0.0
        tensors = merge(recipe, self._weights, self._names, self._where)
        with torch.no_grad():
            while True:
                before = time.perf_counter()
                pair = next(tensors, None)
                merging += time.perf_counter() - before
                if pair is None:
                    break
                self._parameters[pair[0]].copy_(pair[1])
        return {"merge": merging, "load": time.perf_counter() - start - merging}

    def generate(self, prompts: Sequence[Sequence[int]]) -> list[list[Generated]]:
        answers: list[list[Generated]] = [[] for _ in prompts]
        for sample in range(self._protocol.samples):
            for batch in self._batches(prompts):
                first = list(prompts[batch[0]])
                seed = int(short_hash([self._protocol.seed, sample, first], 8), 16)
                rows = self._generate_batch([prompts[index] for index in batch], seed)
                for index, (ids, finished) in zip(batch, rows, strict=True):
                    answers[index].append(self._answer(ids, finished, sample, seed))
        return answers

    def close(self) -> None:
        self._weights.__exit__(None, None, None)

    def _batches(self, prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Yield the indices of each batch: by prompt length, then by order."""
        size = int(self._protocol.engine_settings["batch_size"])
        order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
        for start in range(0, len(order), size):
            yield order[start : start + size]

    def _generate_batch(
        self, prompts: Sequence[Sequence[int]], seed: int
    ) -> list[tuple[list[int], bool]]:
        """Return for each prompt its generated ids, end token included, and whether it ended."""
        width = max(len(prompt) for prompt in prompts)
        pad = self._protocol.stop_ids[0]
        ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        torch.manual_seed(seed)
        with torch.inference_mode():
            out = self._model.generate(
                input_ids=ids.to(self._where),
                attention_mask=mask.to(self._where),
                generation_config=self._settings(pad),
            )
        return [_cut(row, self._protocol.stop_ids) for row in out[:, width:].tolist()]

    def _settings(self, pad: int) -> GenerationConfig:
        sampled = self._protocol.temperature > 0
        options = {
            "temperature": self._protocol.temperature,
            "top_p": self._protocol.top_p,
            "top_k": 0,
        }
        return GenerationConfig(
            max_new_tokens=self._protocol.max_tokens,
            eos_token_id=list(self._protocol.stop_ids),
            pad_token_id=pad,
            do_sample=sampled,
            **(options if sampled else {}),
        )

    def _answer(self, ids: list[int], finished: bool, sample: int, seed: int) -> Generated:
        shown = ids[:-1] if finished else ids
        text = self.tokenizer.decode(shown, skip_special_tokens=False)
        return Generated(sample, seed, text, len(ids), "stop" if finished else "length")


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


def _cut(ids: list[int], stop_ids: Sequence[int]) -> tuple[list[int], bool]:
    """Return the ids up to the first stop id, that included, and whether there was one."""
    for position, token in enumerate(ids):
        if token in stop_ids:
            return ids[: position + 1], True
    return ids, False
