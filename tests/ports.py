"""Ports of this machine for what tests start."""

import socket


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody uses at this moment, all different."""
    held = [socket.socket() for _ in range(count)]  # all at once, so that no two are the same
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()
