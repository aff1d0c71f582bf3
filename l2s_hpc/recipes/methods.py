"""The merge methods of mergekit 0.1.5 and their parameters, as data.

A login node plans without mergekit and torch, so the table stands here; a test compares it with
mergekit's own registry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from l2s_hpc.errors import UserError, did_you_mean

Scope = Literal["shared", "input", "non_base"]
"""shared: one value; input: one per model; non_base: one per model that is not the base."""

TESTED = ("linear", "slerp", "task_arithmetic", "ties", "dare_ties")
RANDOM = ("dare_ties", "dare_linear", "della", "della_linear", "arcee_fusion")
"""Methods that draw random numbers: the seed and the order of tensors belong to the result."""


@dataclass(frozen=True)
class Method:
    """One merge method: what it demands of its inputs, and its parameters."""

    name: str
    base: Literal["required", "optional", "ignored"]
    scopes: dict[str, Scope]
    defaults: dict[str, bool | int | float | None]
    max_inputs: int | None = None

    @property
    def tested(self) -> bool:
        return self.name in TESTED

    @property
    def required(self) -> set[str]:
        """Parameters without a default."""
        return self.scopes.keys() - self.defaults.keys()

    @property
    def task_vectors(self) -> bool:
        """Whether it adds weighted differences from the base (mergekit's generalised form)."""
        return "lambda" in self.scopes


def method(name: str) -> Method:
    """Return a method by name; raises `UserError` with the nearest valid name."""
    try:
        return METHODS[name]
    except KeyError:
        raise UserError(
            f"unknown merge method '{name}'", hint=did_you_mean(name, METHODS)
        ) from None


def _arithmetic(name: str, normalize: bool, rescale: bool, **extra: float) -> Method:
    scopes: dict[str, Scope] = {
        "int8_mask": "shared",
        "normalize": "shared",
        "rescale": "shared",
        "lambda": "shared",
        "weight": "non_base",
        "density": "non_base",
    }
    defaults: dict[str, bool | int | float | None] = {
        "int8_mask": False,
        "normalize": normalize,
        "rescale": rescale,
        "lambda": 1.0,
        "density": 1.0,
    }
    scopes.update(dict.fromkeys(extra, "non_base"))
    defaults.update(extra)
    return Method(name, "required", scopes, defaults)


METHODS: dict[str, Method] = {
    entry.name: entry
    for entry in (
        Method(
            "linear", "ignored", {"weight": "input", "normalize": "shared"}, {"normalize": True}
        ),
        Method("slerp", "required", {"t": "shared"}, {}, max_inputs=2),
        _arithmetic("task_arithmetic", normalize=False, rescale=False),
        _arithmetic("ties", normalize=True, rescale=False),
        _arithmetic("dare_ties", normalize=False, rescale=True),
        _arithmetic("dare_linear", normalize=False, rescale=True),
        _arithmetic("breadcrumbs", normalize=False, rescale=False, gamma=0.01),
        _arithmetic("breadcrumbs_ties", normalize=False, rescale=False, gamma=0.01),
        _arithmetic("della", normalize=True, rescale=True, epsilon=0.15),
        _arithmetic("della_linear", normalize=False, rescale=True, epsilon=0.15),
        Method(
            "multislerp",
            "optional",
            {"weight": "non_base", "normalize_weights": "shared", "eps": "shared"},
            {"normalize_weights": True, "eps": 1e-8},
        ),
        Method(
            "nuslerp",
            "optional",
            {"weight": "non_base", "nuslerp_row_wise": "shared", "nuslerp_flatten": "shared"},
            {"nuslerp_row_wise": False, "nuslerp_flatten": True},
        ),
        Method("nearswap", "required", {"t": "shared"}, {}, max_inputs=2),
        Method("ram", "required", {"epsilon": "shared"}, {"epsilon": 1e-5}),
        Method(
            "ramplus_tl",
            "required",
            {"r": "shared", "alpha": "shared", "epsilon": "shared"},
            {"r": 0.1, "alpha": 0.2, "epsilon": 1e-5},
        ),
        Method(
            "sce",
            "required",
            {"int8_mask": "shared", "select_topk": "shared"},
            {"int8_mask": False, "select_topk": 1.0},
        ),
        Method("passthrough", "ignored", {"scale": "input"}, {"scale": None}, max_inputs=1),
        Method("model_stock", "required", {"filter_wise": "shared"}, {"filter_wise": False}),
        Method("arcee_fusion", "required", {}, {}, max_inputs=2),
        Method(
            "karcher",
            "ignored",
            {"max_iter": "shared", "tol": "shared"},
            {"max_iter": 10, "tol": 1e-5},
        ),
    )
}
