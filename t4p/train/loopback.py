"""Ranks that are all on one machine find each other there alone, and not where other machines reach them.

torch's own store listens on every interface, and whoever reaches it can write into it. It has no password; neither has
gloo or NCCL, so the network between the nodes of a cluster must be closed to others.
"""

from __future__ import annotations

import os
import socket
import sys
from datetime import timedelta

from torch import distributed
from torch.distributed import TCPStore

LOOPBACK = "127.0.0.1"


def join_on_loopback(backend: str, timeout: timedelta) -> None:
    """Start the process group of a world whose MASTER_ADDR is 127.0.0.1. Collective.

    Does nothing for another world, which torch starts by itself, and where there is a group already.

    Args:
        timeout: for the ranks to meet, and for collectives.
    """
    # torchrun's agent may hold the store, at the same port, and then no rank does.
    agent_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
    if distributed.is_initialized() or agent_store or os.environ["MASTER_ADDR"] != LOOPBACK:
        return
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else gloo takes the address of the machine's name
    rank, world_size, port = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    distributed.init_process_group(
        backend,
        store=loopback_store(rank, world_size, port, timeout),
        rank=rank,
        world_size=world_size,
        timeout=timeout,
    )


def loopback_store(rank: int, world_size: int, port: int, timeout: timedelta) -> TCPStore:
    """A store at 127.0.0.1 and nowhere else; rank 0 listens, at any port where none is named (0)."""
    if rank != 0:
        return TCPStore(LOOPBACK, port, world_size, is_master=False, timeout=timeout)
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((LOOPBACK, port))
    listening.listen(socket.SOMAXCONN)
    return TCPStore(
        LOOPBACK,
        listening.getsockname()[1],
        world_size,
        is_master=True,
        timeout=timeout,
        wait_for_workers=False,  # they meet in the group's first collective
        master_listen_fd=listening.detach(),  # the store closes it
    )
