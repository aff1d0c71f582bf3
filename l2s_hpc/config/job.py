"""The job file: what to search."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import (
    AwareDatetime,
    Field,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from l2s_hpc.config.base import Config, Name, Scalar


class ModelSource(Config):
    """Where a model comes from."""

    path: str
    """A folder (`./…`, `/…`, `~/…`), `shipped:toy/slow`, or a hub id: `Qwen/Qwen2.5-Math-7B`."""
    revision: str | None = None
    """The commit of the hub repository; empty means the one that is in the cache."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class MergeConfig(Config):
    """How models are merged; becomes the fixed part of every recipe."""

    method: str
    """mergekit's: linear, slerp, task_arithmetic, ties, dare_ties; others are untested."""
    base: ModelSource | None = None
    """The base: the name of a parent, or a model of its own. Empty for methods without base."""
    models: tuple[str, ...] = ()
    """Names of the parents that are merged; empty means all parents but the base."""
    parameters: dict[str, Scalar] = {}
    """Fixed parameters of the method, such as `normalize = true`."""
    groups: dict[Name, tuple[str, ...]] = {}
    """Groups of tensors for genes: name = selectors (`layers.0-13`, `mlp`, `layers.3.mlp`, …)."""
    tokenizer: str = ""
    """The parent whose tokenizer and generation settings the result gets; empty: the first."""
    seed: int = Field(0, ge=0)
    """The seed of methods that draw random numbers (DARE, DELLA)."""


class GeneConfig(Config):
    """One searched parameter; it becomes one gene per named model and group."""

    parameter: str
    """The method's parameter: weight, density, lambda, t, …"""
    models: tuple[str, ...] = ()
    """The models it is searched for; empty means each merged model, or none if it is shared."""
    groups: tuple[str, ...] = ()
    """The groups it is searched for; empty means one value for all tensors."""
    low: float
    """The lower bound."""
    high: float
    """The upper bound."""
    step: float | None = Field(None, gt=0)
    """Values are rounded to low + n * step; empty means six decimals."""
    log: bool = False
    """Search on a logarithmic scale; the lower bound must be positive."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low = {self.low} must be below high = {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"log = true needs low > 0, not {self.low}")
        return self


class AlgorithmConfig(Config):
    """The evolutionary algorithm."""

    algorithm: Literal["nsga2", "ga", "random"] = "nsga2"
    """nsga2 for two or more objectives, ga for one; random draws, to compare with."""
    population: int = Field(20, ge=2)
    """Candidates of each generation after the first."""
    generations: int = Field(10, ge=1)
    """Number of generations, the first included; may grow later."""
    start: Literal["random", "grid"] = "random"
    """The first generation: random, or a coarse grid in which the groups share one value."""
    grid: int = Field(4, ge=2)
    """Points per axis of the grid start (one axis per parameter and model)."""
    crossover_eta: float = Field(15.0, gt=0)
    """Distribution index of simulated binary crossover."""
    mutation_eta: float = Field(20.0, gt=0)
    """Distribution index of polynomial mutation."""
    failures: float = Field(0.5, gt=0, le=1)
    """The search pauses when more than this share of a generation has failed."""


class SplitConfig(Config):
    """Which part of the questions a split holds."""

    share: float = Field(ge=0, le=1)
    """Share of all questions, drawn by the seed; unused where a benchmark brings its own splits."""
    max_items: int | None = Field(None, ge=1)
    """At most this many questions of each benchmark."""


class SplitsConfig(Config):
    """The three disjoint splits."""

    search: SplitConfig = SplitConfig(share=0.2)
    """Evaluated for every candidate of the search."""
    selection: SplitConfig = SplitConfig(share=0.3)
    """Evaluated for the front and the references; the picks are made on it."""
    report: SplitConfig = SplitConfig(share=0.5)
    """Evaluated once, for what was picked."""
    seed: int | None = Field(None, ge=0)
    """Draws the questions instead of the job's `seed`: give it a number, and searches of several
    seeds answer the same questions."""

    @model_validator(mode="after")
    def _sum(self) -> Self:
        total = self.search.share + self.selection.share + self.report.share
        if total > 1 + 1e-9:
            raise ValueError(f"the shares overlap: they add up to {total:g}, at most 1 is there")
        return self


Prompt = Literal["plain", "r1", "qwen25-math-cot", "chat"]
"""Presets of prompts, see `l2s_hpc.evaluation.prompts`."""


class ProtocolConfig(Config):
    """What can change a generated token.

    The defaults are those of a search: greedy, 10,240 tokens. Reasoning models are published with
    temperature 0.6, top_p 0.95, 32,768 tokens and the mean of several samples: that is for
    `l2s evaluate`, because a job has one protocol for all its splits.
    """

    prompt: Prompt = "plain"
    """plain: `User: … Assistant:`, the published protocol; r1: DeepSeek-R1's turns, with `<think>`
    begun; qwen25-math-cot: ChatML, with Qwen2.5-Math's system prompt; chat: the tokenizer's own
    template."""
    few_shot: str = ""
    """A JSON Lines file of `question` and `answer`: examples that stand before every question. Its
    content belongs to the protocol; its place is meant from the job file's own folder."""
    max_tokens: int = Field(10_240, ge=1)
    """Longest answer in generated tokens."""
    temperature: float = Field(0.0, ge=0)
    """0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling."""
    samples: int = Field(1, ge=1)
    """Answers per item."""
    seed: int = Field(0, ge=0)
    """The seed from which each request's seed is drawn."""
    chunk_items: int = Field(1024, ge=1)
    """Prompts of one `generate` call; an interrupted attempt goes on at the next chunk."""
    budgets: dict[Name, PositiveInt] = {}
    """Longest answers by benchmark, where `max_tokens` is not meant: `{ gsm8k = 2048 }`."""
    cycle_guard: int = Field(0, ge=0)
    """Ends an answer that repeats itself exactly for so many tokens; it is charged its whole
    budget. 0: off."""


class ReferencesConfig(Config):
    """Recipes that every run evaluates to compare with: parents and plain average always."""

    sweep: int = Field(5, ge=0)
    """Points of the one-parameter sweep between the first two parents, the ends included."""


class NoiseConfig(Config):
    """How far scores differ where nothing does: measured in the run, beside the results."""

    twins: int = Field(3, ge=0)
    """Candidates that answer the selection items once more, in another order: the slow parent, then
    the picks and others of the final front. 0: none, and no noise is known."""


class BudgetConfig(Config):
    """What a search may use; it ends clean, with its report, before it would use more.

    The first generation is always made.
    """

    max_gpu_hours: float | None = Field(None, gt=0)
    """GPU-hours of all attempts, as their receipts tell them; what comes after the search is
    reserved."""
    max_candidates: int | None = Field(None, ge=1)
    """Different candidates that the search evaluates."""
    deadline: AwareDatetime | None = None
    """No generation begins that would end after this: `2027-01-31T18:00:00+01:00`."""


class SearchConfig(Config):
    """A job file: what to search."""

    name: str
    """The name of the search, and of its run directory."""
    description: str = ""
    """A sentence for `l2s jobs`."""
    seed: int = Field(0, ge=0)
    """The seed of the search, and of the splits unless they have one of their own."""
    parents: dict[Name, ModelSource]
    """The input models by name, the slow-thinking one first: `slow` and `fast`, and more."""
    merge: MergeConfig
    """How they are merged."""
    genes: tuple[GeneConfig, ...] = Field(min_length=1)
    """What is searched."""
    search: AlgorithmConfig = AlgorithmConfig()
    """How it is searched."""
    objectives: tuple[str, ...] = Field(("accuracy", "tokens"), min_length=1)
    """accuracy (max), tokens, ntr, truncation (min); `.macro` or `.<benchmark>` may follow."""
    constraints: tuple[str, ...] = ("accuracy >= parent.fast",)
    """Such as `ntr <= 0.1` or `accuracy >= parent.slow - 0.02`."""
    benchmarks: tuple[str, ...] = Field(min_length=1)
    """Names of benchmarks, see `data/benchmarks/`, or of the site's own files."""
    other_snapshots: tuple[str, ...] = ()
    """Those of them whose problems may be others than the published ones that `data/` knows."""
    splits: SplitsConfig = SplitsConfig()
    """How the questions are divided."""
    protocol: ProtocolConfig = ProtocolConfig()
    """How answers are generated."""
    references: ReferencesConfig = ReferencesConfig()
    """What the search is compared with."""
    noise: NoiseConfig = NoiseConfig()
    """How far differences can be trusted."""
    budget: BudgetConfig = BudgetConfig()
    """What the search may use."""

    @field_validator("benchmarks")
    @classmethod
    def _once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"named twice: {', '.join(twice)}")
        return names

    @field_validator("other_snapshots")
    @classmethod
    def _among_benchmarks(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        unknown = sorted(set(names) - set(info.data.get("benchmarks", names)))
        if unknown:
            raise ValueError(f"no benchmarks of this job: {', '.join(unknown)}")
        return names

    @field_validator("protocol")
    @classmethod
    def _budgets(cls, protocol: ProtocolConfig, info: ValidationInfo) -> ProtocolConfig:
        known = info.data.get("benchmarks")
        if known is None:  # they are faulty themselves
            return protocol
        unknown = sorted(set(protocol.budgets) - set(known))
        if unknown:
            raise ValueError(
                f"budgets are given for what is no benchmark of this job: {', '.join(unknown)}; "
                f"its benchmarks: {', '.join(known)}"
            )
        return protocol


OPERATIONAL = (
    "description",
    "search.generations",
    "search.failures",
    "noise.twins",
    "budget.max_gpu_hours",
    "budget.max_candidates",
    "budget.deadline",
)
"""Keys of a job that may change while its run goes on; every other key is science."""
