"""Makes a merged model the live one of a vLLM engine that runs, without a checkpoint.

Every remedy for what goes wrong silently stands here. Seen with vLLM 0.26 on GPUs and 0.32 on CPUs:

- where the cache of keys and values is not emptied, answers begin with the old model's, or with
  those of another batch, which changes tokens too: `forget` comes before every batch;
- on CPUs linear weights are repacked when they are loaded, so that they are written by vLLM's own
  reload; the head of a tied model keeps the old embedding there until it is repacked too;
- a part of the tensors is accepted, and mixes two models; so all are counted and compared;
- vLLM may stop reading where it knows all that it needs, or swallow an error of the merge; what is
  left must still be whole, and finite, so that it is read to its end, which must be reached;
- whatever is raised in between leaves a mixed model: the engine is not to be used again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from l2s_hpc.task.engines import EngineError

Shapes = Mapping[str, tuple[int, ...]]
FAULTS = (RuntimeError, ValueError, TypeError, LookupError, OSError, MemoryError, AssertionError)
"""How vLLM and CUDA fail."""


def swap(llm: Any, tensors: Iterable[tuple[str, torch.Tensor]], shapes: Shapes, where: str) -> None:
    """Write a whole model into the live engine.

    Args:
        llm: a `vllm.LLM` whose engine is in this process, with no request under way.
        tensors: name and value of each, in bfloat16, those of a layer together: they are written
            as they come.
        shapes: all that there must be.
        where: the engine's device: `cpu` or `cuda`.

    Raises:
        EngineError: a tensor is missing, unknown or of another shape, vLLM refuses it, or the
            device has no room for it. As with whatever `tensors` raises, the model is a mixture
            then.
    """
    ended: list[bool] = []
    whole = _whole(tensors, shapes, ended)
    left: list[str] = []
    try:
        if where == "cpu":
            llm.collective_rpc("reload_weights", kwargs={"weights_iterator": whole})
            llm.apply_model(_repack_tied_head)
        else:
            (left,) = llm.apply_model(lambda model: _write(model, whole))
        for _ in whole:
            pass
    except FAULTS as error:
        raise EngineError(
            f"the live model cannot be written: {type(error).__name__}: {error}"
        ) from error
    if not ended:
        # A generator that has raised yields nothing more, as one that has come to its end.
        raise EngineError("vLLM ignored an error of the merge: the live model is a mixture")
    if left:
        raise EngineError(f"vLLM left parameters of the old model: {', '.join(left)}")


def forget(llm: Any) -> None:
    """Empty the cache of keys and values of earlier prompts.

    Raises:
        EngineError: requests are under way.
    """
    if not llm.reset_prefix_cache():
        raise EngineError("vLLM does not empty its prefix cache: are requests under way?")


def _whole(
    tensors: Iterable[tuple[str, torch.Tensor]], shapes: Shapes, ended: list[bool]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Pass tensors on, and raise if they are not exactly those of the model; note a good end."""
    missing = set(shapes)
    for name, tensor in tensors:
        if name not in missing:
            raise EngineError(f"tensor {name} is {'there twice' if name in shapes else 'unknown'}")
        if tuple(tensor.shape) != tuple(shapes[name]) or tensor.dtype != torch.bfloat16:
            raise EngineError(
                f"tensor {name} is {list(tensor.shape)} of {tensor.dtype}, and the engine has "
                f"{list(shapes[name])} of torch.bfloat16"
            )
        missing.remove(name)
        yield name, tensor
    if missing:
        raise EngineError(f"{len(missing)} tensors are missing, such as {min(missing)}")
    ended.append(True)


def _write(model: Any, tensors: Iterator[tuple[str, torch.Tensor]]) -> list[str]:
    """Write tensors into a model on a GPU; return parameters that were not written, at most 3."""
    written = model.load_weights(tensors)
    every = {name for name, _ in model.named_parameters()}
    return sorted(every - (every if written is None else set(written)))[:3]


def _repack_tied_head(model: Any) -> None:
    if model.config.tie_word_embeddings:
        model.lm_head.quant_method.process_weights_after_loading(model.lm_head)
