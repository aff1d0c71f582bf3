"""Reads what a vLLM engine on the CPU computes with, under the names of Hugging Face.

Linear weights are repacked there, and the parameters that they came from are empty. What a layer
really multiplies by is got by multiplying the unit matrix: each sum has one term that is not zero,
so that bfloat16 gives the transposed weights exactly. The head of a tied model is read in the same
way, because it is a packed copy of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from l2s_hpc.recipes.models import EMBEDDING, HEAD

_PARTS = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}


def live_tensors(llm: Any) -> dict[str, torch.Tensor]:
    """Return copies of all live parameters of a `vllm.LLM`, the head of a tied model included."""
    (found,) = llm.apply_model(lambda model: dict(_tensors(model)))
    return dict(found)


def live_hash(llm: Any) -> str:
    """Return the hash of all live parameters."""
    return hash_of(live_tensors(llm))


def hash_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return a hash of names, shapes and bfloat16 values; -0 and 0 are the same.

    A model without a head of its own has its embedding matrix for one.
    """
    whole = {HEAD: tensors[EMBEDDING], **tensors}
    digest = hashlib.sha256()
    for name, tensor in sorted(whole.items()):
        digest.update(f"{name} {list(tensor.shape)};".encode())
        digest.update((tensor.to(torch.bfloat16) + 0.0).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    words = int(model.config.vocab_size)
    for name, module in model.named_modules():
        if name == "lm_head":
            yield HEAD, _multiplied_by(module, module.embedding_dim)[:words]
        elif name == "model.embed_tokens":
            yield EMBEDDING, module.weight.detach()[:words].clone()
        elif hasattr(module, "cpu_linear"):
            yield from _linear(name, module)
        elif name.endswith("norm"):
            yield f"{name}.weight", module.weight.detach().clone()


def _linear(name: str, module: Any) -> Iterator[tuple[str, torch.Tensor]]:
    fused = {"weight": _multiplied_by(module, module.input_size)}
    if module.bias is not None:
        fused["bias"] = module.bias.detach().clone()
    above, _, own = name.rpartition(".")
    parts = _PARTS.get(own, (own,))
    sizes = module.output_sizes if own in _PARTS else [module.output_size]
    for kind, tensor in fused.items():
        for part, piece in zip(parts, tensor.split(list(sizes)), strict=True):
            yield f"{above}.{part}.{kind}", piece


def _multiplied_by(module: Any, width: int) -> torch.Tensor:
    unit = torch.eye(width, dtype=torch.bfloat16)
    found: torch.Tensor = module.cpu_linear(unit, module.weight, None)
    return found.T.contiguous()
