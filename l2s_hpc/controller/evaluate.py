"""`l2s evaluate`: scores of existing checkpoints, by the executors and the node path of a search.

A model is the recipe of one model with weight 1, and has an engine to itself: its own tokenizer,
stop ids and context. An evaluation is a protocol applied to items, and is named; the run directory
is one without a search, to which models and evaluations can be added at any time.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from l2s_hpc.config import SearchConfig, SiteConfig, flatten, validate
from l2s_hpc.config.job import ProtocolConfig
from l2s_hpc.controller.checkpoints import checkpoints, located
from l2s_hpc.controller.executors import check_executor, make_executor
from l2s_hpc.controller.memory import check_memory
from l2s_hpc.controller.resolve import Resolved, engine_of, engine_settings
from l2s_hpc.controller.start import difference, git_state, side_by_side, versions
from l2s_hpc.controller.step import Controller
from l2s_hpc.errors import IncompleteError, UserError, did_you_mean
from l2s_hpc.evaluation.benchmarks import load_all
from l2s_hpc.evaluation.prompts import OF_THE_TOKENIZER, preset_faults, read_shots, template_hash
from l2s_hpc.evaluation.whole import all_items
from l2s_hpc.recipes.genes import Space, space
from l2s_hpc.recipes.models import Model
from l2s_hpc.records import Evaluation, Item, Protocol, Recipe, short_hash
from l2s_hpc.store.files import create_json, read_json, remove_stale_temporaries, write_json
from l2s_hpc.store.journal import Event
from l2s_hpc.store.layout import RunPaths, safe_name
from l2s_hpc.store.run import Checkpoint, RunInfo, check_free, read_evaluation, read_run

PRESETS: dict[str, dict[str, Any]] = {
    "report": {"temperature": 0.6, "top_p": 0.95, "max_tokens": 32_768, "samples": 16},
    "search": {"temperature": 0.0, "top_p": 1.0, "max_tokens": 10_240, "samples": 1},
}
"""Protocols by name: the one for published figures, and the greedy one of searches."""

ANSWERS_OF_A_CHUNK = 1024
"""Prompts of one `generate` call, all samples counted."""


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        name: of the evaluation.
        models: places of checkpoints, or `NAME=PLACE`; a place is a folder, or a hub id.
        benchmarks: their names.
        protocol: how answers are generated.
        limit: at most so many questions of each benchmark; None: all.
        parents: which of the models, by name, are those that transfer rates refer to.
        other_snapshots: benchmarks whose problems may be others than the published ones.
    """

    name: str
    models: tuple[str, ...]
    benchmarks: tuple[str, ...]
    protocol: ProtocolConfig
    limit: int | None = None
    parents: tuple[str, ...] = ()
    other_snapshots: tuple[str, ...] = ()


@dataclass(frozen=True)
class Opened:
    """An evaluation under way.

    Attributes:
        controller: drives it.
        wanted: the candidate ids of the models that were asked for, by name.
    """

    controller: Controller
    wanted: dict[str, str]


