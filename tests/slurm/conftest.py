"""The cluster that the tests of this folder share.

`pytest tests/slurm` runs them, `pytest -m "not slurm"` leaves them out.  Where Slurm is not
installed they are skipped, except in CI (`CI=true`): there a silent skip would be a lie.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .cluster import SlurmCluster, missing_commands

HERE = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slurm: starts a real Slurm cluster on this machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:  # those of the whole session
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.slurm)


def require_slurm() -> None:
    """Skips the test, or fails it in CI, where Slurm is not installed."""
    missing = missing_commands()
    if not missing:
        return
    reason = (
        f"no {', '.join(missing)} on this machine"
        " (Debian: apt-get install munge slurmctld slurmd slurm-client)"
    )
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def slurm_installed() -> None:
    """For a test that starts a cluster of its own."""
    require_slurm()


@pytest.fixture(scope="session")
def slurm(
    slurm_installed: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SlurmCluster]:
    """A running cluster of four nodes; a test gives back every node and the controller alive."""
    with SlurmCluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster
