"""The two files a user writes: a job (what to search) and a site (how one cluster is used).

The sentence under a field is its documentation. Unknown keys are refused, all faults are reported
at once, and an unknown key names its nearest valid key.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from l2s_hpc.errors import UserError, did_you_mean

Scalar = bool | int | float | str
Name = Annotated[str, Field(pattern=r"^\w+$")]
"""A name that the user gives: it stands between dots in gene names and constraints."""
C = TypeVar("C", bound="Config")


class Config(BaseModel):
    """A part of a configuration file: immutable, unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


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

    @model_validator(mode="after")
    def _sum(self) -> Self:
        total = self.search.share + self.selection.share + self.report.share
        if total > 1 + 1e-9:
            raise ValueError(f"the shares overlap: they add up to {total:g}, at most 1 is there")
        return self


class ProtocolConfig(Config):
    """What can change a generated token."""

    prompt: Literal["plain", "chat"] = "plain"
    """plain: `User: … Assistant:`, the published protocol; chat: the tokenizer's own template."""
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


class ReferencesConfig(Config):
    """Recipes that every run evaluates to compare with: parents and plain average always."""

    sweep: int = Field(5, ge=0)
    """Points of the one-parameter sweep between the first two parents, the ends included."""


class BudgetConfig(Config):
    """What a search may use. It ends clean, with its report, where another generation is too much."""

    max_gpu_hours: float | None = Field(None, gt=0)
    """GPU-hours of all attempts, as their receipts tell them; selection and report are reserved."""
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
    """The seed of the search and of the splits."""
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
    """Names of benchmarks, see `data/`."""
    splits: SplitsConfig = SplitsConfig()
    """How the questions are divided."""
    protocol: ProtocolConfig = ProtocolConfig()
    """How answers are generated."""
    references: ReferencesConfig = ReferencesConfig()
    """What the search is compared with."""
    budget: BudgetConfig = BudgetConfig()
    """What the search may use."""

    @field_validator("benchmarks")
    @classmethod
    def _once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"named twice: {', '.join(twice)}")
        return names


OPERATIONAL = (
    "description",
    "search.generations",
    "search.failures",
    "budget.max_gpu_hours",
    "budget.max_candidates",
    "budget.deadline",
)
"""Keys of a job that may change while its run goes on; every other key is science."""


class ControllerConfig(Config):
    """The controller as a small Slurm job (`l2s run --detach`)."""

    partition: str = ""
    """--partition; empty: the site's."""
    account: str = ""
    """--account; empty: the site's."""
    qos: str = ""
    """--qos; empty: the site's."""
    minutes: int = Field(1440, ge=1)
    """--time of one link of the chain; before it ends, the next link is submitted."""
    memory: str = "2G"
    """--mem; the controller needs about half a gigabyte."""
    mail: str = ""
    """--mail-user: Slurm writes there when a link of the chain ends or fails."""
    notify: str = ""
    """Your own shell command, run when the search pauses or ends; $L2S_RUN, $L2S_EVENT (`paused`,
    `completed`) and $L2S_MESSAGE say what happened."""
    sbatch: dict[str, str | int | bool] = {}
    """Any other flag of sbatch, without the dashes."""


class SiteConfig(Config):
    """A site file: how one cluster, or this machine, is used."""

    name: str
    """The name of the site."""
    description: str = ""
    """A sentence for people."""
    executor: Literal["local", "slurm"]
    """local: worker processes on this machine; slurm: array jobs."""
    parallel: int = Field(0, ge=0)
    """local: number of workers; 0 means one per core."""
    python: str = ""
    """The command that starts Python on the nodes, such as `/shared/venv/bin/python` or `apptainer
    exec --nv l2s.sif python`; empty means the interpreter that runs `l2s`."""
    engine: Literal["transformers", "scripted"] = "transformers"
    """transformers: real models; scripted: no model at all, for tests of the cluster side."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where models are merged and run."""
    threads: int = Field(1, ge=1)
    """CPU threads of one worker."""
    batch_size: int = Field(50, ge=1)
    """Prompts that are decoded together by the transformers engine."""
    candidates_per_task: int = Field(1, ge=1)
    """Candidates of one task; each worker evaluates one after another in one warm engine."""
    workers_per_task: int = Field(1, ge=1)
    """Workers of one task, each with a GPU of its own: for sites that give whole nodes only."""
    gpu_memory: float = Field(0.0, ge=0)
    """Memory of one GPU in GB; a model that does not fit is refused by `plan`. 0: not known."""
    attempts: int = Field(2, ge=1)
    """A candidate that failed this often in the same way, each time on another node where there is
    one, is penalised."""
    resubmit_cancelled: int = Field(0, ge=0)
    """How often a candidate whose task somebody cancelled is sent again by itself; after that the
    search pauses and asks (`--resubmit-cancelled`)."""
    node_faults: int = Field(3, ge=1)
    """slurm: a node on which this many candidates failed in a row is excluded and named."""
    disk_seconds: float = Field(300.0, ge=0)
    """How long a worker waits for room on a full disk before it gives its result up."""
    poll_seconds: float = Field(1.0, gt=0)
    """Seconds between two looks at Slurm and at the receipts."""
    grace_seconds: float = Field(60.0, ge=0)
    """How long a job that Slurm no longer knows may still show its receipt."""
    partition: str = ""
    """slurm: --partition."""
    account: str = ""
    """slurm: --account."""
    qos: str = ""
    """slurm: --qos."""
    constraint: str = ""
    """slurm: --constraint."""
    gres: str = ""
    """slurm: --gres, such as `gpu:1`."""
    cpus: int = Field(1, ge=1)
    """slurm: --cpus-per-task."""
    memory: str = ""
    """slurm: --mem, such as `64G`; empty means the partition's default."""
    minutes: int = Field(60, ge=1)
    """slurm: --time of one task."""
    throttle: int = Field(256, ge=1)
    """slurm: most tasks of one array that run at once (`%N`)."""
    max_jobs: int = Field(0, ge=0)
    """slurm: most array tasks of a run in the queue at once, the rest follows; 0: no limit."""
    setup: tuple[str, ...] = ()
    """slurm: shell lines before the worker, such as `module load cuda`; your own, not checked."""
    sbatch: dict[str, str | int | bool] = {}
    """slurm: any other flag of sbatch, without the dashes."""
    controller: ControllerConfig = ControllerConfig()
    """slurm: the detached controller."""
    scripted: dict[str, Any] = {}
    """Settings of the scripted engine."""
    benchmarks: dict[str, str] = {}
    """Local JSONL or Parquet files of benchmarks, by name, used before the hub's cache."""
    models: dict[str, str] = {}
    """Local folders of models, by hub id, used before the hub's cache."""


