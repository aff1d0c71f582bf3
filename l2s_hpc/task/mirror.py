"""Makes a model of other weights that answers the same, bit for bit."""

from __future__ import annotations

from collections.abc import Iterable

import torch

_READ = ("embed_tokens", "lm_head", "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
_WRITE = ("o_proj", "down_proj")
_PASS = ("input_layernorm", "post_attention_layernorm", "norm", "q_norm", "k_norm")


def mirrored(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the model in which every second hidden channel has the other sign.

    What writes into the hidden state changes the sign of rows, what reads it that of columns, and
    an RMS norm lets signs pass: all products and sums stay as they are. So an engine that was given
    all mirrored tensors answers as before, and one that kept any of the old ones does not.

    Args:
        name: the tensor's name in a model of the Llama family, which Qwen2 is of.
        tensor: its value; a kind that is not known is returned as it is.
    """
    layer, kind = _parts(name)
    if layer in _WRITE:
        signs = _signs(len(tensor), tensor)
        return tensor * (signs[:, None] if kind == "weight" else signs)
    if layer in _READ and kind == "weight":
        return tensor * _signs(tensor.shape[1], tensor)
    return tensor


def unknown(names: Iterable[str]) -> list[str]:
    """Return the tensors of which `mirrored` does not know what they do with the hidden state.

    Where there are some, as with experts or fused matrices, a mirrored model answers otherwise.
    """
    return [name for name in names if not _known(*_parts(name))]


def _known(layer: str, kind: str) -> bool:
    if kind == "bias":  # a norm with one is no RMS norm
        return layer in (*_READ, *_WRITE)
    return kind == "weight" and layer in (*_READ, *_WRITE, *_PASS)


def _parts(name: str) -> tuple[str, str]:
    """Return what a tensor belongs to and its own kind, such as `q_proj` and `weight`."""
    layer, _, kind = name.rpartition(".")
    return layer.rpartition(".")[2], kind


def _signs(count: int, like: torch.Tensor) -> torch.Tensor:
    signs = torch.ones(count, dtype=like.dtype, device=like.device)
    signs[::2] = -1
    return signs