def protocol_of(preset: str, changes: Mapping[str, Any]) -> ProtocolConfig:
    """Return a preset's protocol with some settings changed.

    Raises:
        UserError: no such preset, or a setting is out of its bounds.
    """
    if preset not in PRESETS:
        raise UserError(f"no protocol '{preset}'", hint=did_you_mean(preset, PRESETS))
    protocol = validate(ProtocolConfig, PRESETS[preset] | dict(changes))
    if "chunk_items" not in changes:
        items = max(ANSWERS_OF_A_CHUNK // protocol.samples, 1)
        protocol = protocol.model_copy(update={"chunk_items": items})
    if protocol.samples > 1 and protocol.temperature == 0:
        raise UserError(
            f"{protocol.samples} samples at temperature 0 would be {protocol.samples} times the "
            "same answer",
            hint="give --samples 1, or a --temperature above 0",
        )
    return protocol


def open_evaluation(
    request: Request,
    site: SiteConfig,
    folder: Path,
    command: str,
    resubmit_cancelled: bool = False,
    by_user: bool = True,
) -> Opened:
    """Begin an evaluation in a run directory, or go on with it.

    A new directory becomes a run without a search. In one that is there, models and evaluations are
    added to what it has. What was given up is tried anew if a user asks.

    Args:
        request: what is asked for.
        site: the site; each model gets a task, or a worker of one.
        folder: the run directory.
        command: what the user typed, for the record.
        resubmit_cancelled: send again what somebody has cancelled until now.
        by_user: somebody gave the command, no script and no clock.

    Raises:
        UserError: something is wrong, or the name stands for another protocol; nothing is written.
        IncompleteError: it was stopped, and no user asks.
    """
    paths, site = RunPaths(folder), _one_model_each(site)
    check_executor(site)
    models = located(request.models, site)
    _check_parents(request, models)
    evaluation = _evaluation(request, site)
    _check_models(request, models, evaluation, site)
    if paths.run_json.exists():
        _check_run(read_run(folder), folder)
        _check_same(paths, evaluation)
    else:
        check_free(folder)
    added = checkpoints(request.models, models, request.parents, folder)
    _write(paths, request, site, command, evaluation, added)
    remove_stale_temporaries(folder)
    controller = _controller(paths, site)
    wanted = {model.name: model.recipe.candidate for model in added}
    said = {"by_user": by_user, "resubmit": resubmit_cancelled}
    _record_start(controller, site, command, evaluation.name, list(wanted.values()), said)
    controller.restrict(evaluation.name, list(wanted.values()))
    return Opened(controller, wanted)


def _one_model_each(site: SiteConfig) -> SiteConfig:
    """A model takes an engine to itself, so that a worker that has one is done."""
    return site.model_copy(update={"candidates_per_task": site.workers_per_task})


def _check_parents(request: Request, models: Mapping[str, Model]) -> None:
    unknown = [name for name in request.parents if name not in models]
    if unknown:
        raise UserError(
            f"--parents names '{unknown[0]}', which is no model of this command",
            hint=did_you_mean(unknown[0], models),
        )


def _evaluation(request: Request, site: SiteConfig) -> Evaluation:
    safe_name(request.name)
    if not request.benchmarks:
        raise UserError("no benchmark is named", hint="give --benchmarks NAME,NAME,…")
    preset, few_shot = request.protocol.prompt, request.protocol.few_shot
    protocol = Protocol(
        **request.protocol.model_dump(exclude={"few_shot"}),
        shots=read_shots(Path(few_shot).expanduser()) if few_shot else (),
        # What a tokenizer adds is each model's own, see its file.
        template="" if preset in OF_THE_TOKENIZER else template_hash(preset, Path()),
        stop_ids=(),
        tokenizer="",
        engine=engine_of(site),
        engine_settings=engine_settings(site),
        merge_device=site.device,
    )
    names = list(dict.fromkeys(request.benchmarks))
    benchmarks = load_all(names, site.benchmarks, request.other_snapshots)
    return Evaluation(
        name=request.name,
        protocol=protocol,
        items=all_items(benchmarks, request.protocol.seed, request.limit),
        origins={name: benchmark.origin for name, benchmark in benchmarks.items()},
    )


def _check_models(
    request: Request, models: Mapping[str, Model], evaluation: Evaluation, site: SiteConfig
) -> None:
    """Refuse what a node would refuse later: all faults at once."""
    protocol, faults, hint = evaluation.protocol, [], ""
    job = job_of(request, Path(request.name))
    longest = max(protocol.budget(item.benchmark) for item in evaluation.items)
    for name, model in models.items():
        if not model.stop_ids:
            faults.append(f"model '{name}' names no eos_token_id in its config.json")
        faults += [f"model '{name}': {f}" for f in preset_faults(protocol.prompt, model.folder)]
        context = model.config.get("max_position_embeddings")
        if protocol.engine != "scripted" and context and longest >= context:
            hint = "lower --max-tokens; models that need another length get a --name of their own"
            faults.append(
                f"model '{name}': an answer of {longest} tokens leaves no room for a prompt in "
                f"its context of {context} tokens"
            )
        try:
            alone = {"search": _of(evaluation, name)}
            check_memory(_resolved(job, site, {name: model}, alone, {}))
        except UserError as error:
            faults.append(f"model '{name}': {error.message}\n  Hint: {error.hint}")
    if faults:
        raise UserError("\n".join(faults), hint=hint)


def _of(evaluation: Evaluation, model: str) -> Evaluation:
    protocol = evaluation.protocol.model_copy(update={"tokenizer": model})
    return evaluation.model_copy(update={"protocol": protocol})


def _check_run(info: RunInfo, folder: Path) -> None:
    if info.purpose != "evaluate":
        raise UserError(
            "the run directory holds a search, whose evaluations are its own",
            hint="name another directory with --run; a candidate comes there by "
            "`l2s export RUN CANDIDATE FOLDER` and `l2s evaluate FOLDER`",
            path=folder,
        )


def _check_same(paths: RunPaths, evaluation: Evaluation) -> None:
    """Refuse a name that stands for another protocol or for other items."""
    if not paths.evaluation(evaluation.name).exists():
        return
    before = read_evaluation(paths.folder, evaluation.name)
    rows = difference(_described(before), _described(evaluation))
    if rows:
        raise UserError(
            f"the evaluation '{evaluation.name}' of this run is another one:\n"
            + side_by_side(rows),
            hint="give another --name, or the same settings to go on",
            path=paths.folder,
        )


def _described(evaluation: Evaluation) -> dict[str, Any]:
    """Return what makes an evaluation what it is, flat; items by benchmark."""
    found = flatten(evaluation.protocol.model_dump(mode="json"))
    found["template"] = found["template"] or "each model's own"
    of: dict[str, list[Item]] = {}
    for item in evaluation.items:
        of.setdefault(item.benchmark, []).append(item)
    for name, items in of.items():
        digest = short_hash([item.model_dump(mode="json") for item in items], 8)
        found[f"items.{name}"] = f"{len(items)} ({digest})"
    return found


def _write(
    paths: RunPaths,
    request: Request,
    site: SiteConfig,
    command: str,
    evaluation: Evaluation,
    added: Sequence[Checkpoint],
) -> None:
    """Write run.json, which makes the folder a run, and then what is added; each may be there."""
    job = job_of(request, paths.folder)
    info = RunInfo(
        id=f"{job.name}-{secrets.token_hex(4)}",
        name=job.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        versions=versions(),
        git=git_state(),
        config=job.model_dump(mode="json"),
        site=site.model_dump(mode="json"),
        models={},
        identities={},
        frozen={},
        liveness="no search",
        references={},
        science={"purpose": "evaluate"},
        purpose="evaluate",
    )
    create_json(paths.run_json, info.model_dump(mode="json"))
    for model in added:
        path = paths.models / f"{model.name}.json"
        if not path.exists() or Checkpoint.model_validate(read_json(path)) != model:
            write_json(path, model.model_dump(mode="json"))
    described = evaluation.model_dump(mode="json")
    if not create_json(paths.evaluation(evaluation.name), described):
        _check_same(paths, evaluation)  # another command may have been faster


def job_of(request: Request, folder: Path) -> SearchConfig:
    """Return the job of a run directory, named by it; there is nothing in it to search."""
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", folder.resolve().name).strip("-.")
    return validate(
        SearchConfig,
        {
            "name": name or "evaluate",
            "description": "Evaluations of existing checkpoints; no search",
            "parents": {},
            "merge": {"method": "linear"},
            "genes": [{"parameter": "weight", "low": 0, "high": 1}],
            "constraints": [],
            "benchmarks": list(dict.fromkeys(request.benchmarks)),
            "protocol": request.protocol.model_dump(),
        },
    )


def _controller(paths: RunPaths, site: SiteConfig) -> Controller:
    info = read_run(paths.folder)
    files = sorted(paths.evaluation("x").parent.glob("*.json"))
    evaluations = [Evaluation.model_validate(read_json(path)) for path in files]
    config = validate(SearchConfig, info.config)
    resolved = _resolved(config, site, {}, {e.name: e for e in evaluations}, info.references)
    return Controller(paths, info, resolved, make_executor(paths, site))


def _resolved(
    config: SearchConfig,
    site: SiteConfig,
    models: dict[str, Model],
    evaluations: dict[str, Evaluation],
    recipes: dict[str, Recipe],
) -> Resolved:
    return Resolved(
        config=config,
        site=site,
        models=models,
        space=Space(space(config).genes, {}),
        liveness="no search",
        evaluations=evaluations,
        references=recipes,
    )


def _record_start(
    controller: Controller,
    site: SiteConfig,
    command: str,
    name: str,
    wanted: Sequence[str],
    said: Event,
) -> None:
    """Journal that a controller starts, and what it evaluates, unless all of it is there."""
    while True:
        state = controller.state
        if state.stopped and not said["by_user"]:
            raise IncompleteError("stopped by `l2s stop`", hint="`l2s evaluate` by hand goes on")
        if state.completed and all((name, c) in state.accepted for c in wanted):
            return
        again = [c for c in wanted if (name, c) in state.penalised and said["by_user"]]
        stage = {
            "event": "stage",
            "evaluation": name,
            "candidates": list(dict.fromkeys([*state.stages.get(name, ()), *wanted])),
            **({"again": again} if again else {}),
        }
        started = {
            "event": "started",
            "command": command,
            "site": site.model_dump(mode="json"),
            "operational": {},
            **said,
        }
        if controller.record([started, stage]):
            return
        controller.refresh()
