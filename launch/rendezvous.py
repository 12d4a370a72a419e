"""How the ranks that Ray Train starts find each other: the variables that torchrun gives, so training joins one way.

Ray Train's own backend for torch does the same and imports torch where nothing else needs it, in the driver and in the
controller: 3 of the 21 CPU seconds that a launch cost.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any

from launch.ray_package import load_backend, load_ray, load_ray_train

# Rank 0 holds its port until its process ends: it is used seconds later, when torch and DeepSpeed have been imported.
_held: list[socket.socket] = []


def rendezvous_config() -> Any:
    """What Ray Train calls a backend: sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT on every worker.

    Workers of one node see the GPUs of all of them, as after torchrun, and take theirs by LOCAL_RANK.
    """
    backend, config = load_backend()

    class Rendezvous(backend):  # type: ignore[misc, valid-type] # a class of a package that is loaded on use
        share_cuda_visible_devices = True

        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(set_variables, *worker_group.execute_single(0, hold_port_of_node))

    class RendezvousConfig(config):  # type: ignore[misc, valid-type]
        @property
        def backend_cls(self) -> type:
            return Rendezvous

    return RendezvousConfig()


def hold_port_of_node() -> tuple[str, int]:
    """Rank 0: the address at which other nodes reach this one, and a port that nobody else is given."""
    address = load_ray().util.get_node_ip_address()
    return address, hold_port(address)


def hold_port(address: str) -> int:
    """A free port, kept from everybody who asks for any free one; whoever names it may listen on it.

    Bound and not listening: with SO_REUSEADDR on both sides (torch's TCPStore sets it) Linux lets another bind it.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    held = socket.socket(family)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("", 0))
    _held.append(held)
    return held.getsockname()[1]


def set_variables(master_address: str, master_port: int) -> None:
    """Every rank: what `torch.distributed` reads (https://pytorch.org/docs/stable/elastic/run.html)."""
    os.environ.update(rank_variables(load_ray_train().get_context(), master_address, master_port))


def rank_variables(context: Any, master_address: str, master_port: int) -> Mapping[str, str]:
    """The variables of one rank.

    Args:
        context: Ray Train's, of this worker.
    """
    return {
        "RANK": str(context.get_world_rank()),
        "WORLD_SIZE": str(context.get_world_size()),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "MASTER_ADDR": master_address,
        "MASTER_PORT": str(master_port),
    }
