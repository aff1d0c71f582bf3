"""Merges one candidate in memory, tensor by tensor, with mergekit's own methods.

The order is mergekit's and the seed is set anew for each merge, so that methods that draw random
numbers give what `mergekit-yaml --random-seed` gives. Arithmetic is in float32, the result
in bfloat16. Memory stays near one model: parents are read tensor by tensor from their files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from mergekit.config import ConditionalParameter, evaluate_setting
from mergekit.merge_methods import registry
from mergekit.merge_methods.api import merge_tensors
from mergekit.merge_methods.base import MergeMethod, ParameterScope, ParameterSpec
from safetensors import safe_open
from transformers.trainer_utils import set_seed

from l2s_hpc.recipes.models import EMBEDDING, HEAD, Model
from l2s_hpc.records import Recipe
from l2s_hpc.task.engines import MergeError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class TensorSource(Protocol):
    """Where `merge` reads the inputs' tensors."""

    def get(self, model: str, tensor: str) -> torch.Tensor: ...


class Weights:
    """Reads the tensors of input models from their safetensors files, which stay open."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self.models = models
        self._stack = ExitStack()
        self._open: dict[Path, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def get(self, model: str, tensor: str) -> torch.Tensor:
        """Return one tensor on the CPU; a tied model's head is its embedding matrix."""
        source = self.models[model]
        if tensor == HEAD and source.tied:
            tensor = EMBEDDING
        file = source.tensors[tensor].file
        if file not in self._open:
            self._open[file] = self._stack.enter_context(safe_open(file, framework="pt"))
        found: torch.Tensor = self._open[file].get_tensor(tensor)
        return found


def merge(
    recipe: Recipe, weights: TensorSource, names: list[str], device: str = "cpu"
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the merged model's tensors, in the order of `names`.

    Args:
        recipe: a canonical recipe; its models are named as `weights` names them.
        weights: the input models.
        names: the tensors to merge, as `merged_tensors` orders them.
        device: where the arithmetic happens.

    Raises:
        MergeError: mergekit refuses the recipe, or a merged tensor is not finite.
    """
    config = recipe.config
    method = registry.get(config["merge_method"])
    set_seed(recipe.seed)
    for name in names:
        merged = _merge_one(config, method, weights, name, device)
        if not torch.isfinite(merged).all():
            raise MergeError(
                f"{config['merge_method']} gives numbers that are not finite in {name}"
            )
        yield name, merged


def _merge_one(
    config: Mapping[str, Any], method: MergeMethod, weights: TensorSource, name: str, device: str
) -> torch.Tensor:
    inputs = [entry["model"] for entry in config["models"]]
    base = config.get("base_model")
    if base is not None and base not in inputs:
        inputs.insert(0, base)
    try:
        with torch.inference_mode():
            return merge_tensors(
                [weights.get(model, name).to(device) for model in inputs],
                method,
                ids=inputs,
                base_index=None if base is None else inputs.index(base),
                name=name,
                parameters=_parameters(config, method, name, inputs),
                dtype=_DTYPES[config["dtype"]],
                out_dtype=_DTYPES[config["out_dtype"]],
            )
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise MergeError(f"mergekit cannot merge {name}: {error}") from error


def _parameters(
    config: Mapping[str, Any], method: MergeMethod, tensor: str, inputs: list[str]
) -> dict[str, Any]:
    """Return the method's parameters for one tensor, resolved as mergekit resolves them."""
    own = {entry["model"]: entry["parameters"] for entry in config["models"]}
    found: dict[str, Any] = {}
    for parameter in method.spec.parameters:
        if parameter.scope is ParameterScope.SHARED:
            value = _setting(config["parameters"], parameter, tensor)
        else:
            owners = [
                model
                for model in inputs
                if parameter.scope is ParameterScope.INPUT or model != config.get("base_model")
            ]
            values = {m: _setting(own.get(m, {}), parameter, tensor) for m in owners}
            value = None if None in values.values() else values
        if value is not None:
            found[parameter.name] = value
    return found


def _setting(settings: Mapping[str, Any], parameter: ParameterSpec, tensor: str) -> Any:
    setting = settings.get(parameter.name)
    if isinstance(setting, list):
        setting = [ConditionalParameter(**entry) for entry in setting]
    value = None
    if setting is not None:
        value = evaluate_setting(tensor, setting, validate=parameter.validate)
    return parameter.default if value is None and not parameter.required else value
