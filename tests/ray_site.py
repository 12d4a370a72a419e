"""A Ray cluster as its users have it: an address, a token, and packed shards that every node sees."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from ray_cluster import RayCluster, start_ray_cluster

from launch.jobs.client import Cluster, Token

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 600  # seconds, for one command


@dataclass(frozen=True)
class Site:
    """Attributes:
    url: of the dashboard, where jobs are submitted.
    cluster: the nodes; None where there is no cluster.
    """

    url: str
    token_path: Path
    shards: str
    cluster: RayCluster | None

    def environ(self, **changes: str) -> dict[str, str]:
        """Of a command that talks to the cluster over HTTP."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_path)}
        return {**inherited, "PYTHONPATH": str(ROOT), "TERM": "dumb", **token, **changes}

    def start(self, *arguments: str, **changes: str) -> subprocess.Popen:
        """`t4p launch ...` as a process."""
        return subprocess.Popen(
            [sys.executable, "-m", "commands.main", "launch", *arguments],
            env=self.environ(**changes),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ask(self, *arguments: str) -> dict:
        """The answer of `t4p launch ... --address URL --json`."""
        # The option outranks what Ray's own client would listen to.
        elsewhere = {"RAY_ADDRESS": "127.0.0.1:1", "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1"}
        status, out, err = ended(self.start(*arguments, "--address", self.url, "--json", **elsewhere))
        assert status == 0, err
        return json.loads(out)

    def pretrain(self, run_dir: Path, *overrides: str) -> list[str]:
        """The arguments of `t4p launch` for a job of two workers."""
        given = [f"run.dir={run_dir}", f"data.shards=[{self.shards}]", *overrides]
        return ["pretrain", str(ROOT / "configs" / "smoke.yaml"), *given, "--workers", "2", "--address", self.url]

    def connect(self) -> Cluster:
        return Cluster(self.url, Token(self.token_path.read_text(), "the test"))


@contextmanager
def start_ray_site(shards: str) -> Iterator[Site]:
    """A head and two nodes with room for one worker each."""
    with pytest.MonkeyPatch.context() as patch:
        # Jobs call `python`: as on a cluster whose nodes start Ray with the environment activated.
        patch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        with start_ray_cluster([1, 1]) as cluster:
            yield Site(cluster.dashboard_url, cluster.token_path, shards, cluster)


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    """Exit status, output and errors."""
    try:
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    return process.returncode, out, err
