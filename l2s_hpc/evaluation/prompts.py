"""Prompts as token ids, bound to the tokenizer that is saved with the model.

A preset is a template whose markers (`<|im_start|>`, `<｜User｜>`, …) must be single tokens there.
The same ids mean different things to the two parents of this method: 151644 is `<|im_start|>` to
Qwen2.5 and `<｜User｜>` to DeepSeek-R1. So a preset is refused where a tokenizer would cut one of
its markers into ordinary text. Questions and examples are always ordinary text, whatever markers
stand in them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from l2s_hpc.errors import UserError
from l2s_hpc.evaluation.rows import read_rows
from l2s_hpc.records import short_hash
from l2s_hpc.store.files import read_json

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."

Shots = Sequence[tuple[str, str]]
"""Few-shot examples: questions and their answers."""


class Tokenizer(Protocol):
    """What a prompt needs of a tokenizer; those of transformers fit."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def apply_chat_template(
        self, conversation: Sequence[dict[str, str]], **options: Any
    ) -> Any: ...

    def get_added_vocab(self) -> dict[str, int]: ...

    chat_template: Any


@dataclass(frozen=True)
class Preset:
    """A template of prompts.

    Attributes:
        template: the prompt; `{question}` stands for the question, examples before it.
        markers: what must be a single token, with the id that it has where it comes from.
        shot: one example; `{question}` and `{answer}` stand for its parts.
        around: whether examples stand before the whole template, not in the user's turn.
    """

    template: str
    markers: Mapping[str, int]
    shot: str
    around: bool = False


_CHATML = {"<|im_start|>": 151644, "<|im_end|>": 151645}
_R1 = {
    "<｜begin▁of▁sentence｜>": 151646,
    "<｜User｜>": 151644,
    "<｜Assistant｜>": 151645,
    "<think>": 151648,
}
_PLAIN = f"User: {{question}}\n{INSTRUCTION}\n\nAssistant:"

PRESETS: dict[str, Preset] = {
    "plain": Preset(_PLAIN, {}, f"{_PLAIN} {{answer}}\n\n\n", around=True),
    "r1": Preset(
        f"<｜begin▁of▁sentence｜><｜User｜>{{question}}\n{INSTRUCTION}<｜Assistant｜><think>\n",
        _R1,
        "{question}\n{answer}\n\n",
    ),
    "qwen25-math-cot": Preset(
        f"<|im_start|>system\n{INSTRUCTION}<|im_end|>\n"
        "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n",
        _CHATML,
        "{question}\n{answer}\n\n",
    ),
}
"""The presets by name; `chat` is another one: the tokenizer's own template."""

OF_THE_TOKENIZER = ("chat", "plain")
"""Presets whose prompts depend on more of a tokenizer than its markers."""

_TURN_END = "<|im_end|>"
"""Ends an answer in ChatML; a parent that knows it may write its id after a merge, too."""


def build(preset: str, question: str, tokenizer: Tokenizer, shots: Shots = ()) -> list[int]:
    """Return the prompt's token ids; no second beginning-of-text token is ever added.

    `plain` is the published protocol, which hands text to the engine: so it begins with what the
    tokenizer puts before a text, as DeepSeek's does with its beginning-of-text token.

    Args:
        preset: `plain`, `r1`, `qwen25-math-cot`, or `chat` (the tokenizer's own template).
        question: ordinary text: a marker that stands in it becomes no control token.
        tokenizer: the one that is saved with the model.
        shots: examples that stand before the question.

    Raises:
        UserError: the tokenizer does not know the preset's markers, or has no chat template.
    """
    added = tokenizer.get_added_vocab()
    if preset == "chat":
        pieces = _chat(question, tokenizer, shots)
    else:
        _refuse(_marker_faults(preset, added))
        pieces = _filled(PRESETS[preset], question, shots)
    ids = _lead(tokenizer) if preset == "plain" else []
    for text in _cut(pieces, _control_tokens(added)):
        ids += tokenizer.encode(text, add_special_tokens=False)
    return ids


def written(preset: str, question: str, shots: Shots = ()) -> str | None:
    """Return a prompt as text, for people; None for `chat` and for a preset that is not ours."""
    if preset not in PRESETS:
        return None
    return "".join(piece for piece, _ in _filled(PRESETS[preset], question, shots))


def read_shots(path: Path) -> tuple[tuple[str, str], ...]:
    """Return the examples of a JSON Lines or Parquet file of `question` and `answer`.

    Raises:
        UserError: it is not such a file, or has no examples.
    """
    rows = read_rows(path)
    if not rows:
        raise UserError("the file has no examples", path=path)
    for number, row in enumerate(rows, 1):
        if not all(isinstance(row.get(name), str) and row[name] for name in ("question", "answer")):
            raise UserError(f"example {number} has no 'question' or 'answer'", path=path)
    return tuple((row["question"], row["answer"]) for row in rows)


def check_preset(preset: str, tokenizer_json: Mapping[str, Any]) -> list[str]:
    """Return a line for each marker of a preset that is no single token of a tokenizer.

    Args:
        preset: its name.
        tokenizer_json: the content of the tokenizer's `tokenizer.json`.
    """
    return _marker_faults(preset, _added_tokens(tokenizer_json))


def preset_faults(preset: str, folder: Path) -> list[str]:
    """Return a line for each reason why a preset cannot be used with a model's tokenizer.

    Reads JSON alone, so that a login node can say it before anything is submitted.

    Args:
        preset: its name.
        folder: the model whose tokenizer is saved with the merged one.
    """
    if preset == "chat":
        return [] if _chat_template(folder) else [f"protocol.prompt: {_NO_TEMPLATE} ({folder})"]
    if not PRESETS[preset].markers:
        return []
    try:
        content = _tokenizer_json(folder)
    except (OSError, ValueError) as error:
        return [f"protocol.prompt: '{preset}' cannot be checked: {error}"]
    return [f"protocol.prompt: {fault}" for fault in check_preset(preset, content)]


