"""`l2s evaluate`: scores of existing checkpoints."""

from __future__ import annotations

import shlex
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from l2s_hpc.cli.cluster import JSON, SETTINGS, SITE
from l2s_hpc.cli.output import print_json, print_table, ranged, stderr, stdout

if TYPE_CHECKING:
    from l2s_hpc.cluster.detach import OwnJob
    from l2s_hpc.config import SiteConfig
    from l2s_hpc.config.job import ProtocolConfig
    from l2s_hpc.controller.evaluate import Opened, Request


_MODELS = Annotated[
    list[str],
    typer.Argument(help="Checkpoints: folders or hub ids, each as PLACE or NAME=PLACE."),
]
_BENCHMARKS = Annotated[
    str, typer.Option("--benchmarks", "-b", help="Names of benchmarks, with commas between.")
]
_PROTOCOL = Annotated[
    str,
    typer.Option(
        "--protocol",
        help="report: 0.6 / 0.95 / 32,768 tokens / 16 samples; search: greedy / 10,240 tokens.",
    ),
]
_SAMPLES = Annotated[int | None, typer.Option("--samples", help="Answers an item.")]
_TEMPERATURE = Annotated[
    float | None, typer.Option("--temperature", help="Of sampling; 0 is greedy.")
]
_TOP_P = Annotated[float | None, typer.Option("--top-p", help="Nucleus sampling.")]
_MAX_TOKENS = Annotated[
    int | None, typer.Option("--max-tokens", help="Longest answer in generated tokens.")
]
_PROMPT = Annotated[
    str | None,
    typer.Option("--prompt", help="plain (as published), chat (the model's own template), …"),
]
_SEED = Annotated[
    int | None, typer.Option("--seed", help="Seed of the answers and of the order of items.")
]
_LIMIT = Annotated[
    int | None, typer.Option("--limit", min=1, help="At most so many questions of each benchmark.")
]
_SNAPSHOTS = Annotated[
    str,
    typer.Option("--other-snapshots", help="Benchmarks that may differ from the published ones."),
]
_PARENTS = Annotated[
    str, typer.Option("--parents", help="Names of the models that `l2s ntr` compares with.")
]
_DETACH = Annotated[
    bool, typer.Option("--detach", help="Submit the controller itself, as a small Slurm job.")
]
_RESUBMIT = Annotated[
    bool, typer.Option("--resubmit-cancelled", help="Send again what somebody has cancelled.")
]


def register(app: typer.Typer) -> None:
    """Add this module's verb."""
    app.command()(evaluate)


def evaluate(
    models: _MODELS,
    benchmarks: _BENCHMARKS,
    folder: Annotated[Path, typer.Option("--run", help="The run directory, new or one of these.")],
    name: Annotated[str, typer.Option("--name", help="The evaluation's name in it.")] = "evaluate",
    protocol: _PROTOCOL = "report",
    samples: _SAMPLES = None,
    temperature: _TEMPERATURE = None,
    top_p: _TOP_P = None,
    max_tokens: _MAX_TOKENS = None,
    prompt: _PROMPT = None,
    seed: _SEED = None,
    limit: _LIMIT = None,
    other_snapshots: _SNAPSHOTS = "",
    parents: _PARENTS = "",
    site: SITE = "local",
    detach: _DETACH = False,
    resubmit_cancelled: _RESUBMIT = False,
    settings: SETTINGS = None,
    as_json: JSON = False,
) -> None:
    """Evaluate checkpoints on whole benchmarks, or go on with it: the same command resumes."""
    from l2s_hpc.controller.detach import enter_job
    from l2s_hpc.controller.evaluate import Request, protocol_of
    from l2s_hpc.controller.loop import ended_by_sigterm
    from l2s_hpc.errors import IncompleteError

    own = enter_job()
    chosen, changes = _settings(site, settings or [])
    options: dict[str, Any] = {
        "samples": samples,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
    }
    options |= {"max_tokens": max_tokens, "prompt": prompt}
    changes |= {name: value for name, value in options.items() if value is not None}
    request = Request(
        name=name,
        models=tuple(models),
        benchmarks=tuple(_words(benchmarks)),
        protocol=protocol_of(protocol, changes),
        limit=limit,
        parents=tuple(_words(parents)),
        other_snapshots=tuple(_words(other_snapshots)),
    )
    asked = _Asked(request, chosen, folder, resubmit_cancelled, as_json)
    try:
        with ended_by_sigterm():
            if detach:
                _detach(asked)
            else:
                _evaluate(asked, own)
    except KeyboardInterrupt as error:
        by = f" by {error}" if error.args else ""
        raise IncompleteError(f"interrupted{by}", hint="the same command goes on") from None


