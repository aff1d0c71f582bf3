"""Prompts: exact ids of each preset in the layouts of both parents, and what is refused.

The tokenizers are made here. Their added tokens have the ids of DeepSeek-R1's and of Qwen2.5's; all
other text is one id a byte.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from l2s_hpc.config import ModelSource, SearchConfig, SiteConfig, load_job
from l2s_hpc.controller.resolve import resolve
from l2s_hpc.errors import UserError
from l2s_hpc.evaluation.prompts import (
    INSTRUCTION,
    build,
    check_preset,
    preset_faults,
    read_shots,
    template_hash,
    turn_ends,
)
from tests.helpers import TOY, search_config

FIRST = 151643
R1 = (
    "<｜end▁of▁sentence｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<｜begin▁of▁sentence｜>",
    "<|EOT|>",
    "<think>",
    "</think>",
)
QWEN = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
)
R1_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}<｜User｜>{{ m['content'] }}"
    "{% else %}<｜Assistant｜>{{ m['content'].split('</think>')[-1] }}<｜end▁of▁sentence｜>"
    "{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)
BYTES = pre_tokenizers.ByteLevel.alphabet()


@cache
def tokenizer(layout: tuple[str, ...]) -> Any:
    """A tokenizer whose added tokens begin at 151643, as those of both parents do."""
    words = {letter: number for number, letter in enumerate(sorted(BYTES))}
    words |= {f"unused {number}": number for number in range(len(words), FIRST)}
    bare = Tokenizer(models.WordLevel(words, unk_token="!"))
    bare.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.Split("", "isolated")]
    )
    bare.decoder = decoders.ByteLevel()
    # As with DeepSeek's, only those that begin and end a text are special.
    for number, word in enumerate(layout):
        special = layout is QWEN or number in (0, 3)
        add = bare.add_special_tokens if special else bare.add_tokens
        add([AddedToken(word, normalized=False, special=special)])
    if layout is R1:
        begin = (layout[3], FIRST + 3)
        bare.post_processor = processors.TemplateProcessing(
            single=f"{begin[0]} $A", special_tokens=[begin]
        )
    found = PreTrainedTokenizerFast(
        tokenizer_object=bare,
        bos_token=layout[3] if layout is R1 else None,
        eos_token=layout[0],
        chat_template=R1_TEMPLATE if layout is R1 else None,
    )
    assert [found.convert_tokens_to_ids(word) for word in layout] == list(range(FIRST, FIRST + 7))
    return found


def ids(text: str) -> list[int]:
    """The ids of ordinary text: one a byte."""
    return [sorted(BYTES).index(letter) for letter in _byte_letters(text)]


def _byte_letters(text: str) -> str:
    return "".join(
        word for word, _ in pre_tokenizers.ByteLevel(False, use_regex=False).pre_tokenize_str(text)
    )


def test_these_tokenizers_are_like_the_real_ones() -> None:
    """Markers are single ids in text, and DeepSeek's begins every text unless told not to."""
    assert tokenizer(R1).encode("a<｜User｜>b")[0] == 151646
    assert tokenizer(R1).encode("<｜User｜>é", add_special_tokens=False) == [151644, *ids("é")]
    assert tokenizer(QWEN).encode("<|im_start|>a") == [151644, *ids("a")]
    assert len(tokenizer(QWEN).encode("<think>")) == 7
    assert tokenizer(R1).decode(ids("a\\boxed{é}")) == "a\\boxed{é}"


def test_plain_is_the_published_protocol() -> None:
    """Text for the engine, before which DeepSeek's tokenizer puts its first id, and Qwen's none."""
    text = (
        "User: What is 2?\n"
        "Please reason step by step, and put your final answer within \\boxed{}.\n\n"
        "Assistant:"
    )
    assert build("plain", "What is 2?", tokenizer(R1)) == [151646, *ids(text)]
    assert build("plain", "What is 2?", tokenizer(QWEN)) == ids(text)
    for layout in (R1, QWEN):
        assert build("plain", "What is 2?", tokenizer(layout)) == tokenizer(layout).encode(text)


def test_r1_begins_the_thinking_and_has_no_system_prompt() -> None:
    assert build("r1", "What is 2?", tokenizer(R1)) == [
        *(151646, 151644),
        *ids(f"What is 2?\n{INSTRUCTION}"),
        *(151645, 151648),
        *ids("\n"),
    ]


def test_qwen25_math_cot_is_chatml() -> None:
    assert build("qwen25-math-cot", "What is 2?", tokenizer(QWEN)) == [
        151644,
        *ids(f"system\n{INSTRUCTION}"),
        151645,
        *ids("\n"),
        151644,
        *ids("user\nWhat is 2?"),
        151645,
        *ids("\n"),
        151644,
        *ids("assistant\n"),
    ]


