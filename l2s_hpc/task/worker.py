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
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Literal

from l2s_hpc.config import ModelSource
from l2s_hpc.errors import NO_ROOM_EXIT, L2SError
from l2s_hpc.evaluation.grading import Grader
from l2s_hpc.recipes.models import Model, locate
from l2s_hpc.records import Evaluation, Failure, Protocol, Recipe, Task, engine_line, otherwise
from l2s_hpc.store.files import read_json
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.store.run import read_run
from l2s_hpc.task.engines import (
    Engine,
    EngineError,
    EngineStartError,
    open_engine,
)
from l2s_hpc.task.evaluate import Attempt, Fenced
from l2s_hpc.task.failures import failure_of
from l2s_hpc.task.node import EngineLog, NoRoom, job, let_go_of_logs, say
from l2s_hpc.task.pipeline import Background, Ended
from l2s_hpc.task.progress import Progress
from l2s_hpc.task.renewal import begin_anew, unfinished
from l2s_hpc.task.scratch import Copies, cache_folder
from l2s_hpc.task.team import run_team

_LAST_SECONDS = 8.0
"""How long who was told to end goes on with what is nearly done: SIGKILL is near."""


class Interrupted(BaseException):
    """SIGTERM came: preemption, a user's stop, or a dead controller; or USR2: the time limit."""

    def __init__(self, number: int) -> None:
        name = signal.Signals(number).name
        near = number == signal.SIGUSR2
        self.kind: Literal["interrupted", "timeout"] = "timeout" if near else "interrupted"
        super().__init__(f"{name} received" + (", the time limit is near" if near else ""))


class NewProcess(BaseException):
    """What a broken engine holds goes with this process only; a new one goes on."""


