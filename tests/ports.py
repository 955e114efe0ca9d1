"""Ports for who listens later: below the range from which the kernel gives one to every connection."""

import random
import socket
from contextlib import suppress

_RANGE = range(20_000, 32_000)


def free_ports(count: int) -> list[int]:
    """So many ports of this machine, by chance, that nobody listens on."""
    found: list[int] = []
    for port in random.SystemRandom().sample(_RANGE, len(_RANGE)):
        if len(found) == count:
            break
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.append(port)
    return found
