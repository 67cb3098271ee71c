"""Ports are bound, shared and refused as said."""

from __future__ import annotations

import socket

import pytest

from csflow.errors import DeployError
from csflow.system.ports import bind, free_port

HOST = "127.0.0.1"


def test_port_zero_takes_a_free_one() -> None:
    with bind(HOST, 0) as one, bind(HOST, 0) as other:
        assert 0 < one.getsockname()[1] != other.getsockname()[1] > 0


def test_a_port_in_use_is_named() -> None:
    with bind(HOST, 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(DeployError, match=f"Port {port} on 127.0.0.1 is in use"):
            bind(HOST, port)
        with pytest.raises(DeployError, match="is in use"):
            bind(HOST, port, share=True)


def test_a_successor_may_share_a_port_that_is_shared() -> None:
    with bind(HOST, 0, share=True) as taken:
        taken.listen()
        with bind(HOST, taken.getsockname()[1], share=True) as successor:
            assert successor.getsockname() == taken.getsockname()


@pytest.mark.parametrize(("host", "port"), [("203.0.113.1", 0), (HOST, 70000)])
def test_what_cannot_be_bound_says_why(host: str, port: int) -> None:
    with pytest.raises(DeployError, match="cannot be bound"):
        bind(host, port)


def test_a_free_port_can_be_bound() -> None:
    port = free_port(HOST)
    with socket.socket() as server:
        server.bind((HOST, port))
        assert server.getsockname() == (HOST, port)