@dataclass(frozen=True)
class _Asked:
    """What the user asked for."""

    request: Request
    site: SiteConfig
    folder: Path
    resubmit_cancelled: bool
    as_json: bool

    @property
    def console(self) -> Console:
        return stderr if self.as_json else stdout

    def begin(self, by_user: bool = True) -> Opened:
        from l2s_hpc.controller.evaluate import open_evaluation

        command = shlex.join(["l2s", *sys.argv[1:]])
        return open_evaluation(
            self.request, self.site, self.folder, command, self.resubmit_cancelled, by_user
        )


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _settings(site: str, settings: Sequence[str]) -> tuple[SiteConfig, dict[str, Any]]:
    """Return the site, and what `--set protocol.key=value` says; a value is as in a job file."""
    from l2s_hpc.config import load_site
    from l2s_hpc.controller.resolve import find_site
    from l2s_hpc.errors import UserError

    of_site = [s.removeprefix("site.") for s in settings if s.startswith("site.")]
    protocol: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.removeprefix("protocol.").partition("=")
        if setting.startswith("protocol.") and equals:
            try:
                protocol[key] = tomllib.loads(f"v = {text}")["v"]
            except tomllib.TOMLDecodeError:
                protocol[key] = text
        elif not setting.startswith("site."):
            raise UserError(
                f"--set {setting}: there is no job here, but a site and a protocol",
                hint="write --set site.key=value or --set protocol.key=value",
            )
    return load_site(find_site(site), of_site), protocol


def _evaluate(asked: _Asked, own: OwnJob | None) -> None:
    """Go on until all models have their scores, or the next one of us goes on."""
    from l2s_hpc.cli.progress import Progress
    from l2s_hpc.controller.detach import chain_of, open_told
    from l2s_hpc.controller.evaluate import job_of
    from l2s_hpc.controller.loop import drive
    from l2s_hpc.controller.notify import Notifier
    from l2s_hpc.store.layout import RunPaths

    paths = RunPaths(asked.folder)
    # Neither a link of our own chain is the user's word, nor a job that Slurm started again.
    again = own is not None and own.restarts > 0
    link = paths.run_json.exists() and chain_of(asked.folder, asked.site, own, lambda text: None)
    by_user = not again and not link
    notifier = Notifier(asked.site.controller.notify, paths, lambda text: None)
    opened: list[Opened] = []

    def open_it() -> Any:
        opened.append(asked.begin(by_user))
        return opened[0].controller

    controller = open_told(open_it, notifier, own)
    with Progress(job_of(asked.request, asked.folder), asked.console) as progress:
        notifier.say = progress.say
        if not controller.finished:
            ending = drive(controller, asked.site, progress.show, notifier, own)
            if ending == "relayed":
                return
    incomplete = _finish(asked, opened[0].wanted)
    notifier.tell("completed", f"evaluated: {asked.folder}", controller.state)
    if incomplete:
        raise typer.Exit(3)


