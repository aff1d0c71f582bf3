"""Job and site -> everything a run needs, checked: all that can be wrong is said here, at once."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from l2s_hpc.cluster.jobs import python_command
from l2s_hpc.config import (
    ModelSource,
    SearchConfig,
    SiteConfig,
    flatten,
    load_job,
    load_site,
    science,
)
from l2s_hpc.errors import DamageError, UserError, did_you_mean
from l2s_hpc.evaluation.benchmarks import SPLITS, load_all, sources
from l2s_hpc.evaluation.prompts import preset_faults, read_shots, template_hash, turn_ends
from l2s_hpc.evaluation.splits import another_order, splits
from l2s_hpc.recipes.genes import Space, base_name, gene_faults, group_faults, space
from l2s_hpc.recipes.methods import method
from l2s_hpc.recipes.models import (
    Model,
    compatibility_faults,
    locate,
    merged_config,
    merged_tensors,
)
from l2s_hpc.recipes.recipe import silent_genes
from l2s_hpc.records import Evaluation, Protocol, Recipe, short_hash
from l2s_hpc.search.objectives import objective_faults
from l2s_hpc.search.references import references
from l2s_hpc.store.layout import shipped

T = TypeVar("T")


@dataclass(frozen=True)
class Resolved:
    """A job on a site, with models found, items drawn and genes measured."""

    config: SearchConfig
    site: SiteConfig
    models: dict[str, Model]
    space: Space
    liveness: str
    evaluations: dict[str, Evaluation]
    references: dict[str, Recipe]

    @property
    def identities(self) -> dict[str, str]:
        """What each input model's name stands for."""
        return {name: model.identity for name, model in self.models.items()}

    @property
    def science(self) -> dict[str, Any]:
        """The flat settings that decide results: job's, models', items' and protocol's.

        Where a model lies is not among them, what it is is.
        """
        flat = {k: v for k, v in science(self.config).items() if not _is_place(k)}
        flat |= {f"model.{name}": identity for name, identity in self.identities.items()}
        # The order of parents decides which is the slow one, and the order of genes in a genome.
        flat["parents"] = list(self.config.parents)
        flat["genes"] = [gene.name for gene in self.space.genes]
        for name in SPLITS:
            flat[f"items.{name}"] = short_hash(
                [i.model_dump(mode="json") for i in self.evaluations[name].items]
            )
        protocol = self.evaluations["search"].protocol
        flat |= flatten(protocol.model_dump(mode="json"), "protocol")
        return flat


def find_job(name: str) -> Path:
    """Return a job file: a path, or the name of a shipped job."""
    return _find(name, shipped("jobs"), "job")


def find_site(name: str) -> Path:
    """Return a site file: a path, or the name of a shipped site."""
    return _find(name, shipped("hpc/sites"), "site")


def shipped_files(folder: Path) -> dict[str, Path]:
    """Return the shipped TOML files of a folder by name."""
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in sorted(folder.rglob("*.toml"))
    }


def load(job: str, site: str, overrides: list[str]) -> tuple[SearchConfig, SiteConfig]:
    """Read job and site; an override that begins with `site.` goes to the site.

    Raises:
        UserError: with the faults of both files.
    """
    of_site = [o.removeprefix("site.") for o in overrides if o.startswith("site.")]
    of_job = [o for o in overrides if not o.startswith("site.")]
    faults: list[str] = []
    config = _attempt(lambda: load_job(find_job(job), of_job), faults)
    chosen = _attempt(lambda: load_site(find_site(site), of_site), faults)
    if config is None or chosen is None:
        raise UserError("\n".join(faults))
    return config, chosen


def _attempt(load_one: Callable[[], T], faults: list[str]) -> T | None:
    try:
        return load_one()
    except UserError as error:
        faults.append(str(error))
        return None


def resolve(
    config: SearchConfig, site: SiteConfig, frozen: Mapping[str, float] | None = None
) -> Resolved:
    """Check a job on a site and gather what a run needs.

    Args:
        config: the job.
        site: the site.
        frozen: the dead genes of a run that goes on; None measures them.

    Raises:
        UserError: with one line for each fault that was found.
    """
    faults = gene_faults(config) + objective_faults(config) + _benchmark_faults(config, site)
    models, model_faults = _models(config, site)
    faults += model_faults
    if not faults:
        faults = group_faults(config, merged_tensors(models))
        faults += preset_faults(config.protocol.prompt, models[tokenizer_of(config)].folder)
        faults += _context_faults(config, site, models)
    if faults:
        raise UserError("\n".join(faults))
    if frozen is None:
        searched, liveness = _measured_space(config, site, merged_tensors(models))
    else:
        searched, liveness = Space(space(config).genes, dict(frozen)), "measured at the start"
    return Resolved(
        config=config,
        site=site,
        models=models,
        space=searched,
        liveness=liveness,
        evaluations=_evaluations(config, site, models),
        references=references(config, {name: model.identity for name, model in models.items()}),
    )


def model_sources(config: SearchConfig) -> dict[str, ModelSource]:
    """Return where each input model comes from, the base included."""
    found = dict(config.parents)
    name = base_name(config)
    if name is not None and name not in found and config.merge.base is not None:
        found[name] = config.merge.base
    return found


def _benchmark_faults(config: SearchConfig, site: SiteConfig) -> list[str]:
    known = sources(site.benchmarks)
    return [
        f"benchmarks: unknown benchmark '{name}': {did_you_mean(name, known)}"
        for name in config.benchmarks
        if name not in known
    ]


