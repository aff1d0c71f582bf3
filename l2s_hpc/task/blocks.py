"""Merges a large tensor in blocks of rows, so that the arithmetic needs little memory beside it.

In float32, mergekit's copies and differences of an embedding of half a billion numbers, and the
sorting of them, take as much of a GPU as two whole models. A method that treats every number by
itself gives the same bits in blocks. So does TIES once it is known where it cuts, see `find_cut`:
numbers that it drops are set to the base's, which makes their difference the zero that mergekit
makes of it. Nothing but the result is as long as the tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

LARGE = 2**25
"""Numbers in a tensor from which on it is worth while."""

_ELEMENTWISE = ("linear", "task_arithmetic", "ties")
_EMPTIED = 2**27
"""Numbers from which on torch's pool is emptied first: few tensors have as many."""
_BLOCK = 35_000_000
_BAND = 2**23
"""Numbers between two bounds that are few enough to sort."""
_SAMPLE = 2**20
_MOST = 2**31 - 1

Merge = Callable[[Sequence[torch.Tensor], dict[str, Any]], torch.Tensor]
"""Merges tensors, one of each input, with these parameters."""


class Cut(NamedTuple):
    """Which numbers TIES keeps, told by their magnitudes and places in the flat tensor.

    A magnitude is the bits of |tensor - base| in float32: as integers they have the same order.
    """

    smallest: int
    """Magnitude that is kept."""
    end: int
    """Of those that equal it, the ones before this place are kept."""

    def mask(self, tensor: torch.Tensor, base: torch.Tensor, start: int) -> torch.Tensor:
        """Return which numbers of a part, whose first is at the place `start`, are kept."""
        found = _magnitudes(tensor, base)
        end = max(self.end - start, 0)
        kept = torch.cat((found[:end] >= self.smallest, found[end:] > self.smallest))
        return kept.view(tensor.shape)


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
    first = tensors[0]
    if first.is_cuda and first.numel() > _EMPTIED:
        # What smaller tensors have left in torch's pool does not serve the result.
        torch.cuda.empty_cache()
    rows = math.ceil(len(first) / math.ceil(first.numel() / block))
    cuts: dict[int, Cut] = {}
    densities = parameters.get("density")
    if isinstance(densities, dict) and base is not None:
        for n, name in enumerate(ids):
            if n != base and densities[name] < 1:
                count = max(int(densities[name] * first.numel()), int(densities[name] > 0))
                cuts[n] = find_cut(tensors[n], tensors[base], count, rows)
        parameters = parameters | {"density": dict.fromkeys(densities, 1.0)}
    whole = torch.empty(first.shape, dtype=dtype, device=first.device)
    start = 0
    for out, *part in zip(whole.split(rows), *(t.split(rows) for t in tensors), strict=True):
        if base is not None:
            for n, cut in cuts.items():
                mask = cut.mask(part[n], part[base], start)
                part[n] = torch.where(mask, part[n], part[base])
        out.copy_(merge(part, parameters))
        start += out.numel()
    return whole


def find_cut(tensor: torch.Tensor, base: torch.Tensor, count: int, rows: int) -> Cut:
    """Find the cut that keeps the `count` largest magnitudes; of equal ones, the first.

    The magnitudes are made anew, by blocks of `rows` rows, each time that they are gone through.
    Counting those above a few bounds narrows where the smallest kept one lies, until there is but
    one value, or few enough numbers to sort. Bounds from a sample nearly always do at once;
    otherwise halving does. However many are equal, no more than a block is in memory.
    """
    if not count:
        return Cut(_MOST, 0)

    def blocks() -> Iterator[torch.Tensor]:
        return map(_magnitudes, tensor.split(rows), base.split(rows))

    low, at_least_low = 0, tensor.numel()
    high, above_high = _MOST, 0
    bounds = _guessed(tensor, base, count)
    while low < high and at_least_low - above_high > _BAND:
        for bound, above in zip(bounds, _above(blocks(), bounds), strict=True):
            if above < count:
                high, above_high = min((high, above_high), (bound, above))
            else:
                low, at_least_low = max((low, at_least_low), (bound + 1, above))
        bounds = [(low + high) // 2]
    left = count - above_high
    if low < high:
        band = torch.cat([found[(found >= low) & (found <= high)] for found in blocks()])
        low = int(band.sort(descending=True).values[left - 1])
        left -= int((band > low).sum())
    end = 0
    for found in blocks():
        equal = (found == low).nonzero()
        if len(equal) >= left:
            return Cut(low, end + int(equal[left - 1]) + 1)
        left -= len(equal)
        end += found.numel()
    return Cut(low, end)


def _magnitudes(tensor: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    return (tensor.float() - base.float()).abs_().reshape(-1).view(torch.int32)


def _guessed(tensor: torch.Tensor, base: torch.Tensor, count: int) -> list[int]:
    """Return bounds about the smallest magnitude that is kept, by a sample.

    Two enclose its rank by many times the sample's error. With the numbers just below them, they
    also tell whether it is one of the two, which may be the value of any share of the numbers.
    """
    step = tensor.numel() // _SAMPLE | 1
    sample = _magnitudes(tensor.reshape(-1)[::step], base.reshape(-1)[::step])
    rank = int(count / tensor.numel() * len(sample))
    margin = 4 * math.isqrt(len(sample))
    ends = [max(rank - margin, 0), min(rank + margin, len(sample) - 1)]
    high, low = sample.sort(descending=True).values[ends].tolist()
    return sorted({low - 1, low, high - 1, high})


def _above(blocks: Iterator[torch.Tensor], bounds: list[int]) -> list[int]:
    """Return how many numbers are above each bound."""
    # As int32, or torch makes 8 bytes of each that it adds.
    counts = [
        torch.stack([(found > bound).sum(dtype=torch.int32) for bound in bounds])
        for found in blocks
    ]
    found: list[int] = torch.stack(counts).sum(0).tolist()
    return found
