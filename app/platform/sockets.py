"""Asks the kernel about connections, and ends them. No call here waits. Standard library only."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import sys
import termios
from typing import NamedTuple

__all__ = [
    "Progress",
    "is_connected",
    "is_dead",
    "is_quiet",
    "progress",
    "resets",
    "shut",
    "shut_reading",
    "unacknowledged",
]

_ESTABLISHED, _CLOSED = 1, 7  # Source: linux/include/net/tcp_states.h


def is_connected(sock: socket.socket) -> bool:
    """Tell whether the other side still has its half of a connection open. One system call, which never waits.

    Other kernels than Linux do not tell: the answer is yes then, and the next write finds out.
    """
    if not hasattr(socket, "TCP_INFO"):
        return True
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _ESTABLISHED
    except OSError:
        return False


def is_dead(sock: socket.socket) -> bool:
    """Tell whether nothing can be sent on a connection any more. One system call, which never waits.

    Other kernels than Linux do not tell: the answer is no then.
    """
    if not hasattr(socket, "TCP_INFO"):
        return False
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _CLOSED
    except OSError:
        return True


def is_quiet(sock: socket.socket) -> bool:
    """Tell whether no bytes wait to be read. One system call, which never waits.

    gevent's `poll` would let other threads run. This function does not. The end of a connection is no byte: see
    `is_connected`.
    """
    return int.from_bytes(fcntl.ioctl(sock, termios.FIONREAD, bytes(4)), sys.byteorder) == 0


def unacknowledged(sock: socket.socket) -> int:
    """Count the bytes that were sent and that the other side's kernel has not acknowledged. One system call.

    A kernel that does not tell gives 0.
    """
    try:
        return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except OSError:
        return 0


class Progress(NamedTuple):
    """How much of what was sent on a connection has arrived. Units: bytes, seconds."""

    unacknowledged: int
    """Bytes that were sent, or wait to be sent, and are not acknowledged."""
    quiet_seconds: float
    """Time since the other side acknowledged anything, even a probe."""
    taken: int
    """All bytes that have been acknowledged."""


def progress(sock: socket.socket) -> Progress | None:
    """Tell how much of what was sent has arrived. One or two system calls, which never wait.

    None when everything has arrived, and where the kernel does not tell.
    """
    waiting = unacknowledged(sock)
    if not waiting or not hasattr(socket, "TCP_INFO"):
        return None
    try:
        told = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        ((quiet_ms,), (taken,)) = _LAST_ACK_RECV.unpack_from(told, 56), _BYTES_ACKED.unpack_from(told, 120)
    except (OSError, struct.error):
        return None
    return Progress(waiting, quiet_ms / 1000, taken)


# Source: linux/include/uapi/linux/tcp.h, struct tcp_info
_TCP_INFO_BYTES = 128
_LAST_ACK_RECV = struct.Struct("=I")
_BYTES_ACKED = struct.Struct("=Q")


def resets(sock: socket.socket, *, on: bool) -> None:
    """Have a connection's close, however it comes, reset the connection instead of ending it in order. Bytes that the
    other side has not taken are lost then."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", int(on), 0))


def shut(sock: socket.socket) -> None:
    """End a connection. Every thread that waits on the connection goes on."""
    with contextlib.suppress(OSError):  # the connection has ended already
        sock.shutdown(socket.SHUT_RDWR)


def shut_reading(sock: socket.socket) -> None:
    """End the receiving half of a connection. A thread that waits for bytes gets the end instead."""
    with contextlib.suppress(OSError):  # the connection has ended already
        sock.shutdown(socket.SHUT_RD)
