"""Prompts: the published text, the tokenizer's own template, and no second beginning of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from l2s_hpc.errors import UserError
from l2s_hpc.evaluation.prompts import INSTRUCTION, build


class Letters:
    """A tokenizer whose ids are code points, and that begins every text with 0 unless told not."""

    def __init__(self, chat_template: Any = "a template") -> None:
        self.chat_template = chat_template
        self.asked: dict[str, Any] = {}

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [0] * add_special_tokens + [ord(letter) for letter in text]

    def apply_chat_template(self, conversation: Sequence[dict[str, str]], **options: Any) -> Any:
        self.asked = {"conversation": conversation, **options}
        turns = "".join(f"<{turn['role']}>{turn['content']}" for turn in conversation)
        text = turns + "<assistant>" * options.get("add_generation_prompt", False)
        return text if not options.get("tokenize", True) else self.encode(text)


def text(ids: list[int]) -> str:
    assert 0 not in ids, "a beginning of text was added"
    return "".join(map(chr, ids))


def test_plain_is_the_published_protocol() -> None:
    assert text(build("plain", "What is 2?", Letters())) == (
        "User: What is 2?\n"
        "Please reason step by step, and put your final answer within \\boxed{}.\n\n"
        "Assistant:"
    )


def test_plain_needs_no_template() -> None:
    assert text(build("plain", "q", Letters(None))).endswith("Assistant:")


def test_chat_is_one_turn_in_the_tokenizers_template() -> None:
    tokenizer = Letters()
    assert text(build("chat", "What is 2?", tokenizer)) == "<user>What is 2?<assistant>"
    assert tokenizer.asked["conversation"] == [{"role": "user", "content": "What is 2?"}]
    assert INSTRUCTION not in text(build("chat", "q", tokenizer))


@pytest.mark.parametrize("template", [None, ""])
def test_chat_without_a_template_is_the_users_fault(template: str | None) -> None:
    with pytest.raises(UserError, match="needs a tokenizer with a chat template") as error:
        build("chat", "q", Letters(template))
    assert "protocol.prompt = 'plain'" in error.value.hint


@pytest.mark.parametrize("question", ["", "{braces} %s <b>", "User: no\n\nAssistant: yes", "é\n"])
def test_questions_stand_in_the_prompt_as_they_are(question: str) -> None:
    for preset in ("plain", "chat"):
        assert question in text(build(preset, question, Letters()))
