"""Wait for bytes on a socket and take them where the waiting is done, without a switch of threads for each piece.

Under gevent the function is called by the loop itself: a thread that is woken for every token of its stream costs more
than all that it then does with it (load/PROFILE.md). The one place that knows of gevent; elsewhere `threading` will do.
"""

from __future__ import annotations

import select
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

__all__ = ["each_arrival", "in_loop", "plain_lock"]

_READABLE = 1


def each_arrival(sock: socket.socket, receive: Callable[[], bool]) -> None:
    """Call `receive` whenever there is something to be read, or an end, until it returns False; wait meanwhile.

    `receive` must not wait for anything: it may run in the worker's event loop. What it raises is raised here.
    """
    if in_loop():
        _in_loop(sock, receive)
    else:
        _in_thread(sock, receive)


def in_loop() -> bool:
    """Tell whether this process is gevent's: all that looks like threads is one, and none runs while another does."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("socket"))


def plain_lock() -> AbstractContextManager[object]:
    """Make a lock of the interpreter's own, which is cheap. Never to be held while others may run under gevent: they
    would wait for ever."""
    if in_loop():
        from gevent.monkey import get_original  # type: ignore[import-untyped]

        allocate: Callable[[], AbstractContextManager[object]] = get_original("_thread", "allocate_lock")
        return allocate()
    return threading.Lock()


def _in_thread(sock: socket.socket, receive: Callable[[], bool]) -> None:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    while True:
        poll.poll()
        if not receive():
            return


def _in_loop(sock: socket.socket, receive: Callable[[], bool]) -> None:
    from gevent import get_hub  # type: ignore[import-untyped]
    from gevent.hub import Waiter  # type: ignore[import-untyped]

    hub = get_hub()
    watcher = hub.loop.io(sock.fileno(), _READABLE)
    waiter = Waiter(hub)
    failure: BaseException | None = None

    def arrived() -> None:
        nonlocal failure
        try:
            if receive():
                return
        except BaseException as error:  # noqa: BLE001 - raised below, in the thread that asked
            failure = error
        watcher.stop()
        waiter.switch(None)

    watcher.start(arrived)
    try:
        waiter.get()
    finally:
        watcher.stop()
        watcher.close()
    if failure is not None:
        try:
            raise failure
        finally:
            failure = None  # it knows this frame, which must not know it: they would keep all that called alive
