"""The searched numbers: genes, their bounds, and the groups of tensors that they act on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from l2s_hpc.config import GeneConfig, SearchConfig
from l2s_hpc.errors import did_you_mean
from l2s_hpc.recipes.methods import METHODS, Method

Genome = tuple[float, ...]

_KINDS = {
    "embeddings": ("embed_tokens",),
    "head": ("lm_head",),
    "final_norm": ("model.norm.",),
    "norms": ("layernorm", "model.norm."),
    "attention": ("self_attn",),
    "mlp": (".mlp.",),
}
_KINDS_IN_LAYER = {
    "attention": ("self_attn.",),
    "mlp": ("mlp.",),
    "norms": ("input_layernorm.", "post_attention_layernorm."),
}
_DECIMALS = 6


@dataclass(frozen=True)
class Gene:
    """One searched number: a method's parameter, for one model and one group where it has them."""

    parameter: str
    model: str | None
    group: str | None
    low: float
    high: float
    step: float | None
    log: bool

    @property
    def name(self) -> str:
        """Its name in tables, such as `weight.slow.top`."""
        return ".".join(part for part in (self.parameter, self.model, self.group) if part)

    def snap(self, value: float) -> float:
        """Return the nearest allowed value inside the bounds."""
        value = min(max(value, self.low), self.high)
        if self.step is None:
            value = round(value, _DECIMALS)
        else:
            most = int((self.high - self.low) / self.step + 1e-9)
            steps = min(round((value - self.low) / self.step), most)
            value = round(self.low + steps * self.step, 10)
        # The rounding may have left the bounds; never -0.0, which is written differently.
        return min(max(value, self.low), self.high) + 0.0


@dataclass(frozen=True)
class Space:
    """All genes of a job in order; `frozen` ones keep one value and are not searched."""

    genes: tuple[Gene, ...]
    frozen: dict[str, float]

    @property
    def searched(self) -> tuple[Gene, ...]:
        return tuple(gene for gene in self.genes if gene.name not in self.frozen)

    def genome(self, values: npt.ArrayLike) -> Genome:
        """Return the canonical genome of the searched genes' values, frozen ones filled in."""
        found = iter(np.asarray(values, dtype=float).tolist())
        return tuple(
            gene.snap(self.frozen[gene.name] if gene.name in self.frozen else next(found))
            for gene in self.genes
        )

    def freeze(self, names: Sequence[str], method: Method) -> Space:
        """Return the space with these genes frozen: at the method's default, else in the middle.

        Not at a bound: a weight of 0 is the base, also where all other weights are alike.
        """
        values = {}
        for gene in self.genes:
            if gene.name in names:
                default = method.defaults.get(gene.parameter)
                value = (gene.low + gene.high) / 2 if default is None else float(default)
                values[gene.name] = gene.snap(value)
        return Space(self.genes, self.frozen | values)


def space(config: SearchConfig) -> Space:
    """Return the genes of a job: each gene entry times its models and groups."""
    genes = [
        Gene(entry.parameter, model, group, entry.low, entry.high, entry.step, entry.log)
        for entry in config.genes
        for model in _models_of(entry, config)
        for group in entry.groups or (None,)
    ]
    return Space(tuple(genes), {})


def merged_models(config: SearchConfig) -> tuple[str, ...]:
    """Return the names of the models that are merged, the base not included."""
    base = base_name(config)
    named = config.merge.models or tuple(name for name in config.parents if name != base)
    return tuple(name for name in named if name != base)


def base_name(config: SearchConfig) -> str | None:
    """Return the base's name: a parent's, or `base` for a model of its own."""
    source = config.merge.base
    if source is None:
        return None
    return source.path if source.path in config.parents else "base"


def filters(selectors: Sequence[str]) -> list[str]:
    """Return mergekit's filters (substrings of tensor names) of a group's selectors."""
    return [part for selector in selectors for part in _selector(selector)]


def gene_faults(config: SearchConfig) -> list[str]:
    """Return a line for each gene, group or parameter that the method cannot have."""
    method = METHODS.get(config.merge.method)
    if method is None:
        name = config.merge.method
        return [f"merge.method: unknown '{name}': {did_you_mean(name, METHODS)}"]
    faults = _model_faults(config, method)
    for index, entry in enumerate(config.genes):
        faults += [f"genes.{index}: {fault}" for fault in _entry_faults(entry, config, method)]
    for name in config.merge.parameters:
        if name not in method.scopes:
            faults.append(
                f"merge.parameters: unknown '{name}': {did_you_mean(name, method.scopes)}"
            )
    for name, selectors in config.merge.groups.items():
        faults += [
            f"merge.groups.{name}: unknown selector '{selector}': "
            + did_you_mean(selector, [*_KINDS, "layers.0-3", "layers.0-3.mlp"])
            for selector in selectors
            if not _selector(selector)
        ]
    faults += _duplicates(config)
    return faults + _missing_parameters(config, method)