def _models(config: SearchConfig, site: SiteConfig) -> tuple[dict[str, Model], list[str]]:
    """Return the input models that are here and readable, and a line for each fault."""
    models, faults = {}, []
    for name, source in model_sources(config).items():
        try:
            model = locate(name, source, site.models)
            _ = model.config, model.tensors
        except (UserError, DamageError) as error:
            faults.append(str(error))
        else:
            models[name] = model
    if not faults:
        faults = compatibility_faults(models)
    return models, faults


def _context_faults(
    config: SearchConfig, site: SiteConfig, models: Mapping[str, Model]
) -> list[str]:
    """Return a line for each budget that leaves no room for a prompt in the model's context.

    The scripted engine has no model, and a config need not say how long a context is.
    """
    merged = merged_config(models, _tokenizer(config))
    context = merged["max_position_embeddings"]
    if engine_of(site) == "scripted" or not context:
        return []
    protocol = config.protocol
    budgets = {f"protocol.budgets.{name}": n for name, n in protocol.budgets.items()}
    if set(config.benchmarks) - set(protocol.budgets):
        budgets = {"protocol.max_tokens": protocol.max_tokens} | budgets
    return [
        f"{name} = {budget} leaves no room for a prompt in the merged model's context of {context} "
        "tokens (max_position_embeddings): lower it by more than the longest prompt"
        for name, budget in budgets.items()
        if budget >= context
    ]


def _tokenizer(config: SearchConfig) -> str:
    """Return the parent whose tokenizer the merged model gets."""
    return config.merge.tokenizer or next(iter(config.parents))


def _measured_space(
    config: SearchConfig, site: SiteConfig, tensors: list[str]
) -> tuple[Space, str]:
    """Return the genes with the dead ones frozen, measured by merging small tensors.

    mergekit and torch are a node's: the measurement runs in the site's interpreter, and where that
    cannot import them on this machine, the canonical form of recipes is asked instead: it knows the
    genes that cancel (the weight of a lone task vector under TIES), not those that do nothing else.
    """
    genes = space(config)
    if engine_of(site) == "scripted":
        return genes, "not measured: the scripted engine merges nothing"
    question = {"config": config.model_dump(mode="json"), "tensors": tensors}
    answer = _asked([*python_command(site), "-m", "l2s_hpc.task.liveness"], json.dumps(question))
    if answer.returncode == 0:
        dead, how = json.loads(answer.stdout), "measured on small tensors"
    else:
        last = (answer.stderr.strip().splitlines() or ["no output"])[-1]
        dead, how = silent_genes(config, genes), f"from canonical recipes, not measured: {last}"
    if len(dead) == len(genes.genes):
        raise UserError("every gene is dead: no gene changes the merged model")
    return genes.freeze(dead, method(config.merge.method)), how


def _asked(command: list[str], question: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the site; one that is not on this machine has failed like any other."""
    try:
        return subprocess.run(command, input=question, capture_output=True, text=True, check=False)
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))


def _evaluations(
    config: SearchConfig, site: SiteConfig, models: Mapping[str, Model]
) -> dict[str, Evaluation]:
    protocol = _protocol(config, site, models)
    benchmarks = load_all(config.benchmarks, site.benchmarks, config.other_snapshots)
    origins = {name: benchmark.origin for name, benchmark in benchmarks.items()}
    divided = splits(config, benchmarks)
    divided["noise"] = another_order(divided["selection"], config.seed)
    return {
        name: Evaluation(name=name, protocol=protocol, items=items, origins=origins)
        for name, items in divided.items()
    }


def _protocol(config: SearchConfig, site: SiteConfig, models: Mapping[str, Model]) -> Protocol:
    stop_ids = {token for model in models.values() for token in model.stop_ids}
    if not stop_ids:
        raise UserError("no model names an eos_token_id in its config.json")
    # A merge of several families may end its turn as any of them does.
    stop_ids |= {token for model in models.values() for token in turn_ends(model.folder)}
    name, few_shot = tokenizer_of(config), config.protocol.few_shot
    return Protocol(
        **config.protocol.model_dump(exclude={"few_shot"}),
        shots=read_shots(Path(few_shot).expanduser()) if few_shot else (),
        template=template_hash(config.protocol.prompt, models[name].folder),
        stop_ids=tuple(sorted(stop_ids)),
        tokenizer=name,
        engine=engine_of(site),
        engine_settings=engine_settings(site),
        merge_device=site.device,
    )


def tokenizer_of(config: SearchConfig) -> str:
    """Return the parent whose tokenizer is saved with the merged model."""
    return config.merge.tokenizer or next(iter(config.parents))


def engine_of(site: SiteConfig) -> str:
    """Return the engine that a site uses: `auto` is vllm on GPUs, transformers on CPUs."""
    if site.engine == "auto":
        return "vllm" if site.device == "cuda" else "transformers"
    return site.engine


def engine_settings(site: SiteConfig) -> dict[str, Any]:
    """Return the settings of the engine that can change a token.

    The number of CPU threads decides how sums are divided; on a GPU it changes nothing.
    """
    match engine_of(site):
        case "scripted":
            return dict(site.scripted)
        case "vllm":
            threads = {"threads": site.threads} if site.device == "cpu" else {}
            return site.vllm.model_dump(exclude={"cache"}) | threads
    return {"batch_size": site.batch_size, "threads": site.threads}


def _find(name: str, folder: Path, kind: str) -> Path:
    path = Path(name)
    if path.suffix == ".toml" or "/" in name:
        if path.is_file():
            return path
        if name not in shipped_files(folder):
            raise UserError(f"{kind} file not found", path=path)
    known = shipped_files(folder)
    if name not in known:
        raise UserError(f"no {kind} named '{name}'", hint=did_you_mean(name, known))
    return known[name]


def _is_place(key: str) -> bool:
    return key.startswith(("parents.", "merge.base.", "protocol.few_shot"))
