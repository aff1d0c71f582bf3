"""`l2s doctor --node`: what this machine has, as a node, and whether two candidates go through it.

Both are asked of the site's interpreter, after its setup lines. The candidates are merges of the
toy family; the worker that evaluates them is the one of every task.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from l2s_hpc.cluster.jobs import python_command
from l2s_hpc.config import SiteConfig, load_job
from l2s_hpc.controller.actions import Submit
from l2s_hpc.controller.resolve import Resolved, engine_of, find_job, model_sources, resolve
from l2s_hpc.controller.submission import make_tasks
from l2s_hpc.doctor.check import Check, failure, ok, warning
from l2s_hpc.doctor.verdict import INSTALL, node_verdicts
from l2s_hpc.errors import DamageError, L2SError
from l2s_hpc.evaluation.grading import GRADER
from l2s_hpc.evaluation.grading.pool import START_SECONDS
from l2s_hpc.recipes.recipe import make_recipe
from l2s_hpc.records import Receipt, Recipe
from l2s_hpc.store.files import read_json, write_json
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.store.run import RunInfo
from l2s_hpc.store.scores import verify_table

_BATCH = "self-test-000001"
_PAIR, _EQUAL = '[1, "1 + x", "x + 1"]\n', '[1, true, "ok"'
_ITEMS = 4
"""Items of each of the toy benchmarks."""

_LEAST_RIGHT = 0.5
"""Both merges solve more than nine of ten; rubbish solves next to none."""

_MORE_TIME = "give it more time with --wait SECONDS, or mend what its log says"
_LOOK_SECONDS = 600.0


def node_checks(
    site: SiteConfig, wait: float, say: Callable[[str], None] = lambda line: None
) -> Iterator[Check]:
    """Yield the checks of this machine as a node of a site, then those of the self-test.

    Args:
        site: whose interpreter, engine, device and threads are used; Slurm is not asked.
        wait: seconds that the self-test may take.
        say: told what is waited for.
    """
    say(f"looking at this node with {' '.join(python_command(site))}")
    try:
        node = _look(site)
    except L2SError as error:
        yield failure("node", error.message, error.hint)
        return
    yield ok("node", f"{node['host']}, device {site.device}, engine {engine_of(site)}")
    failed = False
    for check in node_verdicts(site, node):
        failed = failed or check.result == "failure"
        yield check
    if failed:
        yield warning("self-test", "not run: see the failures above", "mend them first")
        return
    yield grader_test(site)
    say(f"two candidates of the toy family go through the {engine_of(site)} engine")
    with tempfile.TemporaryDirectory(prefix="l2s-self-test-") as folder:
        try:
            yield from self_test(site, Path(folder), wait)
        except L2SError as error:
            yield failure("self-test", error.message, error.hint or "see the checks above")


def grader_test(site: SiteConfig) -> Check:
    """Let the grading process compare two formulas; the toy family answers with numbers alone."""
    done = _run(site, ["-uPm", "l2s_hpc.evaluation.grading.child"], START_SECONDS, _PAIR)
    # Setup lines and containers may say something of their own first.
    lines = done.stdout.splitlines()
    if '""' in lines and lines[-1].startswith(_EQUAL):
        return ok("self-test grader", f"{GRADER} finds x + 1 equal to 1 + x")
    said = _tail(done.stderr + done.stdout) or "it says nothing"
    return failure("self-test grader", f"{GRADER} does not work: {said}", INSTALL)


def self_test(site: SiteConfig, folder: Path, wait: float) -> Iterator[Check]:
    """Let a worker evaluate two candidates in one engine; yield a check for each.

    Args:
        site: as above.
        folder: an empty folder, for a run of nothing but this task.
        wait: seconds that it may take.

    Raises:
        L2SError: the shipped toy family does not resolve on this site.
    """
    alone = site.model_copy(update={"candidates_per_task": 2, "workers_per_task": 1})
    limits = [f"splits.search.max_items={_ITEMS}", "references.sweep=0"]
    resolved = resolve(load_job(find_job("toy"), limits), alone, frozen={})
    paths, recipes = RunPaths(folder), _recipes(resolved)
    action = Submit("search", tuple((r.candidate, 0, 1) for r in recipes.values()))
    by_id = {recipe.candidate: recipe for recipe in recipes.values()}
    (task,) = make_tasks(action, _BATCH, alone, by_id.__getitem__)
    evaluation = resolved.evaluations["search"]
    write_json(paths.run_json, _run_info(resolved).model_dump(mode="json"))
    write_json(paths.evaluation("search"), evaluation.model_dump(mode="json"))
    write_json(paths.task(task.key), task.model_dump(mode="json"))
    said = _worker(alone, folder, task.key, wait)
    for label, recipe in recipes.items():
        attempt = paths.attempt("search", 0, recipe.candidate, 1)
        try:
            receipt = Receipt.model_validate(read_json(attempt.receipt))
            table = None if receipt.failure else verify_table(attempt.scores, receipt)
        except (OSError, DamageError) as error:
            lost = f"no receipt: {error}" if isinstance(error, OSError) else str(error)
            yield failure(f"self-test {label}", _with_log(lost, said), _MORE_TIME)
            continue
        rows = table.to_pylist() if table is not None else []
        yield judge_candidate(label, receipt, rows, len(evaluation.items), said)


def judge_candidate(
    label: str, receipt: Receipt, rows: Sequence[Mapping[str, Any]], items: int, said: str = ""
) -> Check:
    """Judge one candidate of the self-test by its receipt and the rows of its score table.

    Args:
        label: which of the two it is.
        receipt: what the worker left.
        rows: of its score table.
        items: how many rows there must be.
        said: the end of the worker's log, for a failure.
    """
    name = f"self-test {label}"
    if receipt.failure is not None:
        found = f"{receipt.failure.kind}: {receipt.failure.message}"
        return failure(name, _with_log(found, said), "mend what it says; see also `vllm` above")
    tokens = [row["n_output_tokens"] for row in rows]
    right = sum(row["correct"] for row in rows)
    seconds = ", ".join(f"{phase} {value:.2f}" for phase, value in receipt.seconds.items())
    shown = (
        f"{len(rows)} answers, {sum(tokens)} tokens, {right} right, {receipt.lasted:.0f} s "
        f"({seconds}) on {receipt.device}"
    )
    if len(rows) != items or not tokens or min(tokens) < 1:
        return failure(
            name,
            f"{shown}; {items} answers of one token or more were expected",
            "the engine loses answers: report it, with the versions above",
        )
    if right < _LEAST_RIGHT * items:
        return failure(
            name,
            f"{shown}: nearly all should be",
            "this engine computes something else than the model: try other versions, or "
            "site.engine = 'transformers'",
        )
    return ok(name, shown)


def _recipes(resolved: Resolved) -> dict[str, Recipe]:
    """Return the plain average, and a merge of the searched kind that leans to the slow parent."""
    slow = next(iter(resolved.config.parents))
    values = [0.75 if gene.model == slow else 0.25 for gene in resolved.space.genes]
    genome = resolved.space.genome(values)
    searched = make_recipe(resolved.config, resolved.space, genome, resolved.identities)
    return {"average": resolved.references["average"], resolved.config.merge.method: searched}


def _run_info(resolved: Resolved) -> RunInfo:
    """Return as much of `run.json` as a worker reads."""
    return RunInfo(
        id="self-test",
        name="self-test",
        created="",
        command="l2s doctor --node",
        versions={},
        git=None,
        config={},
        site={},
        models={n: s.model_dump() for n, s in model_sources(resolved.config).items()},
        identities=resolved.identities,
        frozen={},
        liveness="",
        references={},
        science={},
    )


def _look(site: SiteConfig) -> dict[str, Any]:
    """Return what `l2s_hpc.task.look` finds.

    Raises:
        L2SError: the interpreter or the setup lines do not work here.
    """
    # -P as for a task: a file in the current folder must not pass for a module.
    words = ["-uPm", "l2s_hpc.task.look", site.device, site.scratch]
    done = _run(site, words, _LOOK_SECONDS)
    try:
        # Setup lines and containers may say something of their own first.
        found: dict[str, Any] = json.loads((done.stdout.strip().splitlines() or [""])[-1])
    except ValueError:
        said = _tail(done.stdout + done.stderr) or "no output"
        raise L2SError(f"{' '.join(python_command(site))}: {said}", hint=INSTALL) from None
    return found


def _worker(site: SiteConfig, folder: Path, key: str, wait: float) -> str:
    """Run the task and return the end of what its worker said."""
    done = _run(site, ["-uPm", "l2s_hpc.task.worker", str(folder), key], wait)
    return _tail(done.stdout + done.stderr)


def _run(
    site: SiteConfig, words: Sequence[str], wait: float, given: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the site's Python after its setup lines, as a task does; too late is a failure."""
    lines = [*site.setup, f"export OMP_NUM_THREADS={site.threads}", 'exec "$@"']
    command = ["bash", "-c", "\n".join(lines), "bash", *python_command(site), *words]
    try:
        return subprocess.run(
            command, input=given, capture_output=True, text=True, check=False, timeout=wait
        )
    except subprocess.TimeoutExpired as error:
        said = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else ""
        return subprocess.CompletedProcess(command, 124, said, f"not done after {wait:g} s")


def _tail(text: str) -> str:
    return " | ".join(text.strip().splitlines()[-3:])[-600:]


def _with_log(found: str, said: str) -> str:
    return f"{found}; the end of the log: {said}" if said else found
