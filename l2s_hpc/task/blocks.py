"""Merges a large tensor in blocks of rows, so that the arithmetic needs little memory beside it.

In float32, mergekit's copies and differences of an embedding of half a billion numbers, and the
sorting of them, take as much of a GPU as two whole models. A method that treats every number by
itself gives the same bits in blocks. So does TIES once it is known which numbers it keeps: these
are found here, without sorting, and the others are set to the base's, which makes their difference
the zero that mergekit makes of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

LARGE = 2**25
"""Numbers in a tensor from which on it is worth while."""

_ELEMENTWISE = ("linear", "task_arithmetic", "ties")
_BLOCK = 70_000_000
_PIECE = 2**18

Merge = Callable[[Sequence[torch.Tensor], dict[str, Any]], torch.Tensor]
"""Merges tensors, one of each input, with these parameters."""


def fits(method: str, parameters: dict[str, Any], shape: Sequence[int]) -> bool:
    """Whether a tensor is large, and can be merged in blocks.

    The bits are those of the whole but for TIES on a CPU. Of equal magnitudes the first are kept
    here, as mergekit keeps them on a GPU; on a CPU its sorting leaves the choice to chance.
    """
    if torch.Size(shape).numel() < LARGE or len(shape) < 2 or method not in _ELEMENTWISE:
        return False
    return method != "ties" or not parameters["rescale"]


def in_blocks(
    tensors: Sequence[torch.Tensor],
    base: int | None,
    ids: Sequence[str],
    parameters: dict[str, Any],
    merge: Merge,
    dtype: torch.dtype,
    block: int = _BLOCK,
) -> torch.Tensor:
    """Merge tensors block by block.

    Args:
        tensors: one of each input.
        base: which of them is the base; None for methods without.
        ids: the inputs' names, by which `parameters` may be given.
        parameters: of the method; where there is a `density`, it is TIES.
        merge: merges one block.
        dtype: of the result.
        block: about the numbers of a block; it has whole rows, one at least.
    """
    if tensors[0].is_cuda and tensors[0].numel() > 4 * _BLOCK:
        # What smaller tensors have left in torch's pool does not serve larger ones.
        torch.cuda.empty_cache()
    inputs = list(tensors)
    densities = parameters.get("density")
    if isinstance(densities, dict) and base is not None:
        for n, name in enumerate(ids):
            if n != base and densities[name] < 1:
                inputs[n] = _sparse(inputs[n], inputs[base], densities[name])
        parameters = parameters | {"density": dict.fromkeys(densities, 1.0)}
    blocks = math.ceil(inputs[0].numel() / block)
    rows = math.ceil(len(inputs[0]) / blocks)
    whole = torch.empty(inputs[0].shape, dtype=dtype, device=inputs[0].device)
    for out, *part in zip(whole.split(rows), *(t.split(rows) for t in inputs), strict=True):
        out.copy_(merge(part, parameters))
    return whole


def _sparse(tensor: torch.Tensor, base: torch.Tensor, density: float) -> torch.Tensor:
    """Return a tensor with its base's numbers wherever TIES drops the difference."""
    kept = int(density * tensor.numel())
    if density <= 0:
        return base
    mask = largest(_magnitudes(tensor, base), max(kept, 1))
    return torch.where(mask.view(tensor.shape), tensor, base)


def _magnitudes(tensor: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Return the bits of |tensor - base| in float32, flat: as integers they have the same order."""
    found = torch.empty(tensor.numel(), dtype=torch.float32, device=tensor.device)
    pieces = [part.reshape(-1).split(_BLOCK) for part in (tensor, base)]
    for out, ours, theirs in zip(found.split(_BLOCK), *pieces, strict=True):
        torch.sub(ours.float(), theirs.float(), out=out).abs_()
    return found.view(torch.int32)


def largest(bits: torch.Tensor, count: int) -> torch.Tensor:
    """Return a mask of the `count` largest of flat integers; of equal ones, the first."""
    smallest = _smallest_of(bits, count)
    mask = bits > smallest
    equal = bits == smallest
    end = _place_of(equal, count - int(_sums(mask).sum())) + 1
    mask[:end] |= equal[:end]
    return mask


def _smallest_of(bits: torch.Tensor, count: int) -> int:
    """Return the smallest of the `count` largest."""
    others = bits.numel() - count
    if bits.device.type == "cpu":
        return int(np.partition(bits.numpy(), others)[others])
    if count <= others:
        return int(torch.topk(bits, count, sorted=False).values.min())
    return int(torch.topk(bits, others + 1, largest=False, sorted=False).values.max())


def _place_of(mask: torch.Tensor, nth: int) -> int:
    """Return where the n-th (from 1) true value stands; a list of all would be large."""
    sums = _sums(mask).cumsum(0)
    piece = int((sums < nth).sum())
    before = int(sums[piece - 1]) if piece else 0
    start = piece * _PIECE
    return start + int(mask[start : start + _PIECE].nonzero()[nth - before - 1])


def _sums(mask: torch.Tensor) -> torch.Tensor:
    """Return how many are true in each piece; torch makes integers of all that it adds at once."""
    found = []
    for part in mask.split(_PIECE * 256):
        whole = part.numel() // _PIECE * _PIECE
        found.append(part[:whole].view(-1, _PIECE).sum(1))
        if whole < part.numel():
            found.append(part[whole:].sum().view(1))
    return torch.cat(found)
