"""The node's entry: `python -m l2s_hpc.task.worker RUN TASK`.

Does the candidates of a task one after another in one warm engine. A task that wants several
workers gets them from here, one for each GPU: each claims the next candidate that nobody has.

With `-` as TASK it reads task keys from standard input, a line each, and says `done KEY` after
each: so a local worker pays for its imports once. Truth is in the receipts; nothing that it prints
is believed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Literal

from l2s_hpc.config import ModelSource
from l2s_hpc.errors import NO_ROOM_EXIT, L2SError
from l2s_hpc.evaluation.grading import Grader
from l2s_hpc.recipes.models import Model, locate
from l2s_hpc.records import Evaluation, Failure, Protocol, Task
from l2s_hpc.store.files import read_json
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.store.run import read_run
from l2s_hpc.task.engines import Engine, EngineError, MergeError, open_engine
from l2s_hpc.task.evaluate import Attempt, Fenced
from l2s_hpc.task.node import NoRoom, let_go_of_logs, say
from l2s_hpc.task.team import run_team


class Interrupted(BaseException):
    """SIGTERM came: preemption, a user's stop, or a dead controller; or USR2: the time limit."""

    def __init__(self, number: int) -> None:
        name = signal.Signals(number).name
        near = number == signal.SIGUSR2
        self.kind: Literal["interrupted", "timeout"] = "timeout" if near else "interrupted"
        super().__init__(f"{name} received" + (", the time limit is near" if near else ""))


class Worker:
    """Keeps what is dear between candidates: the parents, the engine, the grader."""

    def __init__(self, run: Path) -> None:
        self.paths = RunPaths(run)
        self.info = read_run(run)
        self.grader = Grader()
        self.engine: Engine | None = None
        self._engine_key: Protocol | None = None
        self._evaluations: dict[str, Evaluation] = {}
        self._places: dict[str, str] = {}

    def do(self, key: str) -> None:
        """Do one task, and leave a receipt of every candidate that gets its turn.

        What is done already, or is done by another worker of the same task, is left out. A signal,
        a fence or a full disk ends the task.
        """
        task = Task.model_validate(read_json(self.paths.task(key)))
        self._places = task.models
        for candidate in task.candidates:
            evaluation = self._evaluation(candidate.evaluation)
            attempt = Attempt(self.info.id, self.paths, candidate, evaluation, task.disk_seconds)
            if attempt.claim():
                self._attempt(attempt)

    def close(self) -> None:
        self.grader.close()
        if self.engine is not None:
            self.engine.close()
            self.engine = self._engine_key = None

    def _attempt(self, attempt: Attempt) -> None:
        try:
            with attempt.clock.phase("start"):
                engine = self._open(attempt.evaluation.protocol)
            attempt.complete(engine, self.grader)
        except Interrupted as error:
            # A signal that comes right after the receipt must not turn success into failure.
            if not attempt.paths.receipt.exists():
                attempt.fail(Failure(kind=error.kind, message=str(error)), self.engine)
            raise
        except Exception as error:  # the outermost frame: written down, and the next one goes on
            attempt.fail(_failure(error), self.engine)
            if not isinstance(error, L2SError) or isinstance(error, EngineError):
                self._discard_engine()

    def _open(self, protocol: Protocol) -> Engine:
        if self.engine is None or self._engine_key != protocol:
            self._discard_engine()
            self.engine = open_engine(protocol, self._models())
            self._engine_key = protocol
        return self.engine

    def _discard_engine(self) -> None:
        engine, self.engine, self._engine_key = self.engine, None, None
        if engine is not None:
            engine.close()

    def _models(self) -> dict[str, Model]:
        """Return the input models as this node sees them, checked to be the run's."""
        models = {
            name: locate(name, ModelSource(**source), self._places)
            for name, source in self.info.models.items()
        }
        for name, model in models.items():
            if model.identity != self.info.identities[name]:
                raise EngineError(
                    f"the weights of '{name}' on this node are not those of the run",
                    hint="is its cache older, or was the model changed?",
                    path=model.folder,
                )
        return models

    def _evaluation(self, name: str) -> Evaluation:
        if name not in self._evaluations:
            value = read_json(self.paths.evaluation(name))
            self._evaluations[name] = Evaluation.model_validate(value)
        return self._evaluations[name]


def main(arguments: list[str]) -> int:
    """Run the worker; exit code 0 also after failed candidates, whose receipts say so.

    Exit code 75 says that there was no room for a receipt, 143 that a signal ended the task.
    """
    run, key = arguments[:2]
    alone = key == "-" or len(arguments) > 2
    if not alone and (workers := _workers(Path(run), key)) > 1:
        return run_team([sys.executable, "-uPm", "l2s_hpc.task.worker", run, key], workers)
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, _interrupt)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if key == "-":
        _end_with_parent()
    return _work(Path(run), _keys() if key == "-" else [key])


def _work(run: Path, keys: Iterable[str]) -> int:
    worker = Worker(run)
    try:
        for task in keys:
            worker.do(task)
            _done(task)
    except Interrupted as error:
        say(f"interrupted: {error}")
        return 143
    except Fenced as error:
        say(str(error))
    except NoRoom as error:
        say(f"no room for a receipt: {error}")
        return NO_ROOM_EXIT
    finally:
        worker.close()
        let_go_of_logs()
    return 0


def _done(task: str) -> None:
    """Tell a local controller that a task is done; in a Slurm job this is a line in a log."""
    with contextlib.suppress(OSError):
        print(f"done {task}", flush=True)


def _workers(run: Path, key: str) -> int:
    return Task.model_validate(read_json(RunPaths(run).task(key))).workers


def _keys() -> Iterator[str]:
    for line in sys.stdin:
        yield line.strip()


def _interrupt(number: int, frame: FrameType | None) -> None:
    # Once is enough: a second signal must not break the receipt that the first one causes.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    raise Interrupted(number)


def _end_with_parent() -> None:
    """A local worker ends when its controller has died, so that no two work on one run."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _failure(error: Exception) -> Failure:
    if isinstance(error, NoRoom):
        # Nobody's fault: the candidate comes again when there is room. Another disk that is full,
        # the node's own, is an error like any other.
        return Failure(kind="interrupted", message=f"no room: {error}")
    trace = "" if isinstance(error, L2SError) else traceback.format_exc()[-4000:]
    return Failure(kind=_kind(error), message=f"{type(error).__name__}: {error}", trace=trace)


def _kind(error: Exception) -> Literal["merge", "engine", "write", "other"]:
    match error:
        case MergeError():
            return "merge"
        case EngineError():
            return "engine"
        case OSError():
            return "write"
    return "other"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
