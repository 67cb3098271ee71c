"""Bind TCP ports, with an early error that names the port instead of a late crash of a server."""

from __future__ import annotations

import errno
import socket

from csflow.errors import DeployError


def bind(host: str, port: int, *, share: bool = False) -> socket.socket:
    """Bind a TCP socket on which a server can listen later.

    Args:
        host: Address to bind.
        port: Port; 0 takes any free one.
        share: True to let a successor bind the same port while this server still answers.

    Raises:
        DeployError: If the port is in use or may not be bound.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        in_use = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        reason = "is in use" if in_use else f"cannot be bound ({error})"
        raise DeployError(f"Port {port} on {host} {reason}. Stop what uses it or choose another port.") from error
    return listener


def free_port(host: str) -> int:
    """Return a port that is free at the moment, for servers that cannot use a bound socket."""
    with bind(host, 0) as probe:
        return int(probe.getsockname()[1])