def test_chat_is_the_tokenizers_template_and_begins_once() -> None:
    found = build("chat", "What is 2?", tokenizer(R1))
    expected = [151646, 151644, *ids("What is 2?"), 151645, 151648, *ids("\n")]
    assert found == expected
    rendered = tokenizer(R1).apply_chat_template(
        [{"role": "user", "content": "What is 2?"}], tokenize=False, add_generation_prompt=True
    )
    assert tokenizer(R1).encode(rendered, add_special_tokens=False) == found


def test_examples_stand_before_the_question() -> None:
    shots = (("1+1", "\\boxed{2}"), ("a<｜User｜>b", "c</think>d"))
    shown = "1+1\n\\boxed{2}\n\na<｜User｜>b\nc</think>d\n\n"
    found = build("r1", "2+2", tokenizer(R1), shots)
    assert found[:2] == [151646, 151644]
    assert found[2:-3] == ids(f"{shown}2+2\n{INSTRUCTION}")
    plain = build("plain", "2+2", tokenizer(R1), shots)
    ask = f"\n{INSTRUCTION}\n\nAssistant:"
    assert plain[0] == 151646 and plain[1:] == ids(
        f"User: 1+1{ask} \\boxed{{2}}\n\n\nUser: a<｜User｜>b{ask} c</think>d\n\n\nUser: 2+2{ask}"
    )
    chatml = build("qwen25-math-cot", "2+2", tokenizer(QWEN), shots)
    start = chatml.index(151644, 1)
    turn = [*ids(f"user\n{shown}2+2"), 151645, *ids("\n"), 151644, *ids("assistant\n")]
    assert chatml[start + 1 :] == turn
    chat = build("chat", "2+2", tokenizer(R1), shots)
    assert chat == [
        *(151646, 151644, *ids("1+1"), 151645, *ids("\\boxed{2}"), 151643),
        *(151644, *ids("a<｜User｜>b"), 151645, *ids("c</think>d"), 151643),
        *(151644, *ids("2+2"), 151645, 151648, *ids("\n")),
    ]


hostile = st.lists(
    st.one_of(
        st.sampled_from([*R1, *QWEN, "<", "|>", "｜>", "\\boxed{", "\n"]), st.text(max_size=4)
    )
).map("".join)


@settings(max_examples=150)
@given(hostile)
def test_a_question_is_ordinary_text_whatever_stands_in_it(question: str) -> None:
    for preset, layout in (
        ("plain", R1),
        ("plain", QWEN),
        ("r1", R1),
        ("chat", R1),
        ("qwen25-math-cot", QWEN),
    ):
        ours = build(preset, "", tokenizer(layout))
        found = build(preset, question, tokenizer(layout))
        assert [i for i in found if i >= FIRST] == [i for i in ours if i >= FIRST]
        assert tokenizer(layout).decode(found).count(question) >= 1
        texts = "".join(map(chr, found))
        assert "".join(map(chr, ids(question))) in texts


def test_a_wrong_preset_is_refused_with_the_marker_and_what_its_id_is_here() -> None:
    with pytest.raises(UserError) as error:
        build("qwen25-math-cot", "q", tokenizer(R1))
    assert error.value.exit_code == 2
    assert str(error.value).splitlines() == [
        "the prompt preset 'qwen25-math-cot' needs '<|im_start|>' as a single token (id 151644 "
        "where it comes from); this tokenizer reads it as ordinary text, and its token 151644 is "
        "'<｜User｜>': use another preset, or another merge.tokenizer",
        "the prompt preset 'qwen25-math-cot' needs '<|im_end|>' as a single token (id 151645 where "
        "it comes from); this tokenizer reads it as ordinary text, and its token 151645 is "
        "'<｜Assistant｜>': use another preset, or another merge.tokenizer",
    ]
    with pytest.raises(UserError, match=r"'<think>' .* its token 151648 is '<\|box_start\|>'"):
        build("r1", "q", tokenizer(QWEN))
    with pytest.raises(UserError, match="needs a tokenizer with a chat template") as error:
        build("chat", "q", tokenizer(QWEN))
    assert "protocol.prompt = 'plain'" in error.value.hint


def test_a_template_that_hides_the_question_is_refused() -> None:
    odd = PreTrainedTokenizerFast(tokenizer_object=tokenizer(QWEN).backend_tokenizer)
    for template in ("no question", "{{ messages[0]['content'] }}{{ messages[0]['content'] }}"):
        odd.chat_template = template
        with pytest.raises(UserError, match="does not show each turn once"):
            build("chat", "q", odd)


# What can be said without a tokenizer


@pytest.fixture
def folders(tmp_path: Path) -> dict[tuple[str, ...], Path]:
    """Folders with the files of both tokenizers."""
    found = {}
    for name, layout in (("r1", R1), ("qwen", QWEN)):
        tokenizer(layout).save_pretrained(tmp_path / name)
        found[layout] = tmp_path / name
    return found


