"""The last part of the report: what was run, with which models and versions."""

from __future__ import annotations

from typing import Any

from l2s_hpc.analysis.page import Child, Html, el, join, table
from l2s_hpc.analysis.run import Run
from l2s_hpc.records import Receipt


def settings(run: Run) -> Html:
    """Return job, models, genes, versions, and behind a fold every setting that decides results."""
    receipts = run.receipts()
    info = run.info
    models: list[list[Child]] = [
        [name, el("code", str(source.get("path", ""))), str(source.get("revision") or "–"),
         el("code", info.identities.get(name, ""))]
        for name, source in info.models.items()
    ]  # fmt: skip
    science: list[list[Child]] = [
        [el("code", key), el("code", str(value), class_="wrap")]
        for key, value in info.science.items()
    ]
    return join(
        [
            el("h2", "Settings"),
            table([], _summary(run, receipts), {0, 1}),
            el("h3", "Models"),
            table(["name", "path", "revision", "identity"], models, range(4)),
            el("h3", "Versions"),
            table(["package", "version"], _versions(run, receipts), {0, 1}),
            el("details", el("summary", "Every setting that decides results"),
               table(["setting", "value"], science, {0, 1})),
        ]
    )  # fmt: skip


def _summary(run: Run, receipts: list[Receipt]) -> list[list[Child]]:
    known = {"search": _searched, "import": _imported, "evaluate": _evaluated}
    pairs = known[run.info.purpose](run, receipts)
    return [[name, el("span", text, class_="wrap")] for name, text in pairs.items()]


def _imported(run: Run, receipts: list[Receipt]) -> dict[str, str]:
    """Return what is known of foreign results."""
    info = run.info
    faults = info.imported.faults if info.imported else {}
    tokenizer = info.imported.tokenizer if info.imported else ""
    return {
        "benchmarks": ", ".join(run.config["benchmarks"]),
        "grader": _distinct(receipt.grader for receipt in receipts),
        "not imported": "; ".join(f"{file}: {why}" for file, why in faults.items()) or "–",
        "tokens counted by": f"a tokenizer.json of sha256 {tokenizer}" if tokenizer else "–",
        "imported": info.created,
        "command": info.command,
    }


def _evaluated(run: Run, receipts: list[Receipt]) -> dict[str, str]:
    """Return how existing checkpoints were evaluated; the protocols stand beside the scores."""
    info = run.info
    return {
        "engine": str(info.site.get("engine", "")),
        "devices": _distinct(receipt.device for receipt in receipts),
        "grader": _distinct(receipt.grader for receipt in receipts),
        "started": info.created,
        "command": info.command,
        "git": _git(info.git),
    }


def _searched(run: Run, receipts: list[Receipt]) -> dict[str, str]:
    config, info = run.config, run.info
    search, protocol = config["search"], config["protocol"]
    frozen = f", {len(info.frozen)} of them fixed" if info.frozen else ""
    return {
        "method": config["merge"]["method"],
        "genes": f"{len(run.genes)}{frozen} ({info.liveness})",
        "objectives": ", ".join(config["objectives"]),
        "constraints": ", ".join(config["constraints"]) or "none",
        "algorithm": f"{search['algorithm']}, {run.state.told} generations told, "
        f"population {search['population']}, seed {config['seed']}",
        "benchmarks": ", ".join(config["benchmarks"]),
        "protocol": f"prompt {protocol['prompt']}, at most {protocol['max_tokens']} tokens, "
        f"temperature {protocol['temperature']:g}, {protocol['samples']} sample(s) an item",
        "engine": str(info.science.get("protocol.engine") or info.site.get("engine", "")),
        "devices": _distinct(receipt.device for receipt in receipts),
        "grader": _distinct(receipt.grader for receipt in receipts),
        "started": info.created,
        "command": info.command,
        "git": _git(info.git),
    }


def _versions(run: Run, receipts: list[Receipt]) -> list[list[Child]]:
    """Return the controller's versions and the nodes'; several of one package are all named."""
    found = {name: {version} for name, version in run.info.versions.items()}
    for receipt in receipts:
        for name, version in receipt.versions.items():
            found.setdefault(name, set()).add(version)
    return [[name, ", ".join(sorted(versions))] for name, versions in sorted(found.items())]


def _distinct(values: Any) -> str:
    return ", ".join(sorted({str(value) for value in values if value})) or "–"


def _git(state: dict[str, str] | None) -> str:
    if not state:
        return "not in a working tree"
    changed = " with changes" if state.get("dirty") == "yes" else ""
    return f"{state.get('commit', '')}{changed}"