def group_faults(config: SearchConfig, tensors: Sequence[str]) -> list[str]:
    """Return a line for each gene entry whose groups overlap or leave tensors out."""
    faults = []
    for index, entry in enumerate(config.genes):
        if not entry.groups or any(name not in config.merge.groups for name in entry.groups):
            continue
        owners = {
            tensor: [g for g in entry.groups if _holds(config.merge.groups[g], tensor)]
            for tensor in tensors
        }
        faults += [
            f"genes.{index}: tensor {tensor} is in {' and '.join(groups) if groups else 'no group'}"
            for tensor, groups in owners.items()
            if len(groups) != 1
        ][:5]
    return faults


def _models_of(entry: GeneConfig, config: SearchConfig) -> tuple[str | None, ...]:
    method = METHODS[config.merge.method]
    if method.scopes.get(entry.parameter) == "shared":
        return (None,)
    return entry.models or merged_models(config)


def _model_faults(config: SearchConfig, method: Method) -> list[str]:
    faults = []
    unknown = [name for name in config.merge.models if name not in config.parents]
    faults += [f"merge.models: no parent '{n}': {did_you_mean(n, config.parents)}" for n in unknown]
    if config.merge.tokenizer and config.merge.tokenizer not in config.parents:
        faults.append(f"merge.tokenizer: no parent '{config.merge.tokenizer}'")
    base = config.merge.base
    if base is not None and "base" in config.parents and base.path not in config.parents:
        faults.append("a parent named 'base' and another model as merge.base: rename the parent")
    if method.base == "required" and config.merge.base is None:
        faults.append(f"the method {method.name} needs merge.base")
    if method.base == "ignored" and config.merge.base is not None:
        faults.append(f"the method {method.name} has no base: leave merge.base out")
    if not merged_models(config):
        faults.append("merge.models: nothing is merged into the base")
    inputs = len(merged_models(config)) + (config.merge.base is not None)
    if method.max_inputs is not None and inputs > method.max_inputs:
        faults.append(f"the method {method.name} merges {method.max_inputs} models, not {inputs}")
    if len(config.parents) < 2:
        faults.append("parents: a search needs at least two")
    return faults


def _entry_faults(entry: GeneConfig, config: SearchConfig, method: Method) -> list[str]:
    if entry.parameter not in method.scopes:
        hint = did_you_mean(entry.parameter, method.scopes)
        return [f"the method {method.name} has no parameter '{entry.parameter}': {hint}"]
    faults = []
    if entry.parameter in config.merge.parameters:
        faults.append(f"'{entry.parameter}' is fixed in merge.parameters too")
    if method.scopes[entry.parameter] == "shared" and entry.models:
        faults.append(f"'{entry.parameter}' is shared by all models: leave models out")
    for name in entry.models:
        if name not in merged_models(config):
            faults.append(f"no merged model '{name}': {did_you_mean(name, merged_models(config))}")
    for name in entry.groups:
        if name not in config.merge.groups:
            options = list(config.merge.groups) or ["(none are defined)"]
            faults.append(f"no group '{name}' in merge.groups: {did_you_mean(name, options)}")
    return faults


def _missing_parameters(config: SearchConfig, method: Method) -> list[str]:
    """A parameter without default must be fixed, or have a gene for each model that it is for."""
    faults = []
    for name in sorted(method.required - config.merge.parameters.keys()):
        entries = [entry for entry in config.genes if entry.parameter == name]
        searched = {model for entry in entries for model in _models_of(entry, config)}
        if not entries:
            faults.append(f"the method {method.name} needs '{name}'")
        elif method.scopes[name] != "shared":
            left_out = [m for m in merged_models(config) if m not in searched]
            faults += [f"the method {method.name} needs '{name}' for '{m}' too" for m in left_out]
    return faults


def _duplicates(config: SearchConfig) -> list[str]:
    """One entry of [[genes]] sets a model's parameter for all tensors: a second one overlaps it."""
    twice = _repeated([gene.name for gene in space(config).genes])
    if twice:
        return [f"the gene {name} is there twice" for name in twice]
    whole = [
        ".".join(part for part in (entry.parameter, model) if part)
        for entry in config.genes
        for model in _models_of(entry, config)
    ]
    return [f"the gene {name} is in two entries of [[genes]]" for name in _repeated(whole)]


def _repeated(names: Sequence[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


def _selector(selector: str) -> tuple[str, ...]:
    """Return a selector's filters, or nothing if it is not one."""
    if selector in _KINDS:
        return _KINDS[selector]
    match = re.fullmatch(r"layers\.(\d+)(?:-(\d+))?(?:\.(\w+))?", selector)
    if not match or (match[3] and match[3] not in _KINDS_IN_LAYER):
        return ()
    layers = range(int(match[1]), int(match[2] or match[1]) + 1)
    parts = _KINDS_IN_LAYER[match[3]] if match[3] else ("",)
    return tuple(f"layers.{layer}.{part}" for layer in layers for part in parts)


def _holds(selectors: Sequence[str], tensor: str) -> bool:
    return any(part in tensor for part in filters(selectors))
