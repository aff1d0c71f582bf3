"""The clusters that the tests of this folder share.

`pytest tests/slurm` runs them, `pytest -m "not slurm"` leaves them out.  What this machine lacks,
Slurm or the right to mount a disk, skips the tests that need it, except in CI (`CI=true`): there a
silent skip would be a lie.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from . import accounting
from .cluster import COMMANDS, SlurmCluster, kernel_kills, missing_commands
from .machine import SmallDisk, may_mount

HERE = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slurm: starts a real Slurm cluster on this machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:  # those of the whole session
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.slurm)


def require(there: bool, reason: str) -> None:
    """Skips the test, or fails it in CI, where what it needs is not there."""
    if there:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def require_commands(commands: Sequence[str], packages: str) -> None:
    missing = missing_commands(commands)
    lack = f"no {', '.join(missing)} on this machine (Debian: apt-get install {packages})"
    require(not missing, lack)


@pytest.fixture(scope="session")
def slurm_installed() -> None:
    """For a test that starts a cluster of its own."""
    require_commands(COMMANDS, "munge slurmctld slurmd slurm-client")


@pytest.fixture(scope="session")
def accounting_installed(slurm_installed: None) -> None:
    """For a test that starts a cluster of its own with `accounting=True`."""
    require_commands(accounting.COMMANDS, "slurmdbd mariadb-server")


@pytest.fixture(scope="session")
def kernel_kills_jobs(slurm_installed: None) -> None:
    """For a test that starts a cluster of its own with `memory_kill="kernel"`."""
    require(kernel_kills(), "no writable control group v1 for memory on this machine")


@pytest.fixture(scope="session")
def allowed_to_mount() -> None:
    """For a test that mounts a disk of its own or acts on another login node."""
    require(may_mount(), "neither disks nor hostnames can be made here: that needs root")


@pytest.fixture
def small_disk(allowed_to_mount: None, tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk of 8 MB that can be filled up, at `tmp_path / "disk"`."""
    with SmallDisk(tmp_path / "disk") as disk:
        yield disk


@pytest.fixture(scope="session")
def slurm(
    slurm_installed: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SlurmCluster]:
    """A running cluster of four nodes; a test gives back every node and the controller alive."""
    with SlurmCluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def slurm_with_accounting(
    accounting_installed: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SlurmCluster]:
    """The like with sacct; a test also gives back slurmdbd alive, and no limit."""
    with SlurmCluster(tmp_path_factory.mktemp("sacct"), accounting=True) as cluster:
        yield cluster


@pytest.fixture
def on_cluster(slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every command of the test find the cluster and no other."""
    for name in [n for n in os.environ if n.startswith(("SLURM", "SBATCH", "SQUEUE"))]:
        monkeypatch.delenv(name)
    for name, value in slurm.env.items():
        monkeypatch.setenv(name, value)
