"""Ports on this machine for servers that are about to start.

A port that was only seen to be free can be taken before its server listens: by another process that looks for one at
the same time, or by the kernel for an outgoing connection. These stand below the kernel's, and one process claims each.
"""

from __future__ import annotations

import socket

PORTS = range(20000, 32768)  # Linux takes those of outgoing connections from 32768 on (net.ipv4.ip_local_port_range)
_left = iter(PORTS)


def free_port() -> int:
    """A port that nobody listens on, and that is given to nobody else who asks here as long as this process lives.

    Raises:
        RuntimeError: none is left.
    """
    for port in _left:
        if _claim(port) and _is_free(port):
            return port
    raise RuntimeError(f"ports {PORTS[0]} to {PORTS[-1]}: each is taken, or was given out by this process")


def _claim(port: int) -> bool:
    """By a name in the kernel's abstract namespace, which belongs to one process and goes with it."""
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0hunyuan-port-{port}")
    except OSError:
        claim.close()
        return False
    claim.detach()  # open until this process ends
    return True


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
