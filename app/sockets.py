"""What the kernel knows of a connection. Standard library only."""

from __future__ import annotations

import select
import socket

__all__ = ["is_connected", "is_quiet"]

_ESTABLISHED = 1  # Source: linux/include/net/tcp_states.h


def is_connected(sock: socket.socket) -> bool:
    """Tell whether the other side still has its half of a connection open; one system call, never waits.

    Where the kernel does not tell (not Linux), the answer is yes, and the next write finds out.
    """
    if not hasattr(socket, "TCP_INFO"):
        return True
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _ESTABLISHED
    except OSError:
        return False


def is_quiet(sock: socket.socket) -> bool:
    """Tell whether nothing waits to be read: no bytes that nobody asked for, and no end. Never waits."""
    poll = select.poll()  # select() knows no descriptor over 1023
    poll.register(sock, select.POLLIN)
    return not poll.poll(0)
