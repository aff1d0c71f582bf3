"""The command, run in the test's own process: much faster than a new one."""

from __future__ import annotations

from typer.testing import CliRunner

from l2s_hpc.cli.main import app
from l2s_hpc.errors import L2SError


def l2s(*arguments: object) -> tuple[int, str, str]:
    """Return the exit code, what was printed, and what was said on standard error."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(done.exception, L2SError):  # as `main` does
        return done.exception.exit_code, done.stdout, str(done.exception)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr
