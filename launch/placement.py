"""Whether the nodes of a cluster can hold a world. Pure: nodes come as Ray's resource tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from t4p.config.run import ClusterConfig


@dataclass(frozen=True)
class WorkerResources:
    """What one worker reserves on its node.

    Attributes:
        num_cpus: logical CPUs, as the nodes were started with.
        num_gpus: 0 or 1.
    """

    num_cpus: int
    num_gpus: int

    def __str__(self) -> str:
        return f"{self.num_cpus} CPU(s)" + (f" and {self.num_gpus} GPU" if self.num_gpus else "")


def worker_resources(cluster: ClusterConfig) -> WorkerResources:
    """A GPU each where the configuration says that nodes have some."""
    return WorkerResources(num_cpus=cluster.cpus_per_worker, num_gpus=1 if cluster.gpus_per_node else 0)


def num_places(nodes: Sequence[Mapping[str, float]], worker: WorkerResources) -> int:
    """How many workers the nodes hold when nothing else runs on them.

    Args:
        nodes: per living node, the total of each resource by Ray's name ("CPU", "GPU", ...).
    """
    return sum(_places_on(node, worker) for node in nodes)


def describe_shortage(nodes: Sequence[Mapping[str, float]], worker: WorkerResources, num_workers: int) -> str | None:
    """One message that says why the world cannot be placed; None where it can."""
    places = num_places(nodes, worker)
    if places >= num_workers:
        return None
    found = ", ".join(f"{node.get('CPU', 0):g} CPU(s) and {node.get('GPU', 0):g} GPU(s)" for node in nodes) or "none"
    return (
        f"the cluster has places for {places} of {num_workers} workers, each with {worker}; its nodes: {found}. "
        "Use fewer --workers, change cluster.cpus_per_worker or cluster.gpus_per_node, or add nodes"
    )


def _places_on(node: Mapping[str, float], worker: WorkerResources) -> int:
    places = int(node.get("CPU", 0) // worker.num_cpus)
    return min(places, int(node.get("GPU", 0) // worker.num_gpus)) if worker.num_gpus else places
