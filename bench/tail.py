"""What shortens a candidate's tail? `python bench/tail.py FOLDER [tokenizer.json]`.

Most of a candidate's time is a few answers that run to the token limit while the batch is nearly
empty. This reads recorded answers (`FOLDER/**/<benchmark>/<model>/<benchmark>/*.jsonl`, output
folders of the Qwen2.5-Math evaluation) and prints Markdown tables: what the cycle guard ends, what
budgets end, what n-gram speculation would guess, and how long a simulated GPU takes with each
remedy. Without the model's `tokenizer.json`, words, digits and signs stand for tokens. The slowest
model of a benchmark stands for the slow parent.

The GPU is an H200 with a 7B model in bfloat16; a step of n answers with c tokens of context takes
STEP + SEQUENCE n + CONTEXT c seconds. STEP and SEQUENCE: 180 tokens/s alone and 11,200 with 64
answers, measured. CONTEXT: 57,344 bytes of keys and values read at 4.27 TB/s. Prompts are free.
"""

from __future__ import annotations

import heapq
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean

from l2s_hpc.evaluation.extraction import extract
from l2s_hpc.evaluation.grading import Grader
from l2s_hpc.task.cycles import CycleGuard

LIMIT = 10_240
GUARDS = (64, 128, 256, 512)
GUARD = 256
BUDGETS = (2048, 4096, 6144, 8192)
STEP, SEQUENCE, CONTEXT = 5.5e-3, 2.5e-6, 57_344 / 4.27e12
PROMPT = "User: {}\nPlease reason step by step, and put your final answer within \\boxed{{}}.\n\n"
PIECES = re.compile(r" ?[^\W\d_]+|\d| ?(?:[^\w\s]|_)+\n*|\s*\n+|\s+")


@dataclass(frozen=True)
class Answer:
    """A recorded answer; `keeps` holds for each guard length the ids that it keeps, or None."""

    benchmark: str
    model: str
    problem: int
    gold: str
    right: bool
    prompt: Sequence[int]
    ids: Sequence[int]
    keeps: dict[int, int | None] = field(default_factory=dict)

    @property
    def length(self) -> int:
        return len(self.ids)

    def kept(self, guard: int) -> int:
        keep = self.keeps[guard]
        return self.length if keep is None else keep


class Pieces:
    """Words, single digits, signs and spaces, numbered as they come."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._texts: list[str] = []

    def encode(self, text: str) -> list[int]:
        ids = [self._numbers.setdefault(p, len(self._numbers)) for p in PIECES.findall(text)]
        self._texts.extend(list(self._numbers)[len(self._texts) :])
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self._texts[token] for token in ids)


class Tokens:
    """A model's own tokenizer."""

    def __init__(self, file: str) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(file)

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))


def main(folder: Path, tokenizer: str) -> None:
    """Read the answers and print the tables."""
    tokens = Tokens(tokenizer) if tokenizer else Pieces()
    answers = list(read(folder, tokens))
    if not answers:
        sys.exit(f"no answers below {folder}")
    unit = "tokens" if tokenizer else "pieces (so little is seen of limits)"
    total = sum(a.length for a in answers)
    print(f"{len(answers):,} answers, {total:,} {unit}, {sum(map(at_limit, answers))} at the limit")
    guards(answers, tokens)
    by_model(answers)
    budgets(answers)
    speculation(answers)
    wall_times(answers)


