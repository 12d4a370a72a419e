from __future__ import annotations

import pytest

from launch.placement import WorkerResources, describe_shortage, num_places, worker_resources
from t4p.config.run import ClusterConfig

HEAD = {"memory": 1e10, "node:__internal_head__": 1.0}
CPU_NODE = {"CPU": 2.0}
GPU_NODE = {"CPU": 96.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("nodes", "worker", "places"),
    [
        ([HEAD, CPU_NODE, CPU_NODE], WorkerResources(1, 0), 4),
        ([HEAD, CPU_NODE, CPU_NODE], WorkerResources(2, 0), 2),
        ([HEAD, CPU_NODE, CPU_NODE], WorkerResources(3, 0), 0),  # four CPUs, but on no node three
        ([HEAD, CPU_NODE, GPU_NODE], WorkerResources(12, 1), 8),
        ([HEAD, CPU_NODE, GPU_NODE], WorkerResources(16, 1), 6),  # the CPUs run out first
        ([HEAD, CPU_NODE], WorkerResources(1, 1), 0),
        ([], WorkerResources(1, 0), 0),
    ],
)
def test_places_are_counted_node_by_node(nodes: list[dict[str, float]], worker: WorkerResources, places: int) -> None:
    assert num_places(nodes, worker) == places


def test_a_shortage_names_what_was_found_and_wanted() -> None:
    nodes = [HEAD, CPU_NODE, GPU_NODE]
    assert describe_shortage(nodes, WorkerResources(12, 1), 8) is None
    shortage = describe_shortage(nodes, WorkerResources(12, 1), 9)
    assert shortage is not None
    assert "places for 8 of 9 workers, each with 12 CPU(s) and 1 GPU" in shortage
    assert "2 CPU(s) and 0 GPU(s), 96 CPU(s) and 8 GPU(s)" in shortage
    assert "--workers" in shortage


def test_workers_have_a_gpu_where_nodes_have_some() -> None:
    assert worker_resources(ClusterConfig(cpus_per_worker=4)) == WorkerResources(4, 0)
    assert worker_resources(ClusterConfig(cpus_per_worker=4, gpus_per_node=8)) == WorkerResources(4, 1)
