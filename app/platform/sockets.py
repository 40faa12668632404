"""What the kernel knows of a connection, and takes without a wait. Standard library only."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import sys
import termios
from typing import NamedTuple

__all__ = ["Progress", "is_connected", "is_dead", "is_quiet", "progress", "shut", "unacknowledged"]

_ESTABLISHED, _CLOSED = 1, 7  # Source: linux/include/net/tcp_states.h


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


def is_dead(sock: socket.socket) -> bool:
    """Tell whether nothing can be sent on a connection any more; one system call, never waits.

    Where the kernel does not tell, the answer is no.
    """
    if not hasattr(socket, "TCP_INFO"):
        return False
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _CLOSED
    except OSError:
        return True


def is_quiet(sock: socket.socket) -> bool:
    """Tell whether no bytes wait to be read; one system call, never waits, nor lets others run (as gevent's `poll`
    does). An end is no byte: see `is_connected`."""
    return int.from_bytes(fcntl.ioctl(sock, termios.FIONREAD, bytes(4)), sys.byteorder) == 0


def unacknowledged(sock: socket.socket) -> int:
    """Tell how many bytes that were sent the other side's kernel has not acknowledged; one system call, never waits.

    Where the kernel does not tell, the answer is 0.
    """
    try:
        return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except OSError:
        return 0


class Progress(NamedTuple):
    """How far what was sent on a connection has got. Units: bytes, seconds."""

    unacknowledged: int
    """Bytes that were sent, or wait to be, and are not acknowledged."""
    quiet_seconds: float
    """Since the last acknowledgement of anything, be it of a probe."""
    taken: int
    """All bytes that were acknowledged so far."""


def progress(sock: socket.socket) -> Progress | None:
    """Tell how far what was sent has got; a system call or two, never waits. None when all of it has arrived, and where
    the kernel does not tell."""
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


def shut(sock: socket.socket) -> None:
    """End a connection, whoever is waiting on it."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
