"""A Ray cluster of several nodes on this machine: real `ray start`, token authentication, ended to its last process.

One head without room for workers (the dashboard, the job server and the drivers of jobs live there) and as many worker
nodes as asked for. All nodes share this machine's address; each has a folder of its own, by which its processes are
known.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ports import free_ports

from launch.processes.caretaker import CARETAKER, end_processes

START_PATIENCE = 180  # seconds; a node takes 3 to 6 on two idle cores
START_TRIES = 3
OBJECT_STORE_BYTES = 80 * 2**20


class RayCluster:
    """Started by `start_ray_cluster`.

    Attributes:
        folder: above those of the nodes; every process of the cluster is known by it.
        address: host:port of the head's GCS, for RAY_ADDRESS.
        dashboard_url: http://127.0.0.1:port, where jobs are submitted.
        token_path: file with the token that every request needs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._num_nodes = 0
        self.token_path = folder / "token"
        self.token_path.touch(mode=0o600)
        self.token_path.write_text(secrets.token_hex(32))
        self._gcs_port, self._dashboard_port, self._client_port = free_ports(3)
        self.address = f"127.0.0.1:{self._gcs_port}"
        self.dashboard_url = f"http://127.0.0.1:{self._dashboard_port}"

    def environ(self) -> dict[str, str]:
        """What a process needs in its environment to join the cluster or to talk to it."""
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_path),
            "RAY_ADDRESS": self.address,
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def start_head(self) -> None:
        """Start the node that holds the cluster together."""
        self._start_nodes(
            [
                "--head",
                "--num-cpus=0",
                f"--port={self._gcs_port}",
                "--include-dashboard=true",
                "--dashboard-host=127.0.0.1",
                f"--dashboard-port={self._dashboard_port}",
                f"--ray-client-server-port={self._client_port}",
            ]
        )

    def add_nodes(self, num_cpus: Sequence[int]) -> None:
        """Start one worker node for each number, all at once; returns when Ray says that they are up."""
        self._start_nodes(*[[f"--address={self.address}", f"--num-cpus={count}"] for count in num_cpus])

    def end(self) -> None:
        """End every process of the cluster, and no other."""
        end_processes(self.folder)

    def _start_nodes(self, *arguments: list[str]) -> None:
        starts = [self._start(own_arguments) for own_arguments in arguments]
        try:
            for (folder, start), own_arguments in zip(starts, arguments, strict=True):
                self._wait_for(folder, start, own_arguments)
        finally:
            for _, start in starts:  # none still runs if all went well
                start.kill()
                start.wait()

    def _wait_for(self, folder: Path, start: subprocess.Popen, arguments: list[str]) -> None:
        """Ray gives up on a node that is not up after 30 s: on a busy machine another try may do."""
        for _ in range(START_TRIES - 1):
            if start.wait(timeout=START_PATIENCE) == 0:
                return
            end_processes(folder)
            folder, start = self._start(arguments)
        if start.wait(timeout=START_PATIENCE):
            raise RuntimeError(f"`ray start` failed {START_TRIES} times:\n{(folder / 'start.log').read_text()}")

    def _start(self, arguments: list[str]) -> tuple[Path, subprocess.Popen]:
        """A node's folder, and the `ray start` that starts it."""
        folder = self.folder / f"n{self._num_nodes:02d}"
        self._num_nodes += 1
        folder.mkdir()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        # A lost node is noticed after 5 missed looks, 3 s apart: too long for a test.
        environment |= self.environ() | {"RAY_health_check_period_ms": "1000", "RAY_worker_niceness": "0"}
        del environment["RAY_ADDRESS"]  # `ray start --head` would take it for a cluster to join
        command = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", *arguments]
        common = [
            f"--temp-dir={folder}",
            f"--object-store-memory={OBJECT_STORE_BYTES}",
            "--disable-usage-stats",
            "--dashboard-agent-listen-port=0",  # several nodes share this machine
        ]
        with (folder / "start.log").open("wb") as log:
            start = subprocess.Popen(
                [*command, *common], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
            )
        return folder, start


@contextmanager
def start_ray_cluster(num_cpus: Sequence[int]) -> Iterator[RayCluster]:
    """A head without CPUs for workers and one worker node for each number.

    Yields:
        The cluster; all of it is ended afterwards.
    """
    # Ray's sockets lie some 65 characters below a node's folder, and a path of AF_UNIX ends at 107.
    folder = Path(tempfile.mkdtemp(prefix="t4p-ray-", dir="/tmp"))
    cluster = RayCluster(folder)
    caretaker = subprocess.Popen([*CARETAKER, str(folder)], stdin=subprocess.PIPE)  # in case the tests are killed
    try:
        cluster.start_head()
        cluster.add_nodes(num_cpus)
        yield cluster
    finally:
        cluster.end()
        caretaker.kill()
        caretaker.communicate()
        shutil.rmtree(folder, ignore_errors=True)