def template_hash(preset: str, folder: Path) -> str:
    """Return the hash of what a preset puts around a question: a part of the protocol."""
    if preset == "chat":
        return short_hash(_chat_template(folder))
    text = [PRESETS[preset].template, PRESETS[preset].shot]
    return short_hash([*text, *_lead_settings(folder)] if preset == "plain" else text)


def turn_ends(folder: Path) -> set[int]:
    """Return the id that ends a turn of ChatML in a model's tokenizer, if it has one."""
    try:
        added = _added_tokens(_tokenizer_json(folder))
    except (OSError, ValueError):
        return set()
    return {added[_TURN_END]} if _TURN_END in added else set()


_NO_TEMPLATE = "the prompt preset 'chat' needs a tokenizer with a chat template"


def _lead(tokenizer: Tokenizer) -> list[int]:
    """Return the ids that a tokenizer puts before a text by itself."""
    bare, whole = (
        tokenizer.encode("a", add_special_tokens=by_itself) for by_itself in (False, True)
    )
    starts = range(len(whole) - len(bare) + 1)
    return whole[: next((n for n in starts if whole[n : n + len(bare)] == bare), 0)]


def _lead_settings(folder: Path) -> list[Any]:
    """Return what a tokenizer's files say of the ids that it puts before a text."""
    path = folder / "tokenizer_config.json"
    config = read_json(path) if path.is_file() else {}
    try:
        content = _tokenizer_json(folder)
    except (OSError, ValueError):
        content = {}
    return [content.get("post_processor"), config.get("add_bos_token")]


def _refuse(faults: Sequence[str]) -> None:
    if faults:
        raise UserError("\n".join(faults))


def _marker_faults(preset: str, added: Mapping[str, int]) -> list[str]:
    names = {number: name for name, number in added.items()}
    faults = []
    for marker, number in PRESETS[preset].markers.items():
        if marker not in added:
            other = f", and its token {number} is '{names[number]}'" if number in names else ""
            faults.append(
                f"the prompt preset '{preset}' needs '{marker}' as a single token (id {number} "
                f"where it comes from); this tokenizer reads it as ordinary text{other}: use "
                "another preset, or another merge.tokenizer"
            )
    return faults


def _filled(preset: Preset, question: str, shots: Shots) -> list[tuple[str, bool]]:
    """Return the prompt as pieces of text, and whether each is the template's own."""
    examples: list[tuple[str, bool]] = []
    for asked, answer in shots:
        examples += _parts(preset.shot, {"{question}": asked, "{answer}": answer})
    before, _, after = preset.template.partition("{question}")
    if preset.around:
        return [*examples, (before, True), (question, False), (after, True)]
    return [(before, True), *examples, (question, False), (after, True)]


def _parts(text: str, values: Mapping[str, str]) -> list[tuple[str, bool]]:
    """Replace the names in a text, in their order, by values that are not the template's own."""
    parts = []
    for name, value in values.items():
        before, _, text = text.partition(name)
        parts += [(before, True), (value, False)]
    return [*parts, (text, True)]


def _chat(question: str, tokenizer: Tokenizer, shots: Shots) -> list[tuple[str, bool]]:
    """Return the prompt of the tokenizer's own template.

    It is rendered with names in place of the contents: in it, no content can look like a marker.
    """
    if not tokenizer.chat_template:
        raise UserError(
            _NO_TEMPLATE,
            hint="use protocol.prompt = 'plain', or another merge.tokenizer",
        )
    contents = [text for shot in shots for text in shot] + [question]
    names = [f"l2s-content-{number}." for number in range(len(contents))]
    turns = [
        {"role": ("user", "assistant")[number % 2], "content": name}
        for number, name in enumerate(names)
    ]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    positions = [text.find(name) for name in names]
    if -1 in positions or positions != sorted(positions) or any(text.count(n) > 1 for n in names):
        raise UserError(
            "the tokenizer's chat template does not show each turn once and in order",
            hint="use another protocol.prompt",
        )
    return _parts(text, dict(zip(names, contents, strict=True)))


def _cut(pieces: Iterable[tuple[str, bool]], controls: Iterable[str]) -> list[str]:
    """Join pieces to texts that are encoded one by one.

    Texts are cut inside every control token that is not the template's own, and nowhere else: what
    stands there are the tokens of ordinary text.
    """
    text, cuts = "", {0}
    for piece, own in pieces:
        if not own:
            cuts |= {len(text) + place + 1 for c in controls for place in _places(c, piece)}
        text += piece
    edges = [*sorted(cuts), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


def _places(word: str, text: str) -> Iterable[int]:
    """Yield where a word begins in a text, overlapping ones too."""
    place = text.find(word)
    while place >= 0:
        yield place
        place = text.find(word, place + 1)


def _control_tokens(added: Iterable[str]) -> list[str]:
    """Return the added tokens that control, `<…>` and `[…]`; others are mere words."""
    return [word for word in added if len(word) > 2 and word[0] + word[-1] in ("<>", "[]")]


def _tokenizer_json(folder: Path) -> Mapping[str, Any]:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not an object")
    return content


def _added_tokens(tokenizer_json: Mapping[str, Any]) -> dict[str, int]:
    entries = tokenizer_json.get("added_tokens") or []
    return {entry["content"]: entry["id"] for entry in entries}


def _chat_template(folder: Path) -> Any:
    """Return the template that is saved with a tokenizer; empty if there is none."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    path = folder / "tokenizer_config.json"
    return read_json(path).get("chat_template", "") if path.is_file() else ""
