"""Prompts as token ids, bound to the tokenizer that is saved with the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from l2s_hpc.errors import UserError

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


class Tokenizer(Protocol):
    """What a prompt needs of a tokenizer; those of transformers fit."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def apply_chat_template(
        self, conversation: Sequence[dict[str, str]], **options: Any
    ) -> Any: ...

    chat_template: Any


def build(preset: str, question: str, tokenizer: Tokenizer) -> list[int]:
    """Return the prompt's token ids; no second beginning-of-text token is ever added.

    Presets: `plain` is the published protocol of this method (`User: … Assistant:`), `chat` is the
    tokenizer's own template with the question as the only turn.
    """
    if preset == "plain":
        text = f"User: {question}\n{INSTRUCTION}\n\nAssistant:"
        return list(tokenizer.encode(text, add_special_tokens=False))
    if not tokenizer.chat_template:
        raise UserError(
            "the prompt preset 'chat' needs a tokenizer with a chat template",
            hint="use protocol.prompt = 'plain', or another merge.tokenizer",
        )
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    return list(tokenizer.encode(text, add_special_tokens=False))
