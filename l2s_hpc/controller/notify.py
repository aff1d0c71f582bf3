"""Tells the user that a search pauses or is complete, through a command of the user's own."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable
from typing import Literal

from l2s_hpc.errors import DamageError
from l2s_hpc.store.files import read_json, write_json
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.store.state import RunState

News = Literal["paused", "completed"]
_SECONDS = 60.0
_LONGEST_MESSAGE = 4000


class Notifier:
    """Runs `site.controller.notify`. Whatever becomes of the command, it harms nothing.

    The same news is told once: of a search that pauses again at the same place, with the same
    reason, nothing is heard.

    Attributes:
        repeated: whether the last news were those that were told before.
    """

    def __init__(self, command: str, paths: RunPaths, say: Callable[[str], None]) -> None:
        self._command = command
        self._paths = paths
        self.say = say
        self.repeated = False

    def tell(self, event: News, message: str, state: RunState | None = None) -> None:
        """Tell the user once; what goes wrong is said.

        Args:
            event: what happened.
            message: a sentence on it.
            state: of the run, as far as it is known.
        """
        news = {"event": event, "message": message, "attempts": _attempts(state)}
        try:
            self.repeated = self._paths.news.exists() and read_json(self._paths.news) == news
            if self._paths.run_json.exists() and not self.repeated:
                write_json(self._paths.news, news)
        except (OSError, DamageError):
            self.repeated = False  # better told twice than never
        if self.repeated or not self._command:
            return
        fault = run_command(self._command, self._paths, event, message)
        self.say(f"site.controller.notify {fault or 'has told you'} ({event})")


def run_command(
    command: str, paths: RunPaths, event: News, message: str, seconds: float = _SECONDS
) -> str:
    """Give a command to the user's shell; return what went wrong, or nothing.

    The command is the user's own shell, as it stands in the site file. What is told stands in its
    environment only, and never becomes part of the command.
    """
    told = {
        "L2S_RUN": str(paths.folder.resolve()),
        "L2S_EVENT": event,
        "L2S_MESSAGE": _plain(message),
    }
    try:
        with tempfile.TemporaryFile() as output:
            # A session of its own: what hangs is ended with all its children.
            process = subprocess.Popen(
                ["/bin/sh", "-c", command],
                env=os.environ | told,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return f"took more than {seconds:g} s and was ended"
            output.seek(0)
            last = _plain(output.read().decode("utf-8", "replace").strip())[-500:]
    except OSError as error:
        return f"could not be run: {error}"
    return f"failed with exit code {code}: {last}" if code else ""


def _attempts(state: RunState | None) -> int:
    """Return how many attempts were made: news after another one are new."""
    every = state.attempts.values() if state else ()
    return sum(attempt.outcome != "abandoned" for tries in every for attempt in tries)


def _plain(text: str) -> str:
    """Return text without control characters: a reason may hold what a model wrote."""
    kept = "".join(c if c.isprintable() or c == "\n" else " " for c in text)
    return kept[:_LONGEST_MESSAGE]