def load_job(path: Path, overrides: Iterable[str] = ()) -> SearchConfig:
    """Read a job file; raises `UserError` with all faults at once.

    Folders of models that begin with `./` or `../` are meant from the job file's own folder.
    """
    return _anchored(_load(SearchConfig, path, overrides), path.resolve().parent)


def load_site(path: Path, overrides: Iterable[str] = ()) -> SiteConfig:
    """Read a site file; raises `UserError` with all faults at once."""
    return _load(SiteConfig, path, overrides)


def validate(kind: type[C], data: Mapping[str, Any], path: Path | None = None) -> C:
    """Check a mapping against a configuration class; raises `UserError` with a line per fault."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        faults: list[dict[str, Any]] = [dict(fault) for fault in error.errors()]
        # A list with a faulty entry is called too short as well: that is no fault of its own.
        within = {f["loc"][:n] for f in faults for n in range(len(f["loc"]))}
        own = [f for f in faults if f["type"] != "too_short" or f["loc"] not in within]
        raise UserError("\n".join(_fault(kind, fault) for fault in own), path=path) from None


def documented(kind: type[BaseModel], prefix: str = "") -> list[tuple[str, str, str]]:
    """Return (dotted key, default, meaning) of every key of a configuration file."""
    rows = []
    for name, field in kind.model_fields.items():
        key = f"{prefix}{name}"
        inner = _models_in(field.annotation)
        default = "(required)" if field.is_required() else repr(field.get_default())
        nested = inner and issubclass(inner[0], Config)
        rows.append((key, "" if nested else default, field.description or ""))
        if nested:
            mark = f"{key}.<name>." if "dict" in str(field.annotation) else f"{key}."
            rows += documented(inner[0], mark)
    return rows


def science(config: SearchConfig) -> dict[str, Any]:
    """Return the flat settings of a job that decide its results, by dotted key."""
    flat = flatten(config.model_dump(mode="json"))
    return {key: value for key, value in flat.items() if key not in OPERATIONAL}


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings and lists by dotted key."""
    if isinstance(tree, Mapping) and tree:
        pairs: Iterable[tuple[Any, Any]] = tree.items()
    elif isinstance(tree, list | tuple) and any(isinstance(e, Mapping) for e in tree):
        pairs = enumerate(tree)
    else:
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in pairs:
        flat.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def _anchored(config: SearchConfig, folder: Path) -> SearchConfig:
    def anchor(source: ModelSource | None) -> ModelSource | None:
        if source is None or not source.path.startswith(("./", "../")):
            return source
        return source.model_copy(update={"path": str((folder / source.path).resolve())})

    merge = config.merge.model_copy(update={"base": anchor(config.merge.base)})
    parents = {name: anchor(source) for name, source in config.parents.items()}
    return config.model_copy(update={"parents": parents, "merge": merge})


def _load(kind: type[C], path: Path, overrides: Iterable[str]) -> C:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read as TOML: {error}", path=path) from None
    for override in overrides:
        _override(data, override)
    return validate(kind, data, path)


def _override(data: dict[str, Any], override: str) -> None:
    """Apply one `a.b=v`; the value is TOML, or text where it is not."""
    dotted, equals, text = override.partition("=")
    if not equals or not dotted.strip():
        raise UserError(f"--set {override}", hint="write --set key.name=value")
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = dotted.strip().split(".")
    node: Any = data
    try:
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        node[int(last) if isinstance(node, list) else last] = value
    except (IndexError, ValueError):
        raise UserError(f"--set {override}: no such entry, they count from 0") from None
    except (AttributeError, TypeError):
        raise UserError(f"--set {override}: a value stands where a table must be") from None


def _fault(kind: type[BaseModel], fault: dict[str, Any]) -> str:
    """Turn one pydantic error into a line that says what, where and what to do."""
    location = ".".join(str(part) for part in fault["loc"]) or "(file)"
    if fault["type"] == "extra_forbidden":
        siblings = _fields_at(kind, fault["loc"][:-1])
        return f"unknown key '{location}': {did_you_mean(str(fault['loc'][-1]), siblings)}"
    if fault["type"] == "missing":
        return f"missing key '{location}'"
    message = str(fault["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    shown = fault.get("input")
    given = f" (given: {shown!r})" if isinstance(shown, Scalar) else ""
    return f"'{location}': {message}{given}"


def _fields_at(kind: type[BaseModel], location: Iterable[Any]) -> list[str]:
    """Return the valid keys of the table at a location of the configuration."""
    for part in location:
        field = kind.model_fields.get(str(part))
        inner = _models_in(field.annotation) if field else [kind]
        kind = inner[0] if inner else kind
    return list(kind.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]