def _detach(asked: _Asked) -> None:
    """Submit the controller, unless it is there already."""
    from l2s_hpc.controller.detach import check_detach, standing_controller, submit_controller
    from l2s_hpc.controller.evaluate import job_of
    from l2s_hpc.store.layout import RunPaths

    paths = RunPaths(asked.folder)
    # What somebody cancelled is sent again once, and not by every link of the chain.
    here = ("--detach", "--json", "--resubmit-cancelled")
    words = [word for word in sys.argv[1:] if word not in here]
    check_detach(job_of(asked.request, asked.folder), asked.site, asked.folder, words)
    if there := standing_controller(asked.folder, asked.site):
        _check_standing(paths.controller_script, words, there.id)
        job, said = there.id, f"the controller is there already: job {there.id}"
    else:
        job = submit_controller(asked.begin().controller, asked.site, words)
        said = f"the controller is job {job}; follow it: l2s status {asked.folder} --watch"
    asked.console.print(said, markup=False)
    if asked.as_json:
        print_json({"run": str(asked.folder), "job": job, "log": str(paths.controller_log)})


def _check_standing(script: Path, words: Sequence[str], job: str) -> None:
    """A run has one controller at a time, which does what it was submitted for."""
    from l2s_hpc.errors import IncompleteError

    if not script.exists() or shlex.join(words) not in script.read_text(encoding="utf-8"):
        raise IncompleteError(
            f"job {job} is a controller of this run, with another command",
            hint="wait for its end, or give another --run; without --detach both can go on",
            path=script,
        )


def _finish(asked: _Asked, wanted: Mapping[str, str]) -> bool:
    """Print the scores; return whether some model has none."""
    from l2s_hpc import open_run
    from l2s_hpc.analysis.candidates import telling

    run, name = open_run(asked.folder), asked.request.name
    rows = run.samples(name, wanted.values())
    known = {row["candidate"] for row in rows}
    missing = {
        model: run.state.penalised.get((name, candidate), "not evaluated yet")
        for model, candidate in wanted.items()
        if candidate not in known
    }
    if asked.as_json:
        print_json(
            {"run": str(asked.folder), "evaluation": name, "scores": rows, "incomplete": missing}
        )
        return bool(missing)
    if rows:
        stdout.print(f"{name}: {_described(asked.request.protocol)}", markup=False)
        print_table(telling(_shown(rows)))
    for model, reason in missing.items():
        stdout.print(f"{model} has no scores: {reason}; the same command tries again", markup=False)
    return bool(missing)


def _described(protocol: ProtocolConfig) -> str:
    """Return a protocol in a line: with the wrong prompt, the best model knows nothing."""
    greedy = protocol.temperature == 0
    sampled = f"temperature {protocol.temperature:g}, top-p {protocol.top_p:g}"
    number = "one answer" if protocol.samples == 1 else f"{protocol.samples} samples"
    return (
        f"prompt {protocol.prompt}, {'greedy' if greedy else sampled}, at most "
        f"{protocol.max_tokens:,} tokens, {number} an item; 95 % intervals over items"
    )


def _shown(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rows with the columns that fit a terminal; pass@1 is the mean.

    All and the mean of all benchmarks are left out where there is only one.
    """
    names = {row["benchmark"] for row in rows} - {"all", "macro"}
    return [
        {
            "model": row["label"].removeprefix("parent."),
            "benchmark": row["benchmark"],
            "n": row["items"],
            "n_gradable": row["gradable"],
            f"mean@{row['samples']}": _share(row["mean"], row["mean_low"], row["mean_high"]),
            "accuracy_gradable": ranged(row, "mean_gradable"),
            **{
                f"pass@{entry['k']}": _share(entry["value"], entry["low"], entry["high"])
                for entry in row["pass"]
                if entry["k"] > 1
            },
            "tokens": ranged(row, "tokens"),
            "tokens_right": ranged(row, "tokens_right"),
            "cut": f"{row['truncation']:.1%}",
            "undecided": row["undecided"],
        }
        for row in rows
        if len(names) > 1 or row["benchmark"] in names
    ]


def _share(value: float, low: float, high: float) -> str:
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"