class Worker:
    """Keeps what is dear between candidates: the parents, the engine, the grader.

    The main thread, where signals arrive, merges and generates. Another one writes each chunk while
    the next one generates, and a third one grades and finishes a candidate while the next candidate
    generates. Receipts come in the order of the candidates, but for that of an interruption.
    """

    def __init__(self, run: Path, number: str = "") -> None:
        """Begin to work on a run, as the n-th worker of a team if there is one."""
        self.paths = RunPaths(run)
        self.info = read_run(run)
        self.grader = Grader()
        self.engine: Engine | None = None
        self.background = Background()
        self.writer = Background("writer")
        self._number = number
        self.log = EngineLog()
        self._hurry = threading.Event()
        self._deadline = 0.0
        self._finishing: Attempt | None = None
        self._device_free: float | None = None
        self._engine_key: tuple[Protocol, str] | None = None
        self._evaluations: dict[str, Evaluation] = {}
        self._places: dict[str, str] = {}
        self._scratch = self._cache = ""
        self._of_run = "", ""
        self._copies = Copies()

    def do(self, key: str) -> None:
        """Do one task, and leave a receipt of every candidate that gets its turn.

        What is done already, or is done by another worker of the same task, is left out. A signal,
        a fence or a full disk ends the task.
        """
        task = Task.model_validate(read_json(self.paths.task(key)))
        self._places, self._device_free = task.models, None
        self._scratch, self._cache = task.scratch, task.cache
        self._of_run = task.device, task.engine
        progress = Progress(self.paths.progress(key, self._number), task, job().host)
        try:
            self._do(task, progress)
        except Ended as ended:
            raise ended.error from None
        finally:
            progress.remove()

    def _do(self, task: Task, progress: Progress) -> None:
        last: Attempt | None = None
        try:
            for number, candidate in enumerate(task.candidates):
                evaluation = self._evaluation(candidate.evaluation)
                attempt = Attempt(
                    self.info.id,
                    self.paths,
                    candidate,
                    evaluation,
                    task.disk_seconds,
                    self._hurry,
                    self.writer,
                )
                self._check_process(evaluation.protocol, candidate.recipe)
                if attempt.claim():
                    last = attempt
                    progress.begin(number, len(evaluation.items))
                    self._attempt(attempt, progress)
                    if self._refusal():
                        break  # this node can do none of them: they are for others
            if last is not None:
                last.clock.last = True
            self.background.wait()
        except Interrupted as error:
            self._finish_in_time(error)
            raise
        except (Fenced, OSError):
            self.background.settled()
            raise

    def close(self) -> None:
        self._copies.close()
        self.grader.close()
        if self.engine is not None:
            self.engine.close()
            self.engine = self._engine_key = None

    def _attempt(self, attempt: Attempt, progress: Progress | None = None) -> None:
        """Generate, and have the rest done in the background; a failure is written down."""
        if self._device_free is not None:
            attempt.clock.free_since = self._device_free
        try:
            self.log.turn_to(attempt.paths.engine_log)
            with attempt.clock.phase("start"):
                engine = self._open(attempt.evaluation.protocol, attempt.task.recipe)
            if refusal := self._refusal():
                attempt.fail(refusal, engine)
                return
            self._generate(attempt, engine, progress)
            self.background.give(lambda: self._finish(attempt))
        except Interrupted as error:
            # What was generated may be in the background already. A signal that comes right after
            # the receipt does not turn success into failure.
            attempt.written(self._seconds_left())
            if attempt.generated:
                self._settled_in_time()
            attempt.fail(Failure(kind=error.kind, message=str(error)), self.engine)
            raise
        except (Ended, Fenced) as error:
            attempt.written(_LAST_SECONDS)
            attempt.fail(Failure(kind="interrupted", message=f"its task ended: {error}"))
            raise
        except Exception as error:  # the outermost frame: written down, and the next one goes on
            try:
                attempt.written()
                self.background.wait()
            except Interrupted:
                attempt.written(self._seconds_left())
                raise
            finally:
                attempt.fail(failure_of(error), self.engine)
            self._device_free = time.perf_counter()
            if isinstance(error, EngineStartError):
                raise NewProcess from error
            broken = self.engine is not None and self.engine.broken
            if broken or not isinstance(error, L2SError) or isinstance(error, EngineError):
                self._give_up_engine()

    def _refusal(self) -> Failure | None:
        """Say why no table of this engine would be accepted: that costs no generation."""
        if self.engine is None:
            return None
        found = otherwise(*self._of_run, self.engine.device, engine_line(self.engine.versions))
        return found and Failure(kind=found[0], message=f"this node has {found[1]}")

    def _generate(self, attempt: Attempt, engine: Engine, progress: Progress | None) -> None:
        samples = attempt.evaluation.protocol.samples

        def tell(answers: int, tokens: int) -> None:
            self.background.check()
            if progress is not None:
                progress.tell(answers // samples, tokens)

        if progress is not None:
            progress.ready()
        attempt.generate(engine, tell)
        self._device_free = attempt.clock.device_is_free()
        if progress is not None:
            progress.generated(attempt.tokens)

    def _finish(self, attempt: Attempt) -> None:
        """Grade and write what was generated; in the background, whose outermost frame this is."""
        self._finishing = attempt
        try:
            try:
                attempt.finish(self.grader)
            except Exception as error:
                attempt.fail(failure_of(error))
        except BaseException as error:  # Fenced, no room for a receipt, or a fault of ours
            self.background.fail(error)
        self._finishing = None

    def _finish_in_time(self, error: Interrupted) -> None:
        """Let the candidate in the background come to its end, if that is near."""
        late = None if self._settled_in_time() else self._finishing
        if late is not None:
            late.fail(Failure(kind=error.kind, message=str(error)))
        self.background.check()

    def _settled_in_time(self) -> bool:
        """Whether nothing is left in the background before the time is over that is left."""
        return self.background.settled(self._seconds_left())

    def _seconds_left(self) -> float:
        """Return how long who was told to end may still wait; from the first call on it hurries."""
        if not self._hurry.is_set():
            self._hurry.set()
            self._deadline = time.monotonic() + _LAST_SECONDS
        return max(self._deadline - time.monotonic(), 0.0)

    def _open(self, protocol: Protocol, recipe: Recipe) -> Engine:
        alone = protocol.alone(recipe)
        if self.engine is None or self._engine_key != (protocol, alone):
            self._discard_engine()
            models = self._models([alone] if alone else self.info.models)
            own = {"tokenizer": alone, "stop_ids": self.info.stop_ids[alone]} if alone else {}
            vllm = protocol.engine == "vllm"
            cache = cache_folder(self._scratch, self._cache) if vllm else ""
            self.engine = open_engine(protocol.model_copy(update=own), models, cache)
            self._engine_key = (protocol, alone)
        return self.engine

    def _check_process(self, protocol: Protocol, recipe: Recipe) -> None:
        """Begin anew before the next model, where an engine gives its device back only so."""
        wanted = (protocol, protocol.alone(recipe))
        if self.engine is not None and self._engine_key != wanted and self.engine.needs_new_process:
            self.background.wait()
            raise NewProcess("the next model needs an engine of its own")

    def _give_up_engine(self) -> None:
        """Let the next candidate have a fresh engine."""
        if self.engine is not None and self.engine.needs_new_process:
            raise NewProcess
        self._discard_engine()

    def _discard_engine(self) -> None:
        engine, self.engine, self._engine_key = self.engine, None, None
        if engine is not None:
            engine.close()

    def _models(self, names: Iterable[str]) -> dict[str, Model]:
        """Return input models as this node sees them, checked to be the run's."""
        models = {
            name: locate(name, ModelSource(**self.info.models[name]), self._places)
            for name in names
        }
        for name, model in models.items():
            if model.identity != self.info.identities[name]:
                raise EngineError(
                    f"the weights of '{name}' on this node are not those of the run",
                    hint="is its cache older, or was the model changed?",
                    path=model.folder,
                )
        return self._copies.near(models, self._scratch, self.info.identities)

    def _evaluation(self, name: str) -> Evaluation:
        if name not in self._evaluations:
            value = read_json(self.paths.evaluation(name))
            self._evaluations[name] = Evaluation.model_validate(value)
        return self._evaluations[name]


def main(arguments: list[str]) -> int:
    """Run the worker; exit code 0 also after failed candidates, whose receipts say so.

    Exit code 75 says that there was no room for a receipt, 143 that a signal ended the task, 1 that
    engines broke too often.
    """
    run, key, *number = arguments
    alone = key == "-" or bool(number)
    if not alone and (workers := _workers(Path(run), key)) > 1:
        return run_team([sys.executable, "-uPm", "l2s_hpc.task.worker", run, key], workers)
    for ending in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(ending, _interrupt)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Threads that spin while they wait hold each other up where a node's cores are shared.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if key == "-":
        _end_with_parent()
    return _work(Worker(Path(run), *number), _keys() if key == "-" else [key])


def _work(worker: Worker, keys: Iterable[str]) -> int:
    task = ""
    worker.log.install()
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
    except NewProcess as error:
        worker.grader.close()
        begin_anew(task, *error.args)
        return 1
    finally:
        worker.close()
        let_go_of_logs()
    return 0


def _done(task: str) -> None:
    """Tell a local controller that a task is done; in a Slurm job this is a line in a log."""
    with contextlib.suppress(OSError):
        # In one write: the workers of a team share their output.
        print(f"done {task}\n", end="", flush=True)


def _workers(run: Path, key: str) -> int:
    return Task.model_validate(read_json(RunPaths(run).task(key))).workers


def _keys() -> Iterator[str]:
    """Yield the keys of standard input; nothing is read ahead that a new process would miss."""
    if task := unfinished():
        yield task
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as lines:
        for line in lines:
            yield line.decode().strip()


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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
