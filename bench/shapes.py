"""What `bench/node.py` measures with: models of real shapes with random weights, and lengths.

The lengths are those of real answers: every fifth of MATH-500 by the plain average of
DeepSeek-R1-Distill-Qwen-1.5B and Qwen2.5-Math-1.5B, greedy, at most 10,240 tokens, counted from the
recorded texts with Qwen's vocabulary, the end token included. Five of them are at the limit.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

TOY = Path(__file__).parents[1] / "data" / "toy" / "slow"
MODELS = ("base", "slow", "fast")
LIMIT = 10_240

# fmt: off
LENGTHS = (
    408, 290, 414, 843, 1409, 1896, 226, 378, 319, 402, 1064, 307, 10240, 196, 486, 360, 1130, 356,
    431, 783, 10240, 488, 10240, 538, 1098, 413, 1249, 400, 572, 10240, 1769, 554, 496, 405, 2427,
    5538, 384, 381, 444, 671, 514, 1174, 646, 322, 437, 513, 870, 741, 10048, 1115, 582, 455, 572,
    284, 309, 211, 496, 5449, 493, 1609, 250, 629, 432, 769, 677, 441, 531, 304, 2968, 214, 599,
    3248, 568, 1065, 415, 868, 1327, 406, 984, 310, 1382, 240, 374, 868, 500, 10240, 207, 771, 476,
    1743, 766, 428, 518, 308, 1579, 2876, 1357, 2080, 1017, 715,
)
# fmt: on

_SHAPES: dict[str, dict[str, Any]] = {
    "toy": {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 460,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    },
    "1.5B": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
        "max_position_embeddings": 131_072,
        "tie_word_embeddings": True,
    },
    "7B": {
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152_064,
        "max_position_embeddings": 131_072,
        "tie_word_embeddings": False,
    },
}
SHAPES = tuple(_SHAPES)

_SPREAD, _NOISE = 0.02, 0.002
_THREADS = 8


def config(shape: str) -> dict[str, Any]:
    """Return config.json of a model of that shape."""
    found = json.loads((TOY / "config.json").read_text(encoding="utf-8")) | _SHAPES[shape]
    found["layer_types"] = ["full_attention"] * found["num_hidden_layers"]
    return dict(found)


def stop_id(shape: str) -> int:
    """Return a token that the models of that shape never generate: its output row is zero."""
    return int(_SHAPES[shape]["vocab_size"]) - 1


def tensors(shape: str) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a model's tensors."""
    c = config(shape)
    hidden, inner = c["hidden_size"], c["intermediate_size"]
    keys = hidden // c["num_attention_heads"] * c["num_key_value_heads"]
    found = {"model.embed_tokens.weight": (c["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    if not c["tie_word_embeddings"]:
        found["lm_head.weight"] = (c["vocab_size"], hidden)
    for n in range(c["num_hidden_layers"]):
        layer = f"model.layers.{n}."
        for part, size in (("q", hidden), ("k", keys), ("v", keys)):
            found[f"{layer}self_attn.{part}_proj.weight"] = (size, hidden)
            found[f"{layer}self_attn.{part}_proj.bias"] = (size,)
        found[f"{layer}self_attn.o_proj.weight"] = (hidden, hidden)
        found[f"{layer}mlp.gate_proj.weight"] = (inner, hidden)
        found[f"{layer}mlp.up_proj.weight"] = (inner, hidden)
        found[f"{layer}mlp.down_proj.weight"] = (hidden, inner)
        found[f"{layer}input_layernorm.weight"] = (hidden,)
        found[f"{layer}post_attention_layernorm.weight"] = (hidden,)
    return found


def model_bytes(shape: str) -> int:
    """Return the bytes of one model's tensors in bfloat16."""
    return 2 * sum(math.prod(sides) for sides in tensors(shape).values())


def lengths(shape: str, items: int) -> list[int]:
    """Return how long each answer is; the toy's short context has them scaled down."""
    found = [LENGTHS[n % len(LENGTHS)] for n in range(items)]
    return [1 + length * 200 // LIMIT for length in found] if shape == "toy" else found


def prompts(shape: str, items: int) -> list[list[int]]:
    """Return prompts of random tokens, about as long as a question of MATH-500."""
    draw = random.Random(0)
    least, most = (20, 60) if shape == "toy" else (60, 180)
    return [[draw.randrange(450) for _ in range(draw.randint(least, most))] for _ in range(items)]


def make_models(folder: Path, shape: str, device: str) -> None:
    """Write three models with random weights: `slow` and `fast` are `base` with some noise."""
    import torch

    sides = tensors(shape)
    files = {name: _begin(folder / name, shape, sides) for name in MODELS}

    def make(number: int, tensor: str) -> None:
        draw = torch.Generator(device).manual_seed(number)
        mean = 1.0 if "norm" in tensor else 0.0
        base = mean + _SPREAD * torch.randn(sides[tensor], generator=draw, device=device)
        noises = [torch.randn(sides[tensor], generator=draw, device=device) for _ in "sf"]
        values = [base.bfloat16(), *((base + _NOISE * noise).bfloat16() for noise in noises)]
        for value, (file, starts) in zip(values, files.values(), strict=True):
            if tensor in ("lm_head.weight", "model.embed_tokens.weight"):
                value[-1] = 0
            _write(file, starts[tensor], value.cpu().view(torch.uint8).flatten().numpy())

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(make, range(len(sides)), sides))
    for file, _ in files.values():
        os.close(file)


def _begin(
    folder: Path, shape: str, sides: dict[str, tuple[int, ...]]
) -> tuple[int, dict[str, int]]:
    """Write all of a model but its weights; return its weight file, and where tensors begin."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config(shape)), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOY / name, folder)
    starts, header, end = {}, {}, 0
    for tensor, shape_ in sides.items():
        starts[tensor], end = end, end + 2 * math.prod(shape_)
        offsets = [starts[tensor], end]
        header[tensor] = {"dtype": "BF16", "shape": list(shape_), "data_offsets": offsets}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file = os.open(folder / "model.safetensors", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    _write(file, 0, len(text).to_bytes(8, "little") + text)
    return file, {tensor: start + 8 + len(text) for tensor, start in starts.items()}


def _write(file: int, start: int, content: bytes | Any) -> None:
    left = memoryview(content)
    while left:
        count = os.pwrite(file, left, start)
        left, start = left[count:], start + count
