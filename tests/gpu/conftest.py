"""What needs an NVIDIA GPU and vLLM for it (`pip install -r hpc/locks/cuda.txt`).

Elsewhere these tests are skipped with that reason, also in CI: most machines have no GPU.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:  # those of the whole session
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session", autouse=True)
def gpu_and_vllm() -> None:
    """Skips every test of this folder where torch sees no GPU or vLLM is missing."""
    if find_spec("torch") is None or find_spec("vllm") is None:
        pytest.skip("torch or vLLM is not installed (hpc/locks/cuda.txt)")
    import torch

    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
