"""Slurm's accounting for a test cluster: slurmdbd and a MariaDB of its own.

The database listens on a socket in the cluster's folder and on no port, so that it needs neither a
password nor rights, and any number of them run side by side.
"""

from __future__ import annotations

import getpass
import os
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from .processes import LOOPBACK, ClusterError, reserve_port

COMMANDS: Final = ("slurmdbd", "sacctmgr", "sacct", "mariadbd", "mariadb-install-db")
DAEMONS: Final = ("slurmdbd", "mariadbd")  # in the order of their end


class Accounting:
    """What the daemons and slurm.conf are told; `SlurmCluster` starts and ends the daemons."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "mariadb.socket"
        self.data = folder / "mariadb"
        # slurmdbd cannot be told a socket, but its client library reads this.
        self.variables: Mapping[str, str] = {"MYSQL_UNIX_PORT": str(self.socket)}
        self._port: socket.socket | None = None

    def settings(self) -> list[str]:
        """Lines for slurm.conf; reserves the port."""
        self._port = self._port or reserve_port()
        return [
            "AccountingStorageType=accounting_storage/slurmdbd",
            f"AccountingStorageHost={LOOPBACK}",
            f"AccountingStoragePort={self._port.getsockname()[1]}",
            f"AccountingStoragePass={self.folder}/munge.socket",  # sacctmgr ignores AuthInfo
            "AccountingStorageEnforce=limits,qos",
        ]

    def install(self, env: Mapping[str, str]) -> None:
        """Writes slurmdbd.conf and an empty database."""
        conf = self.folder / "slurmdbd.conf"
        conf.touch(mode=0o600)  # slurmdbd insists
        conf.write_text(self._slurmdbd_conf(), encoding="utf-8")
        command = ["mariadb-install-db", *self._options(), "--skip-test-db"]
        command += ["--auth-root-authentication-method=normal"]  # whoever reaches the socket
        with (self.folder / "log" / "mariadb-install-db.log").open("wb") as log:
            done = subprocess.run(command, env=env, stdout=log, stderr=log, check=False)
        if done.returncode:
            raise ClusterError(f"mariadb-install-db: exit {done.returncode}, see {log.name}")

    def database(self) -> list[str]:
        """The command of the database, which need not outlive a power failure."""
        files = [f"--socket={self.socket}", f"--pid-file={self.folder}/mariadbd.pid"]
        fast = ["--skip-log-bin", "--innodb-flush-log-at-trx-commit=0"]
        return ["mariadbd", *self._options(), *files, "--skip-networking", *fast]

    def close(self) -> None:
        """Gives the port back."""
        if self._port is not None:
            self._port.close()
            self._port = None

    def _options(self) -> list[str]:
        root = ["--user=root"] if os.geteuid() == 0 else []  # else it refuses to be root
        return ["--no-defaults", f"--datadir={self.data}", *root]

    def _slurmdbd_conf(self) -> str:
        assert self._port is not None, "settings() reserves the port"
        lines = [
            "AuthType=auth/munge",
            f"AuthInfo=socket={self.folder}/munge.socket",
            "CommunicationParameters=NoInAddrAny",  # listen on DbdAddr only
            f"DbdAddr={LOOPBACK}",
            f"DbdHost={socket.gethostname().partition('.')[0]}",
            f"DbdPort={self._port.getsockname()[1]}",
            f"SlurmUser={getpass.getuser()}",
            f"PidFile={self.folder}/slurmdbd.pid",
            f"LogFile={self.folder}/log/slurmdbd.log",
            "StorageType=accounting_storage/mysql",
            "StorageHost=localhost",  # by the socket, see `variables`
            "StorageUser=root",  # of the database, not of the machine
            "StorageLoc=slurm",
        ]
        return "\n".join([*lines, ""])
