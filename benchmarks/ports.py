"""Ports for a Ray cluster that starts on a machine where others run."""

import secrets
import socket
from contextlib import suppress

PORTS = (
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
    "object-manager-port",
    "node-manager-port",
)
"""Options of `ray start` that name a port of one node."""


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, all different; none that the system hands out by itself while a cluster starts."""
    found: list[int] = []
    for port in secrets.SystemRandom().sample(range(20000, 32000), 2000):
        with socket.socket() as one, suppress(OSError):
            one.bind(("", port))
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no free ports")
