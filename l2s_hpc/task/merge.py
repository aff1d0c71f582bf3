"""Merges one candidate in memory, tensor by tensor, with mergekit's own methods.

All methods that mergekit 0.1.5 registers can be merged so. What needs more than one tensor at a
time, its slices and its surgery on tokenizers, is nothing that a recipe can say.

The order is mergekit's and the seed is set anew for each merge, so that methods that draw random
numbers give what `mergekit-yaml --random-seed` gives. Arithmetic is in float32, the result
in bfloat16. Memory stays near one model where the parents come tensor by tensor: see `parents`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from mergekit.config import ConditionalParameter, evaluate_setting
from mergekit.merge_methods import registry
from mergekit.merge_methods.api import merge_tensors
from mergekit.merge_methods.base import MergeMethod, ParameterScope, ParameterSpec
from transformers.trainer_utils import set_seed

from l2s_hpc.records import Recipe
from l2s_hpc.task import blocks
from l2s_hpc.task.engines import EngineError, MergeError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_NODE_FAULTS = (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)
_NODE_WORDS = ("DefaultCPUAllocator", "CUDA error")
"""What a device raises that is no fault of the recipe, and what a plain RuntimeError of it says."""


class TensorSource(Protocol):
    """Where `merge` reads the inputs' tensors."""

    def get(self, model: str, tensor: str) -> torch.Tensor: ...


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
        MergeError: mergekit refuses the recipe, or a merged tensor is not finite. The latter is
            raised after the last tensor: to look at each as it comes would make a GPU wait.
    """
    config = recipe.config
    method = registry.get(config["merge_method"])
    set_seed(recipe.seed)
    bounds = []
    for name in names:
        merged = _merge_one(config, method, weights, name, device)
        bounds.append(torch.stack(torch.aminmax(merged)))
        yield name, merged
    finite = torch.stack(bounds).float().isfinite().all(1).tolist()
    bad = [name for name, fine in zip(names, finite, strict=True) if not fine]
    if bad:
        raise MergeError(
            f"{config['merge_method']} gives numbers that are not finite in {bad[0]}"
            + (f" and {len(bad) - 1} more tensors" if len(bad) > 1 else "")
        )


def _merge_one(
    config: Mapping[str, Any], method: MergeMethod, weights: TensorSource, name: str, device: str
) -> torch.Tensor:
    inputs = [entry["model"] for entry in config["models"]]
    base = config.get("base_model")
    if base is not None and base not in inputs:
        inputs.insert(0, base)
    index = None if base is None else inputs.index(base)

    def merged(tensors: Sequence[torch.Tensor], parameters: dict[str, Any]) -> torch.Tensor:
        return merge_tensors(
            tensors,
            method,
            ids=inputs,
            base_index=index,
            name=name,
            parameters=parameters,
            dtype=_DTYPES[config["dtype"]],
            out_dtype=_DTYPES[config["out_dtype"]],
        )

    try:
        with torch.inference_mode():
            parameters = _parameters(config, method, name, inputs)
            tensors = [weights.get(model, name).to(device) for model in inputs]
            shape = tensors[0].shape if tensors else ()
            if blocks.fits(config["merge_method"], parameters, shape):
                dtype = _DTYPES[config["out_dtype"]]
                return blocks.in_blocks(tensors, index, inputs, parameters, merged, dtype)
            return merged(tensors, parameters)
    except _NODE_FAULTS as error:
        raise EngineError(f"the device fails at the merge of {name}: {error}") from error
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        if any(words in str(error) for words in _NODE_WORDS):
            raise EngineError(f"the device fails at the merge of {name}: {error}") from error
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