def test_presets_are_checked_from_json_alone(folders: dict[tuple[str, ...], Path]) -> None:
    for layout, works in ((R1, {"plain", "r1", "chat"}), (QWEN, {"plain", "qwen25-math-cot"})):
        for preset in ("plain", "r1", "chat", "qwen25-math-cot"):
            faults = preset_faults(preset, folders[layout])
            assert bool(faults) == (preset not in works), (preset, faults)
            assert all(fault.startswith("protocol.prompt: ") for fault in faults)
    content = json.loads((folders[R1] / "tokenizer.json").read_text(encoding="utf-8"))
    (first, _) = check_preset("qwen25-math-cot", content)
    assert "its token 151644 is '<｜User｜>'" in first
    (folders[R1] / "tokenizer.json").write_text("{", encoding="utf-8")
    assert "'r1' cannot be checked" in preset_faults("r1", folders[R1])[0]


def test_a_turn_of_chatml_ends_in_its_own_id(folders: dict[tuple[str, ...], Path]) -> None:
    assert turn_ends(folders[QWEN]) == {151645}
    assert turn_ends(folders[R1]) == turn_ends(folders[R1].parent) == set()
    assert turn_ends(TOY / "slow") == {454}


def test_the_template_belongs_to_the_protocol(folders: dict[tuple[str, ...], Path]) -> None:
    hashes = {template_hash(preset, folders[R1]) for preset in ("plain", "r1", "chat")}
    assert len(hashes) == 3
    assert template_hash("r1", folders[QWEN]) in hashes
    assert template_hash("plain", folders[QWEN]) not in hashes, "it begins otherwise there"
    before = template_hash("chat", folders[R1])
    with (folders[R1] / "chat_template.jinja").open("a", encoding="utf-8") as stream:
        stream.write(" ")
    assert template_hash("chat", folders[R1]) != before


def _job(prompt: str, **protocol: Any) -> SearchConfig:
    config = search_config("task_arithmetic", [{"parameter": "weight", "low": 0, "high": 1}])
    settings = config.protocol.model_copy(update={"prompt": prompt, **protocol})
    return config.model_copy(update={"protocol": settings})


SITE = SiteConfig(name="here", executor="local", engine="scripted")


def test_a_wrong_preset_is_refused_before_anything_is_submitted(
    folders: dict[tuple[str, ...], Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="the prompt preset 'r1' needs") as error:
        resolve(_job("r1"), SITE)
    assert error.value.exit_code == 2
    protocol = resolve(_job("qwen25-math-cot"), SITE).evaluations["search"].protocol
    assert protocol.stop_ids == (454, 455) and protocol.prompt == "qwen25-math-cot"
    # Weights of the toy with the tokenizers of both parents: either may end the answer.
    models = {}
    for name, layout in (("slow", R1), ("fast", QWEN)):
        for path in (TOY / name).glob("*.safetensors"):
            (folders[layout] / path.name).symlink_to(path)
        body = json.loads((TOY / name / "config.json").read_text(encoding="utf-8"))
        text = json.dumps({**body, "eos_token_id": 151643})
        (folders[layout] / "config.json").write_text(text, encoding="utf-8")
        models[name] = ModelSource(path=str(folders[layout]))
    config = _job("r1").model_copy(update={"parents": models})
    config = config.model_copy(update={"merge": config.merge.model_copy(update={"base": None})})
    linear = config.merge.model_copy(update={"method": "linear"})
    resolved = resolve(config.model_copy(update={"merge": linear}), SITE)
    assert resolved.evaluations["search"].protocol.stop_ids == (151643, 151645)


def test_examples_come_from_a_file_and_belong_to_the_protocol(tmp_path: Path) -> None:
    def write(name: str, answer: str) -> None:
        row = json.dumps({"question": "1+1?", "answer": answer})
        (tmp_path / name).write_text(row + "\n", encoding="utf-8")

    write("shots.jsonl", "\\boxed{2}")
    write("copy.jsonl", "\\boxed{2}")
    job = tmp_path / "job.toml"
    text = (TOY.parents[1] / "jobs" / "toy.toml").read_text(encoding="utf-8")

    def resolved(name: str) -> Any:
        few_shot = f'[protocol]\nfew_shot = "{name}"'
        job.write_text(text.replace("[protocol]", few_shot), encoding="utf-8")
        return resolve(load_job(job), SITE)

    first, again = resolved("shots.jsonl"), resolved("copy.jsonl")
    protocol = first.evaluations["search"].protocol
    assert protocol.shots == (("1+1?", "\\boxed{2}"),)
    assert first.science == again.science, "where the file lies says nothing"
    write("shots.jsonl", "two")
    changed = resolved("shots.jsonl")
    assert changed.evaluations["search"].protocol.hash != protocol.hash
    assert changed.science != first.science


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file has no examples"),
        ('{"question": "q"}\n', "example 1 has no 'question' or 'answer'"),
        ('{"question": "q", "answer": "a"}\n{"question": "", "answer": "a"}\n', "example 2 has no"),
        (None, "file not found"),
    ],
)
def test_a_file_without_examples_is_refused(
    tmp_path: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "a.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_shots(tmp_path / "a.jsonl")
