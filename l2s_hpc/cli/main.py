"""Entry point of `l2s`. What a verb needs is imported when it runs: `--help` is instant."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
from rich.text import Text

from l2s_hpc.cli import (
    analyse,
    cluster,
    compact,
    evaluate,
    front,
    grade,
    imports,
    jobs,
    outputs,
    plan,
    report,
    search,
)
from l2s_hpc.cli.output import stderr, stdout
from l2s_hpc.errors import NO_ROOM, L2SError

_EXTRAS = {
    "pymoo": "controller",
    "submitit": "controller",
    "datasets": "controller",
    "huggingface_hub": "controller",
    "torch": "node",
    "transformers": "node",
    "mergekit": "node",
    "safetensors": "node",
    "sympy": "node",
    "mpmath": "node",
}
"""Which extra of the package brings what a verb may miss on this machine."""

app = typer.Typer(
    name="l2s",
    help="Merge slow- and fast-thinking language models by evolutionary search on a Slurm cluster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
jobs.register(app)
cluster.register(app)
plan.register(app)
search.register(app)
evaluate.register(app)
grade.register(app)
analyse.register(app)
front.register(app)
compact.register(app)
report.register(app)
imports.register(app)
outputs.register(app)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        stdout.print(version("l2s-hpc"))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command; an error that we know is printed without a traceback."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        app()
    except L2SError as error:
        stderr.print(Text(f"l2s: {error}", style="red"))
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        # Nothing is half written when the disk is full: what was recorded before stands.
        stderr.print(Text(f"l2s: {error}", style="red"))
        stderr.print(Text("  Hint: make room, and give the same command again", style="red"))
        sys.exit(3)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        stderr.print(Text(f"l2s: this verb needs {error.name}", style="red"))
        stderr.print(Text(f"  Hint: pip install 'l2s-hpc[{extra}]'", style="red"))
        sys.exit(2)


if __name__ == "__main__":
    main()
