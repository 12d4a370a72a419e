import socket
from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace

import pytest
from torch.distributed import TCPStore

from launch import rendezvous
from launch.rendezvous import hold_port, rank_variables


@pytest.fixture(autouse=True)
def let_go() -> Iterator[None]:
    yield
    while rendezvous._held:
        rendezvous._held.pop().close()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_held_port_is_for_whoever_names_it(address: str) -> None:
    """What rank 0 does between the choice of its port and the start of its process group."""
    port = hold_port(address)
    store = TCPStore(address, port, 1, is_master=True, timeout=timedelta(seconds=20), wait_for_workers=False)
    store.set("key", "value")
    assert store.get("key") == b"value"


def test_a_held_port_is_given_to_nobody_who_asks_for_any() -> None:
    port = hold_port("127.0.0.1")
    others = [socket.create_server(("127.0.0.1", 0)) for _ in range(200)]
    try:
        assert port not in {other.getsockname()[1] for other in others}
    finally:
        for other in others:
            other.close()


def test_variables_are_those_of_torchrun() -> None:
    context = SimpleNamespace(
        get_world_rank=lambda: 5,
        get_world_size=lambda: 8,
        get_local_rank=lambda: 1,
        get_local_world_size=lambda: 4,
    )
    assert rank_variables(context, "10.0.0.1", 29500) == {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "29500",
    }
