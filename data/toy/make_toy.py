"""Make the toy model family of `data/toy`: base, slow, fast, its benchmarks and its tables.

The family is a test bed for merging "think long" and "answer at once" models: three Qwen2 models of
0.85 M parameters that solve little word problems. `slow` reasons at length, `fast` answers from the
hip, and both were fine-tuned from `base`, which knows every style but writes the wrong answer
format. Task arithmetic between them moves smoothly between short and correct.

This file is the whole story, from top to bottom: problems, answer styles, tokenizer, network,
training, benchmarks, measurement. It needs torch, transformers, tokenizers and safetensors:

    python make_toy.py benchmarks               # writes benchmarks/*.jsonl; seconds, no GPU
    python make_toy.py train                    # writes base/, slow/, fast/; minutes on one GPU
    python make_toy.py measure                  # prints the tables of README.md; seconds on a GPU
    python make_toy.py check                    # own decoder against transformers' generate

Every command takes `--help`, `--out DIR` (default: this folder) and `--device cpu|cuda`.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)

HERE = Path(__file__).resolve().parent

# ------------------------------------------------------------------------------------ problems

NAMES = ("Amy", "Ben", "Eva", "Ida", "Jon", "Lea", "Leo", "Max", "Mia", "Sam", "Tom", "Zoe")
ITEMS = (
    *("apples", "books", "cards", "coins", "cups", "eggs"),
    *("nuts", "pears", "pens", "plates", "shells", "stamps"),
)
MAX_QUANTITY = 400


@dataclass(frozen=True)
class Step:
    """One change of the running quantity: `before op operand = after`."""

    op: str
    operand: int
    before: int
    after: int

    @property
    def difficulty(self) -> float:
        """How hard the step is in the head; hard steps are written out more often."""
        if self.op in "*/":
            return 1.0 if self.before >= 11 else 0.0
        units = self.before % 10, self.operand % 10
        crosses_ten = sum(units) >= 10 if self.op == "+" else units[0] < units[1]
        small = -0.9 if self.operand < 10 else 0.0
        large = 0.3 if self.before >= 100 else 0.0
        return small + (0.7 if crosses_ten else -0.1) + large


@dataclass(frozen=True)
class Problem:
    """A question, and the steps that lead to its answer."""

    question: str
    steps: tuple[Step, ...]
    distracting: bool

    @property
    def answer(self) -> int:
        return self.steps[-1].after


def draw_step(rng: random.Random, quantity: int, products: int) -> Step:
    """Draw the next step; it may leave 0..MAX_QUANTITY, then the caller draws again."""
    kind = rng.random()
    divisors = [k for k in range(2, 6) if quantity % k == 0]
    if kind < 0.08 and divisors and quantity >= 10:
        k = rng.choice(divisors)
        return Step("/", k, quantity, quantity // k)
    if kind < 0.27 and 2 <= quantity <= 80 and products < 2:
        k = rng.randint(2, 5)
        return Step("*", k, quantity, quantity * k)
    k = rng.randint(11, 59) if rng.random() < 0.7 else rng.randint(2, 9)
    if kind < 0.64 or k > quantity:
        return Step("+", k, quantity, quantity + k)
    return Step("-", k, quantity, quantity - k)


def say_step(rng: random.Random, step: Step, name: str, other: str, items: str) -> str:
    """One sentence for one step."""
    k = step.operand
    if step.op == "/":
        half = k == 2 and rng.random() < 0.5
        return (
            f"{name} gives half to {other}."
            if half
            else f"{name} splits the {items} in {k} parts and keeps one."
        )
    if step.op == "*":
        short = {2: "doubles", 3: "triples"}.get(k)
        if short and rng.random() < 0.5:
            return f"{name} {short} the {items}."
        return f"Then {name} has {k} times as many."
    if step.op == "-":
        forms = ("loses {k}", "sells {k}", "gives {k} to {other}", "breaks {k}")
    elif rng.random() < 0.04:
        # The one trap of the language: the giver comes first. Kept rare, it is hard to learn.
        return f"{other} gives {k} to {name}."
    else:
        forms = ("buys {k} more", "finds {k} more", "gets {k} more from {other}", "wins {k}")
    return f"{name} {rng.choice(forms).format(k=k, other=other)}."


def say_distraction(rng: random.Random, name: str, other: str, items: str) -> str:
    """A sentence that changes nothing: somebody else, or something else."""
    k = rng.randint(2, 59)
    thing = rng.choice([item for item in ITEMS if item != items])
    if rng.random() < 0.5:
        return f"{other} {rng.choice(('has', 'buys', 'loses'))} {k} {rng.choice((items, thing))}."
    return f"{name} {rng.choice(('buys', 'loses'))} {k} {thing}."


def draw_problem(rng: random.Random, length: int, distracting: bool) -> Problem:
    """A problem of `length` steps, with one or two sentences to ignore if `distracting`."""
    name, items = rng.choice(NAMES), rng.choice(ITEMS)
    others = [n for n in NAMES if n != name]
    quantity = rng.randint(2, 60)
    sentences = [f"{name} has {quantity} {items}."]
    steps: list[Step] = []
    while len(steps) < length:
        step = draw_step(rng, quantity, sum(s.op == "*" for s in steps))
        if not 0 <= step.after <= MAX_QUANTITY:
            continue
        steps.append(step)
        quantity = step.after
        sentences.append(say_step(rng, step, name, rng.choice(others), items))
    for _ in range(rng.randint(1, 2) if distracting else 0):
        extra = say_distraction(rng, name, rng.choice(others), items)
        sentences.insert(rng.randint(1, len(sentences)), extra)
    sentences.append(f"How many {items} does {name} have now?")
    return Problem(" ".join(sentences), tuple(steps), distracting)


# -------------------------------------------------------------------------------- answer styles


@dataclass(frozen=True)
class Style:
    """How a model of this family answers, as calibrated odds rather than as fixed rules.

    No style is pure: `fast` thinks now and then, `slow` sometimes does not. That keeps the models'
    logit margins spread out, so that interpolated weights change one decision after another
    (easy problems first) instead of all at once.
    """

    think: float  # log odds of thinking, at 2.5 steps
    think_per_step: float  # how much the log odds grow per step
    verbosity: float  # mean tendency to write steps out
    check: float  # log odds of a closing (useless) check
    boxed: float  # share of answers in the right format
    lengths: tuple[float, ...]  # shares of problems of 1..5 steps in the training data
    distracting: float  # share of problems with distractions


BASE_LENGTHS = (0.26, 0.26, 0.24, 0.16, 0.08)
STYLES = {
    "wide": Style(0.0, 0.9, 0.0, -0.5, 0.1, BASE_LENGTHS, 0.20),
    "base": Style(-2.5, 0.9, 0.0, -0.5, 0.1, BASE_LENGTHS, 0.20),
    "slow": Style(4.5, 0.9, 4.0, 3.5, 1.0, (0.12, 0.20, 0.22, 0.24, 0.22), 0.30),
    "fast": Style(-3.2, 0.6, -2.5, -4.0, 1.0, (0.28, 0.28, 0.24, 0.13, 0.07), 0.25),
}
VERBOSITY_SPREAD = 1.3


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def decompose(step: Step) -> str | None:
    """The step in two halves, tens then units; None where there is nothing to split."""
    a, k = step.before, step.operand
    if step.op in "+-" and k > 10 and k % 10:
        tens = k - k % 10
        middle = a + tens if step.op == "+" else a - tens
        first = f"{a}{step.op}{tens}={middle}"
        return f"{a}{step.op}{k}: {first}, {middle}{step.op}{k % 10}={step.after}."
    if step.op == "*" and a > 10 and a % 10:
        tens, units = a - a % 10, a % 10
        halves = f"{tens}*{k}={tens * k}, {units}*{k}={units * k}"
        return f"{a}*{k}: {halves}, {tens * k}+{units * k}={step.after}."
    return None


def write_step(rng: random.Random, step: Step, verbosity: float) -> str:
    """One line of thought: result only, equation, or decomposed equation."""
    uniform = rng.random()
    logistic = math.log(uniform / (1.0 - uniform)) if uniform else -36.0
    effort = verbosity + 0.9 * step.difficulty + 0.6 * logistic
    if effort < -1.5:
        return f"so {step.after}."
    equation = f"{step.before}{step.op}{step.operand}={step.after}."
    return equation if effort < 1.0 else decompose(step) or equation


def write_answer(rng: random.Random, problem: Problem, style: Style) -> tuple[str, bool]:
    """An answer in the given style, and whether it was given at once (without thinking)."""
    length = len(problem.steps)
    final = f"\\boxed{{{problem.answer}}}"
    if rng.random() >= style.boxed:
        final = f"Answer {problem.answer}."
    felt_length = length + 0.5 * problem.distracting
    if rng.random() >= sigmoid(style.think + style.think_per_step * (felt_length - 2.5)):
        return final, True
    verbosity = rng.gauss(style.verbosity, VERBOSITY_SPREAD)
    lines = [write_step(rng, step, verbosity) for step in problem.steps]
    eagerness = style.check + 0.4 * verbosity / VERBOSITY_SPREAD + 0.3 * (length - 3)
    if rng.random() < sigmoid(eagerness):
        lines.append(f"Check: {', '.join(str(s.after) for s in problem.steps)}. OK")
    return "\n".join(("<think>", *lines, "</think>", final)), False


# ----------------------------------------------------------------------------------- benchmarks


@dataclass(frozen=True)
class Benchmark:
    lengths: tuple[int, ...]
    distracting: bool
    seed: int


BENCHMARKS = {
    "toy_easy": Benchmark((1, 2), False, 9001),
    "toy_mid": Benchmark((3,), False, 9002),
    "toy_hard": Benchmark((4, 5), False, 9003),
    "toy_distract": Benchmark((2, 3, 4), True, 9004),
}
SPLITS = {"search": 60, "selection": 60, "report": 120}


def draw_benchmarks() -> dict[str, list[dict]]:
    """All items of all benchmarks; no question occurs twice, in whatever file or split."""
    seen: set[str] = set()
    benchmarks: dict[str, list[dict]] = {}
    for name, spec in BENCHMARKS.items():
        rng = random.Random(spec.seed)
        items = benchmarks[name] = []
        for split, count in SPLITS.items():
            for i in range(count):
                length = spec.lengths[i % len(spec.lengths)]
                problem = draw_problem(rng, length, spec.distracting)
                while problem.question in seen:
                    problem = draw_problem(rng, length, spec.distracting)
                seen.add(problem.question)
                items.append(
                    {
                        "id": f"{name}-{split}-{i:03d}",
                        "question": problem.question,
                        "answer": str(problem.answer),
                        "level": length,
                        "split": split,
                    }
                )
    return benchmarks


def write_benchmarks(out: Path) -> None:
    folder = out / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    for name, items in draw_benchmarks().items():
        lines = "".join(json.dumps(item) + "\n" for item in items)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def read_benchmarks(out: Path, split: str) -> dict[str, list[dict]]:
    benchmarks = {}
    for name in BENCHMARKS:
        text = (out / "benchmarks" / f"{name}.jsonl").read_text(encoding="utf-8")
        items = [json.loads(line) for line in text.splitlines()]
        benchmarks[name] = [item for item in items if item["split"] == split]
    return benchmarks


# ------------------------------------------------------------------------------------ tokenizer

END, PAD = "<|im_end|>", "<|endoftext|>"
SPECIAL = [PAD, "<|im_start|>", END]
MARKERS = ["<think>", "</think>", "\\boxed{"]  # one token each, but ordinary text
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def prompt_of(question: str) -> str:
    """What CHAT_TEMPLATE makes of one user message."""
    return f"<|im_start|>user\n{question}{END}\n<|im_start|>assistant\n"


def tokenizer_corpus() -> Iterable[str]:
    """Text with every word that a problem or an answer can hold."""
    rng = random.Random(7)
    yield "system\nYou are a helpful assistant."
    for i in range(6000):
        problem = draw_problem(rng, 1 + i % 5, i % 3 == 0)
        answer, _ = write_answer(rng, problem, STYLES["wide"])
        text = prompt_of(problem.question) + answer
        yield from re.split("|".join(map(re.escape, SPECIAL + MARKERS)), text)


def make_tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer of Qwen2's kind, in which each word of ours is one token.

    Not a word-level one: AutoTokenizer builds a Qwen2Tokenizer for every folder whose config.json
    says "qwen2", whatever the tokenizer files say, and would silently garble other vocabularies.
    """
    raw = tokenizers.Tokenizer(tokenizers.models.BPE())
    raw.normalizer = tokenizers.normalizers.NFC()
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(QWEN2_PATTERN), "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=4000,  # more than needed: it stops when every word is whole
        min_frequency=1,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator(tokenizer_corpus(), trainer)
    bpe = json.loads(raw.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=bpe["vocab"],
        merges=[tuple(pair) for pair in bpe["merges"]],
        unk_token=None,
        bos_token=None,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        model_max_length=512,
    )
    tokenizer.add_tokens(["<|im_start|>"], special_tokens=True)
    tokenizer.add_tokens(
        [tokenizers.AddedToken(text, normalized=False, special=False) for text in MARKERS]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise if texts do not survive the tokenizer, or if the chat template is not `prompt_of`."""
    rng = random.Random(8)
    for i in range(300):
        problem = draw_problem(rng, 1 + i % 5, i % 2 == 0)
        answer, _ = write_answer(rng, problem, STYLES["wide"])
        text = prompt_of(problem.question) + answer + END
        if tokenizer.decode(tokenizer.encode(text)) != text:
            raise ValueError(f"the tokenizer does not round-trip: {text!r}")
        chat = [{"role": "user", "content": problem.question}]
        prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        if prompt != prompt_of(problem.question):
            raise ValueError("the chat template differs from prompt_of")


# --------------------------------------------------------------------------------- training data

SHARDS = 16  # fixed, so that a pool does not depend on the number of processes
BANNED: frozenset[str] = frozenset()  # benchmark questions; filled before the workers are forked


@dataclass(frozen=True)
class Phase:
    """One training phase: its data and its optimisation."""

    style: str
    problems: int
    seed: int
    steps: int
    batch: int
    buckets: int
    peak_lr: float
    warmup: int
    weight_decay: float
    digit_weight: int  # of the digits of an answer that was given at once


# In this order. "wide" learns arithmetic in all styles; "base" then shifts it towards answering at
# once, so that both fast and slow, which start from base, have to move away from it.
PHASES = {
    "wide": Phase("wide", 1_500_000, 1, 2250, 1000, 5, 2e-3, 100, 0.05, 6),
    "base": Phase("base", 12_800, 101, 200, 64, 4, 4e-4, 20, 0.0, 3),
    "fast": Phase("fast", 19_200, 102, 300, 64, 4, 4e-4, 20, 0.0, 3),
    "slow": Phase("slow", 16_000, 103, 250, 64, 4, 4e-4, 20, 0.0, 3),
}


@dataclass(frozen=True)
class Bucket:
    """Texts of similar length: token ids (n, t), and the loss weight of each token (n, t)."""

    tokens: Tensor
    weights: Tensor


def make_shard(phase: Phase, shard: int, tokenizer: tokenizers.Tokenizer) -> list[np.ndarray]:
    """One shard of a pool: per text an int16 array (2, length) of tokens and loss weights."""
    rng = random.Random(f"{phase.seed}/{shard}")
    style = STYLES[phase.style]
    texts: list[str] = []
    at_once: list[bool] = []
    while len(texts) < phase.problems // SHARDS:
        length = rng.choices(range(1, 6), style.lengths)[0]
        problem = draw_problem(rng, length, rng.random() < style.distracting)
        if problem.question in BANNED:
            continue
        answer, quick = write_answer(rng, problem, style)
        texts.append(prompt_of(problem.question) + answer + END)
        at_once.append(quick)
    digits = [tokenizer.token_to_id(d) for d in "0123456789"]
    turn = tokenizer.token_to_id("<|im_start|>")
    rows = []
    for encoding, quick in zip(tokenizer.encode_batch_fast(texts), at_once, strict=True):
        ids = np.array(encoding.ids, np.int16)
        start = np.flatnonzero(ids == turn)[1] + 3  # after "<|im_start|>assistant\n"
        weights = np.zeros_like(ids)
        weights[start:] = 1
        if quick:
            weights[start:][np.isin(ids[start:], digits)] = phase.digit_weight
        rows.append(np.stack([ids, weights]))
    return rows


def make_pool(phase: Phase, tokenizer: tokenizers.Tokenizer, processes: int) -> list[Bucket]:
    """The pool of a phase, cut into equally full buckets from short to long texts."""
    jobs = [(phase, shard, tokenizer) for shard in range(SHARDS)]
    with multiprocessing.get_context("fork").Pool(processes) as workers:
        rows = [row for shard in workers.starmap(make_shard, jobs, chunksize=1) for row in shard]
    rows.sort(key=lambda row: row.shape[1])
    pad = tokenizer.token_to_id(PAD)
    buckets = []
    for part in np.array_split(np.arange(len(rows)), phase.buckets):
        longest = rows[part[-1]].shape[1]
        block = np.zeros((2, len(part), longest), np.int16)
        block[0] = pad
        for i, j in enumerate(part):
            block[:, i, : rows[j].shape[1]] = rows[j]
        buckets.append(Bucket(torch.from_numpy(block[0]), torch.from_numpy(block[1])))
    return buckets


# -------------------------------------------------------------------------------------- network

# Weights are dictionaries with the names that transformers gives them. Each tensor has one more
# axis in front, for M models of the same shape that are computed side by side: M = 1 in training,
# many when a grid of merges is measured.
Weights = dict[str, Tensor]

HIDDEN, LAYERS, HEADS, KV_HEADS, INNER = 128, 4, 4, 2, 384
HEAD = HIDDEN // HEADS
EPS, THETA = 1e-6, 10_000.0


def model_config(tokenizer: PreTrainedTokenizerBase) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=512,
        rms_norm_eps=EPS,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids(END),
        pad_token_id=tokenizer.convert_tokens_to_ids(PAD),
        dtype="bfloat16",
    )


def init_weights(config: Qwen2Config) -> Weights:
    """Fresh weights; what writes to the residual stream starts smaller."""
    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in Qwen2ForCausalLM(config).named_parameters()}
    weights = {}
    for name, shape in shapes.items():
        if name.endswith("bias"):
            tensor = torch.zeros(shape)
        elif "norm" in name:
            tensor = torch.ones(shape)
        elif "embed" in name:
            tensor = torch.randn(shape) * 0.04
        else:
            to_residual = "o_proj" in name or "down_proj" in name
            scale = 1 / math.sqrt(2 * LAYERS) if to_residual else 1.0
            tensor = torch.randn(shape) * (0.7 * scale / math.sqrt(shape[1]))
        weights[name] = tensor.unsqueeze(0)
    return weights


def rotary(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine tables, (..., t, HEAD), for positions (..., t)."""
    powers = torch.arange(0, HEAD, 2, device=positions.device, dtype=torch.float32) / HEAD
    angles = positions.float().unsqueeze(-1) * THETA**-powers
    angles = torch.cat((angles, angles), -1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    left, right = x.chunk(2, -1)
    return (x * tables[0] + torch.cat((-right, left), -1) * tables[1]).to(x.dtype)


Attention = Callable[[int, Tensor, Tensor, Tensor], Tensor]


def forward(w: Weights, tokens: Tensor, tables: tuple[Tensor, Tensor], attend: Attention) -> Tensor:
    """Final hidden states (M, b * t, HIDDEN) of Qwen2 for tokens (M, b, t).

    `attend(layer, q, k, v)` gets (M * b, heads, t, HEAD) and is where causality and caches live.
    """
    models, batch, length = tokens.shape
    table = w["model.embed_tokens.weight"]
    offsets = torch.arange(models, device=tokens.device).view(-1, 1, 1) * table.shape[1]
    x = F.embedding(tokens + offsets, table.flatten(0, 1)).view(models, -1, HIDDEN)

    def norm(name: str) -> Tensor:
        return F.rms_norm(x, (HIDDEN,), eps=EPS) * w[name].unsqueeze(1)

    def heads(name: str, y: Tensor) -> Tensor:
        bias = w[f"{name}.bias"].unsqueeze(1)
        y = torch.baddbmm(bias, y, w[f"{name}.weight"].mT)
        return y.view(models * batch, length, -1, HEAD).transpose(1, 2)

    for i in range(LAYERS):
        prefix = f"model.layers.{i}."
        y = norm(prefix + "input_layernorm.weight")
        q, k, v = (heads(f"{prefix}self_attn.{p}_proj", y) for p in "qkv")
        y = attend(i, rotate(q, tables), rotate(k, tables), v)
        y = y.transpose(1, 2).reshape(models, -1, HIDDEN)
        x = x + y @ w[prefix + "self_attn.o_proj.weight"].mT
        y = norm(prefix + "post_attention_layernorm.weight")
        gate, up = (y @ w[f"{prefix}mlp.{p}_proj.weight"].mT for p in ("gate", "up"))
        x = x + (F.silu(gate) * up) @ w[prefix + "mlp.down_proj.weight"].mT
    return norm("model.norm.weight")


# ------------------------------------------------------------------------------------- training


def causal(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (x.repeat_interleave(HEADS // KV_HEADS, 1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def loss_sum(w: Weights, tokens: Tensor, loss_weights: Tensor) -> Tensor:
    """Weighted sum of the cross entropies of the next tokens; tokens and weights are (b, t)."""
    tables = rotary(torch.arange(tokens.shape[1] - 1, device=tokens.device))
    hidden = forward(w, tokens[None, :, :-1], tables, causal)
    logits = hidden[0] @ w["model.embed_tokens.weight"][0].T
    losses = F.cross_entropy(logits.float(), tokens[:, 1:].flatten(), reduction="none")
    return (losses * loss_weights[:, 1:].flatten()).sum()


def learning_rate(phase: Phase, step: int) -> float:
    """Linear warm-up, then a cosine down to 2 % of the peak."""
    if step < phase.warmup:
        return phase.peak_lr * (step + 1) / phase.warmup
    done = (step - phase.warmup) / max(1, phase.steps - phase.warmup)
    return phase.peak_lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


class Trainer:
    """Trains weights on a pool: one micro-batch per bucket and step, so the style mix is kept."""

    def __init__(self, start: Weights, pool: list[Bucket], phase: Phase, device: torch.device):
        self.weights = {n: t.detach().clone().to(device).requires_grad_() for n, t in start.items()}
        self.pool = [Bucket(b.tokens.to(device), b.weights.to(device)) for b in pool]
        self.phase, self.device = phase, device
        rows = phase.batch // phase.buckets
        self.picks = torch.zeros(len(pool), rows, dtype=torch.long, device=device)
        self.sizes = torch.tensor([[len(b.tokens)] for b in pool], device=device)
        self.noise = torch.Generator(device).manual_seed(phase.seed)
        self.loss = torch.zeros((), device=device)
        parameters = list(self.weights.values())
        matrices = [p for p in parameters if p.ndim == 3]
        vectors = [p for p in parameters if p.ndim < 3]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": phase.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=torch.zeros((), device=device),
            betas=(0.9, 0.98),
            eps=1e-8,
            fused=True,
            capturable=device.type == "cuda",
        )

    def prepare(self, step: int) -> None:
        """Draw the rows of the next step (with replacement) and set its learning rate."""
        noise = torch.rand(self.picks.shape, generator=self.noise, device=self.device)
        self.picks.copy_((noise * self.sizes).long())
        for group in self.optimizer.param_groups:
            group["lr"].fill_(learning_rate(self.phase, step))

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        batches = [
            (bucket.tokens[rows].long(), bucket.weights[rows].float())
            for bucket, rows in zip(self.pool, self.picks, strict=True)
        ]
        total = sum(weights.sum() for _, weights in batches)
        self.loss.zero_()
        for tokens, weights in batches:
            with torch.autocast(
                self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"
            ):
                loss = loss_sum(self.weights, tokens, weights) / total
            loss.backward()
            self.loss += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        self.optimizer.step()

    def run(self, log: Callable[[str], None]) -> Weights:
        """All steps. On a GPU one step is launched as one graph: the kernels are tiny."""
        graph = None
        stream = None
        if self.device.type == "cuda":  # graphs are not captured on the default stream
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for i in range(self.phase.steps):
                self.prepare(i)
                if stream is not None and i == 3:  # the first steps warm up lazy libraries
                    graph = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(graph, stream=stream):
                        self.step()
                if graph is not None:
                    graph.replay()
                else:
                    self.step()
                if i % 250 == 0 or i == self.phase.steps - 1:
                    log(f"step {i:5d}  loss {self.loss.item():.4f}")
        return {n: t.detach().cpu() for n, t in self.weights.items()}


def save_model(weights: Weights, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the first (only) model of `weights` as a bf16 folder that transformers can load."""
    config = model_config(tokenizer)
    model = Qwen2ForCausalLM(config)
    model.load_state_dict({n: t[0] for n, t in weights.items()}, strict=False)
    model.tie_weights()
    model = model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=None,
        eos_token_id=[config.eos_token_id, config.pad_token_id],
        pad_token_id=config.pad_token_id,
        max_new_tokens=230,
    )
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # some versions write it for the owner only
    tokenizer.save_pretrained(folder)


def train(out: Path, device: torch.device, scale: float, wide: Path | None) -> None:
    """All phases. `wide`: a file of phase-one weights to reuse, or to write if it is not there."""
    global BANNED
    BANNED = frozenset(i["question"] for items in draw_benchmarks().values() for i in items)
    tokenizer = make_tokenizer()
    check_tokenizer(tokenizer)
    clock = time.perf_counter()

    def log(text: str) -> None:
        print(f"[{time.perf_counter() - clock:6.1f} s] {text}", flush=True)

    phases = {name: shrink(phase, scale) for name, phase in PHASES.items()}
    if wide is not None and wide.exists():
        del phases["wide"]
    # Pools first: worker processes are forked, and must not inherit a running CUDA context.
    raw, processes = tokenizer.backend_tokenizer, min(SHARDS, os.cpu_count() or 1)
    pools = {name: make_pool(phase, raw, processes) for name, phase in phases.items()}
    log("training pools made")

    trained: dict[str, Weights] = {}
    for name, phase in phases.items():
        log(f"phase {name}")
        if name == "wide":
            start = init_weights(model_config(tokenizer))
        elif name == "base":
            start = trained["wide"] if wide is None else torch.load(wide)
        else:
            start = trained["base"]
        trained[name] = Trainer(start, pools.pop(name), phase, device).run(log)
        if name == "wide" and wide is not None:
            torch.save(trained["wide"], wide)
    for name in ("base", "slow", "fast"):
        save_model(trained[name], tokenizer, out / name)
    check_tokenizer(AutoTokenizer.from_pretrained(out / "base"))
    log("models written")


def shrink(phase: Phase, scale: float) -> Phase:
    """The same phase with less data and fewer steps, to try the script out."""
    if scale == 1:
        return phase
    problems = max(SHARDS * phase.batch // 4, int(phase.problems * scale))
    changes = {"problems": problems, "steps": max(5, int(phase.steps * scale))}
    return Phase(**{**vars(phase), **changes})


# ---------------------------------------------------------------------------------- measurement

MAX_NEW_TOKENS = 230
Point = tuple[float, float]  # weight of slow, weight of fast


def load_family(out: Path) -> dict[str, Weights]:
    """The three shipped models, in fp32, each with a model axis of one."""
    family = {}
    for name in ("base", "slow", "fast"):
        model = AutoModelForCausalLM.from_pretrained(out / name, dtype=torch.float32)
        family[name] = {n: p.detach().unsqueeze(0) for n, p in model.named_parameters()}
    return family


def merge(family: dict[str, Weights], points: list[Point]) -> Weights:
    """Task arithmetic, base + a (slow - base) + b (fast - base), rounded to bf16, at all points."""
    merged = {}
    for name, base in family["base"].items():
        shape = (-1, *[1] * (base.ndim - 1))
        slow, fast = (torch.tensor(column).view(shape) for column in zip(*points, strict=True))
        deltas = (family[which][name] - base for which in ("slow", "fast"))
        total = base + sum(a * delta for a, delta in zip((slow, fast), deltas, strict=True))
        merged[name] = total.bfloat16().float()
    return merged


class Cache:
    """Keys and values of all rows, preallocated; `attend` appends to them and attends to them."""

    def __init__(self, rows: int, length: int, padding: Tensor):
        size = (LAYERS, rows, KV_HEADS, length, HEAD)
        self.keys, self.values = (torch.zeros(size, device=padding.device) for _ in range(2))
        self.padding = padding  # (rows, prompt length), True where a row has no token
        self.used = 0

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows, _, length, _ = q.shape
        end = self.used + length
        self.keys[layer, :, :, self.used : end] = k
        self.values[layer, :, :, self.used : end] = v
        keys, values = (x[layer, :, :, :end] for x in (self.keys, self.values))
        # The query heads that share a key head are folded into the time axis: no copies of keys.
        q = q.reshape(rows, KV_HEADS, -1, HEAD) / math.sqrt(HEAD)
        scores = (q @ keys.mT).view(rows, KV_HEADS, -1, length, end)
        if length > 1:
            future = torch.ones(length, end, dtype=torch.bool, device=q.device)
            scores.masked_fill_(future.triu(end - length + 1), -1e9)
        prompt = self.padding.shape[1]
        scores[..., :prompt].masked_fill_(self.padding.view(rows, 1, 1, 1, prompt), -1e9)
        y = scores.softmax(-1).view(rows, KV_HEADS, -1, end) @ values
        return y.view(rows, HEADS, length, HEAD)


@torch.inference_mode()
def greedy(w: Weights, prompts: Tensor, padding: Tensor, stops: list[int], pad: int) -> Tensor:
    """Greedy continuations (M, b, <= MAX_NEW_TOKENS) of left-padded prompts (b, t), all models.

    After a stop token a row holds `pad`.
    """
    models, (batch, length) = w["model.norm.weight"].shape[0], prompts.shape
    cache = Cache(models * batch, length + MAX_NEW_TOKENS, padding.repeat(models, 1))
    stop_ids = torch.tensor(stops, device=prompts.device)
    tokens = prompts.expand(models, -1, -1)
    positions = ((~padding).cumsum(-1) - 1).clamp(min=0)
    done = torch.zeros(models, batch, dtype=torch.bool, device=prompts.device)
    written: list[Tensor] = []
    while len(written) < MAX_NEW_TOKENS:
        cosine, sine = rotary(positions.repeat(models, 1))
        tables = cosine.unsqueeze(1), sine.unsqueeze(1)  # one table for all heads of a row
        hidden = forward(w, tokens, tables, cache.attend)
        cache.used += tokens.shape[-1]
        last = hidden.view(models, batch, -1, HIDDEN)[:, :, -1]
        new = (last @ w["model.embed_tokens.weight"].mT).argmax(-1)
        new = new.masked_fill(done, pad)
        done |= torch.isin(new, stop_ids)
        written.append(new)
        if len(written) % 8 == 0 and bool(done.all()):  # asking the GPU every step is slow
            break
        tokens, positions = new.unsqueeze(-1), positions[:, -1:] + 1
    return torch.stack(written, -1)


def is_correct(text: str, answer: str) -> bool:
    """Whether the text closes its thoughts, if any, and then boxes the answer."""
    thoughts, closed, final = text.rpartition("</think>")
    if "<think>" in final or (thoughts and not closed):
        return False
    boxes = re.findall(r"\\boxed\{([^{}]*)\}", final)
    return bool(boxes) and boxes[-1] == answer


@dataclass(frozen=True)
class Score:
    """Accuracy in percent, mean generated tokens with the end token, and unfinished answers."""

    accuracy: float
    tokens: float
    unfinished: float

    def __str__(self) -> str:
        return f"{self.accuracy:.1f} / {self.tokens:.1f}"


class Judge:
    """Scores merges on one split of the benchmarks."""

    def __init__(self, out: Path, split: str, device: torch.device):
        self.family = load_family(out)
        self.tokenizer = AutoTokenizer.from_pretrained(out / "base")
        benchmarks = read_benchmarks(out, split)
        self.items = [item for items in benchmarks.values() for item in items]
        self.names = np.array([name for name, items in benchmarks.items() for _ in items])
        self.device = device
        texts = [prompt_of(item["question"]) for item in self.items]
        encoded = self.tokenizer(texts, padding=True, return_tensors="pt")
        self.prompts = encoded["input_ids"].to(device)
        self.padding = encoded["attention_mask"].to(device) == 0
        self.pad = self.tokenizer.pad_token_id
        self.stops = [self.tokenizer.eos_token_id, self.pad]

    def answers(self, points: list[Point]) -> Tensor:
        """Answers' tokens (points, items, MAX_NEW_TOKENS), padded; in portions that fit a GPU."""
        portion = max(1, 6000 // len(self.items))
        parts = []
        for i in range(0, len(points), portion):
            weights = merge(self.family, points[i : i + portion])
            weights = {n: t.to(self.device) for n, t in weights.items()}
            part = greedy(weights, self.prompts, self.padding, self.stops, self.pad).cpu()
            parts.append(F.pad(part, (0, MAX_NEW_TOKENS - part.shape[-1]), value=self.pad))
        return torch.cat(parts)

    def scores(self, points: list[Point]) -> list[dict[str, Score]]:
        """Per point, the score of each benchmark and of all of them together."""
        results = []
        for rows in self.answers(points):
            stopped = torch.isin(rows, torch.tensor(self.stops))
            finished = stopped.any(-1)
            tokens = torch.where(finished, stopped.int().argmax(-1) + 1, MAX_NEW_TOKENS).numpy()
            texts = self.tokenizer.batch_decode(
                [row[:n] for row, n in zip(rows.tolist(), tokens, strict=True)]
            )
            pairs = zip(texts, self.items, strict=True)
            right = np.array([is_correct(t.removesuffix(END), i["answer"]) for t, i in pairs])
            table = {}
            for name in (*BENCHMARKS, "all"):
                which = self.names == name if name != "all" else np.ones(len(right), bool)
                table[name] = Score(
                    100 * right[which].mean(),
                    tokens[which].mean(),
                    100 * (~finished.numpy()[which]).mean(),
                )
            results.append(table)
        return results


def front(scores: list[Score]) -> list[int]:
    """Indices of the scores that no other score beats (more accurate, not longer, or so)."""
    best, kept = -1.0, []
    for i in sorted(range(len(scores)), key=lambda i: (scores[i].tokens, -scores[i].accuracy)):
        if scores[i].accuracy > best:
            best = scores[i].accuracy
            kept.append(i)
    return kept


def measure(out: Path, device: torch.device, split: str) -> None:
    """Print the tables of README.md."""
    clock = time.perf_counter()
    judge = Judge(out, split, device)
    named: dict[str, Point] = {
        "base": (0, 0),
        "slow": (1, 0),
        "fast": (0, 1),
        "plain average": (0.5, 0.5),
    }
    far: list[Point] = [(2, 2), (3, 3), (5, 5)]
    axis = [i / 10 for i in range(11)]
    grid: list[Point] = [(slow, fast) for slow in axis for fast in axis]
    results = dict(zip(grid + far, judge.scores(grid + far), strict=True))

    print(f"{len(judge.items)} items of split {split!r}: accuracy % / mean tokens\n")
    print("| model |", " | ".join((*BENCHMARKS, "all")), "|\n|---|" + "---|" * 5)
    for name, point in named.items():
        print(f"| {name} |", " | ".join(str(s) for s in results[point].values()), "|")
    print("\n| slow \\ fast |", " | ".join(map(str, axis)), "|\n|---|" + "---|" * 11)
    for slow in axis:
        row = (results[slow, fast]["all"] for fast in axis)
        print(f"| **{slow}** |", " | ".join(f"{s.accuracy:.0f}/{s.tokens:.0f}" for s in row), "|")
    print("\n| slow, fast | accuracy % | mean tokens | unfinished % |\n|---|---|---|---|")
    for point in [(0, 0), *far]:
        score = results[point]["all"]
        print(f"| {point} | {score.accuracy:.1f} | {score.tokens:.1f} | {score.unfinished:.1f} |")
    kept = front([results[point]["all"] for point in grid])
    print(f"\n{len(kept)} non-dominated points on the grid (slow, fast: accuracy / tokens):")
    print(", ".join(f"({grid[i][0]}, {grid[i][1]}: {results[grid[i]]['all']})" for i in kept))
    print(f"\nmeasured in {time.perf_counter() - clock:.0f} s")


@torch.inference_mode()
def check(out: Path, device: torch.device, count: int, point: Point) -> None:
    """Compare our decoder with transformers' generate on `count` report items at one point."""
    judge = Judge(out, "report", device)
    chosen = random.Random(0).sample(range(len(judge.items)), min(count, len(judge.items)))
    judge.items = [judge.items[i] for i in chosen]
    judge.prompts, judge.padding = judge.prompts[chosen], judge.padding[chosen]
    ours = judge.answers([point])[0].tolist()
    model = AutoModelForCausalLM.from_pretrained(out / "base", dtype=torch.float32).to(device)
    merged = {n: t[0].to(device) for n, t in merge(judge.family, [point]).items()}
    model.load_state_dict(merged, strict=False)
    same = right = tokens = 0
    for i in range(0, len(chosen), 25):
        chats = [
            [{"role": "user", "content": item["question"]}] for item in judge.items[i : i + 25]
        ]
        inputs = judge.tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        ).to(device)
        rows = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS)
        for j, row in enumerate(rows[:, inputs["input_ids"].shape[1] :].tolist()):
            row += [judge.pad] * (MAX_NEW_TOKENS - len(row))
            same += row == ours[i + j]
            tokens += min(row.index(s) if s in row else MAX_NEW_TOKENS - 1 for s in judge.stops) + 1
            text = judge.tokenizer.decode(row, skip_special_tokens=True)
            right += is_correct(text, judge.items[i + j]["answer"])
    print(
        f"{point}: {same} of {len(chosen)} answers identical; "
        f"generate: {right} right, {tokens / len(chosen):.1f} tokens on average"
    )


# ----------------------------------------------------------------------------------------- main


def main() -> None:
    parser = argparse.ArgumentParser(description="Make and measure the toy model family.")
    commands = parser.add_subparsers(dest="command", required=True)
    helps = {
        "benchmarks": "write the benchmark files",
        "train": "train and write the three models",
        "measure": "print accuracy and length of models and merges",
        "check": "compare the own decoder with transformers' generate",
    }
    sub = {name: commands.add_parser(name, help=text) for name, text in helps.items()}
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, command in sub.items():
        command.add_argument("--out", type=Path, default=HERE, help="folder (default: this one)")
        if name != "benchmarks":
            command.add_argument("--device", type=torch.device, default=default_device)
    sub["train"].add_argument("--scale", type=float, default=1.0, help="below 1: a quick try")
    sub["train"].add_argument("--wide", type=Path, help="phase-one weights to reuse or to write")
    sub["measure"].add_argument("--split", choices=SPLITS, default="report")
    sub["check"].add_argument("--count", type=int, default=100, help="items to compare")
    sub["check"].add_argument("--point", type=float, nargs=2, default=(0.5, 0.5))
    args = parser.parse_args()
    if args.command == "benchmarks":
        write_benchmarks(args.out)
    elif args.command == "train":
        train(args.out, args.device, args.scale, args.wide)
    elif args.command == "measure":
        measure(args.out, args.device, args.split)
    else:
        check(args.out, args.device, args.count, tuple(args.point))


if __name__ == "__main__":
    main()