def read(folder: Path, tokens: Pieces | Tokens) -> Iterable[Answer]:
    for file in sorted(folder.rglob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            yield Answer(
                file.parent.name,
                f"{float(file.parent.parent.name):.1f}",
                row["idx"],
                str(row["gt"]),
                bool(row["score"][0]),
                tokens.encode(PROMPT.format(row["question"])),
                tokens.encode(row["code"][0]),
            )


def at_limit(answer: Answer) -> bool:
    """Whether the answer ran to its limit, or nearly: the end of the text may have been lost."""
    return answer.length >= 0.99 * LIMIT


def repeats_at_end(answer: Answer) -> bool:
    """Whether it still repeated itself when it ended: then a limit ended it, and not itself."""
    lengths = (24, 96, 384, 1536)
    return any(CycleGuard(n).feed(answer.ids[-n:]) is not None for n in lengths)


def guards(answers: list[Answer], tokens: Pieces | Tokens) -> None:
    print("\n## Cycle guard\n")
    print(
        "| guard | ended | not at limit | left the cycle | recorded right | right to wrong | ",
        end="",
    )
    print("wrong to right | tokens saved | tokens objective | µs a token |")
    print("|---" * 10 + "|")
    total = sum(a.length for a in answers)
    with Grader() as grader:
        for guard in GUARDS:
            start = time.process_time()
            for answer in answers:
                answer.keeps[guard] = CycleGuard(guard).feed(answer.ids)
            cost = (time.process_time() - start) / total * 1e6
            ended = [a for a in answers if a.keeps[guard] is not None]
            early = [a for a in ended if not at_limit(a)]
            flips = [flip(a, guard, tokens, grader) for a in ended]
            saved = sum(a.length - a.kept(guard) for a in ended) / total
            charged = sum(max(0, LIMIT - a.length) for a in ended) / total
            cells = (
                guard,
                f"{len(ended)} ({len(ended) / len(answers):.1%})",
                len(early),
                sum(not repeats_at_end(a) for a in early),
                sum(a.right for a in ended),
                flips.count((True, False)),
                flips.count((False, True)),
                f"{saved:.1%}",
                f"{charged:+.1%}",
                f"{cost:.2f}",
            )
            print("| " + " | ".join(map(str, cells)) + " |")


def flip(answer: Answer, guard: int, tokens: Pieces | Tokens, grader: Grader) -> tuple[bool, bool]:
    """Return our verdict on the whole answer, and on what the guard leaves of it."""
    whole = extract(tokens.decode(answer.ids), "length" if at_limit(answer) else "stop").answer
    kept = extract(tokens.decode(answer.ids[: answer.kept(guard)]), "cycle").answer
    before, after = (grader.judge(found, answer.gold).correct for found in (whole, kept))
    return before, after


def by_model(answers: list[Answer]) -> None:
    print(f"\n### By model, guard {GUARD}\n")
    print("| benchmark | model | answers | mean tokens | at limit | ended | right | saved |")
    print("|---" * 8 + "|")
    for benchmark, model in dict.fromkeys((a.benchmark, a.model) for a in answers):
        some = [a for a in answers if (a.benchmark, a.model) == (benchmark, model)]
        ended = [a for a in some if a.keeps[GUARD] is not None]
        saved = 1 - sum(a.kept(GUARD) for a in some) / sum(a.length for a in some)
        print(
            f"| {benchmark} | {model} | {len(some)} | {mean(a.length for a in some):,.0f} "
            f"| {sum(map(at_limit, some))} | {len(ended)} | {sum(a.right for a in ended)} "
            f"| {saved:.1%} |"
        )


def budgets(answers: list[Answer]) -> None:
    print("\n## Budgets by benchmark\n")
    print("| benchmark | budget | cut | right answers lost | tokens objective |")
    print("|---" * 5 + "|")
    for benchmark in dict.fromkeys(a.benchmark for a in answers):
        some = [a for a in answers if a.benchmark == benchmark]
        for budget in BUDGETS:
            cut = [a for a in some if a.length > budget]
            lost = sum(a.right for a in cut)
            charged = sum(min(a.length, budget) for a in some) / sum(a.length for a in some) - 1
            print(
                f"| {benchmark} | {budget:,} | {len(cut) / len(some):.1%} "
                f"| {lost} of {sum(a.right for a in some)} | {charged:+.1%} |"
            )


def speculation(answers: list[Answer]) -> None:
    print("\n## What an n-gram (3) would guess\n")
    print("| answers | draft | drafted ids right | ids guessed | ids a step |")
    print("|---" * 5 + "|")
    tail = sorted(answers, key=lambda a: a.length)[-len(answers) // 20 :]
    longest = sorted(answers, key=lambda a: a.kept(GUARD))[-len(answers) // 20 :]
    groups = {
        "all": answers,
        "longest 5 %": tail,
        f"all, with guard {GUARD}": [replace(a, ids=a.ids[: a.kept(GUARD)]) for a in answers],
        f"longest 5 %, with guard {GUARD}": [
            replace(a, ids=a.ids[: a.kept(GUARD)]) for a in longest
        ],
    }
    for name, some in groups.items():
        counts = {k: [0, 0, 0] for k in (3, 4, 5)}
        for answer in some:
            for k, found in guessed(answer).items():
                counts[k] = [a + b for a, b in zip(counts[k], found, strict=True)]
        total = sum(a.length for a in some)
        for k, (drafted, right, steps) in counts.items():
            cells = f"{right / drafted:.1%} | {right / total:.1%} | {total / steps:.2f}"
            print(f"| {name} | {k} | {cells} |")


def guessed(answer: Answer) -> dict[int, tuple[int, int, int]]:
    """Return by length of draft: ids drafted, ids drafted right, steps of the engine.

    The draft is what followed the latest earlier place of the last three ids.
    """
    ids, first = [*answer.prompt, *answer.ids], len(answer.prompt)
    latest: dict[tuple[int, ...], int] = {}
    source = [0] * len(ids)
    for place in range(3, len(ids)):
        gram = (ids[place - 3], ids[place - 2], ids[place - 1])
        source[place] = latest.get(gram, 0)
        latest[gram] = place
    counts = {}
    for k in (3, 4, 5):
        drafted = right = steps = 0
        place = first
        while place < len(ids):
            start = source[place]
            most = min(k, place - start, len(ids) - place) if start else 0
            hits = 0
            while hits < most and ids[start + hits] == ids[place + hits]:
                hits += 1
            drafted, right, steps = drafted + most, right + hits, steps + 1
            place += hits + 1
        counts[k] = (drafted, min(right, len(ids) - first), steps)
    return counts


def seconds(work: Iterable[tuple[int, int]], most: int) -> float:
    """Return how long the GPU takes for answers of (prompt, length), started in this order."""
    waiting = [pair for pair in work if pair[1] > 0][::-1]
    running: list[tuple[int, int]] = []  # (step at which it ends, its tokens then), a heap
    step, context, taken = 0, 0, 0.0
    while waiting or running:
        while waiting and len(running) < most:
            prompt, length = waiting.pop()
            heapq.heappush(running, (step + length, prompt + length))
            context += prompt
        steps, count = running[0][0] - step, len(running)
        taken += steps * (STEP + SEQUENCE * count + CONTEXT * (context + count * steps / 2))
        step += steps
        context += count * steps
        while running and running[0][0] == step:
            context -= heapq.heappop(running)[1]
    return taken


def wall_times(answers: list[Answer]) -> None:
    benchmark = max({a.benchmark for a in answers}, key=[a.benchmark for a in answers].count)
    some = [a for a in answers if a.benchmark == benchmark]
    models = sorted({a.model for a in some}, key=lambda m: -total_of(some, m))
    slow = {a.problem: a.length for a in some if a.model == models[0]}
    print(f"\n## Seconds a candidate, simulated: {benchmark}, mean of {len(models) - 1} models\n")
    shapes = [(n, most) for n in (100, 500) for most in (256, 128, 64)]
    print("| remedy | " + " | ".join(f"{n} problems, {most}" for n, most in shapes) + " |")
    print("|---" * (len(shapes) + 1) + "|")
    plain: list[float] = []
    for name, (length, order) in remedies(slow).items():
        row = []
        for n, most in shapes:
            times = []
            for model in models[1:]:
                mine = [a for a in some if a.model == model]
                parts = len(mine) // n or 1
                for part in range(parts):
                    work = sorted(mine[part::parts], key=lambda a: -order(a))
                    times.append(seconds([(len(a.prompt), length(a)) for a in work], most))
            row.append(mean(times))
        plain = plain or row
        gains = (f"{s:.1f} ({s / p - 1:+.0%})" for s, p in zip(row, plain, strict=True))
        print(f"| {name} | " + " | ".join(gains) + " |")


def total_of(answers: list[Answer], model: str) -> int:
    return sum(a.length for a in answers if a.model == model)


Measure = Callable[[Answer], int]


def remedies(slow: dict[int, int]) -> dict[str, tuple[Measure, Measure]]:
    """Return by name how long an answer becomes, and by what they are ordered, greatest first."""

    def kept(guard: int) -> Measure:
        return lambda a: a.kept(guard)

    def within(budget: int, measure: Measure) -> Measure:
        return lambda a: min(budget, measure(a))

    def as_given(_: Answer) -> int:
        return 0

    def whole(answer: Answer) -> int:
        return answer.length

    def parents(answer: Answer) -> int:
        return slow[answer.problem]

    guarded = kept(GUARD)
    return {
        "none": (whole, as_given),
        **{f"guard {guard}": (kept(guard), as_given) for guard in GUARDS},
        **{f"budget {budget:,}": (within(budget, whole), as_given) for budget in BUDGETS},
        f"guard {GUARD}, budget 4,096": (within(4096, guarded), as_given),
        "longest first, its own lengths": (whole, whole),
        "longest first, the slow parent's": (whole, parents),
        f"guard {GUARD}, its own lengths": (guarded, guarded),
        f"guard {GUARD}, the slow parent's": (guarded, parents),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
