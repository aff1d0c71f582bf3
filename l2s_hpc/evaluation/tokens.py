"""How many tokens texts have, counted with a tokenizer that lies in a model's folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from l2s_hpc.errors import UserError

_AT_ONCE = 64
"""Texts that are encoded together: answers are long, and ids take more room than the text."""


class TokenCounter:
    """Counts the tokens of texts; special tokens around a text are none of them.

    What a model generated may have been cut into other tokens than its text is, and ended in one
    that the text does not show: these are approximately the generated ones.

    Attributes:
        sha256: of the folder's `tokenizer.json`, which decides all counts.
    """

    def __init__(self, folder: Path) -> None:
        """Read the tokenizer of a folder.

        Raises:
            UserError: there is none that can be read.
        """
        path = folder / "tokenizer.json"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(
                f"no tokenizer is there: tokenizer.json: {error.strerror or error}",
                hint="name the folder of a model, or of its tokenizer",
                path=folder,
            ) from None
        self.sha256 = hashlib.sha256(content).hexdigest()
        self._tokenizer = _parsed(content, path)

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text."""
        parts = [texts[start : start + _AT_ONCE] for start in range(0, len(texts), _AT_ONCE)]
        return [
            len(encoded.ids)
            for part in parts
            for encoded in self._tokenizer.encode_batch_fast([*part], add_special_tokens=False)
        ]


def _parsed(content: bytes, path: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UserError(
            "counting tokens needs the package tokenizers", hint="pip install 'l2s-hpc[node]'"
        ) from None
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except ValueError as error:
        raise UserError(f"the tokenizer cannot be read: {error}", path=path) from None
    # Both may be saved with a tokenizer: counts would be those of cut or filled texts.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
