"""Wait for bytes on a socket, and take them without a switch of threads for each piece.

Under gevent the loop itself calls the function. To wake a thread for every chunk costs more than all work on the chunk
(load/PROFILE.md). Only this file knows gevent. Elsewhere `threading` is enough.
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
    """Call `receive` whenever there are bytes to read, or the end. Return when `receive` returns False.

    `receive` must not wait for anything: it may run in the worker's event loop. Raises: whatever `receive` raises.
    """
    if in_loop():
        _in_loop(sock, receive)
    else:
        _in_thread(sock, receive)


def in_loop() -> bool:
    """Tell whether gevent has patched this process: its threads are greenlets then, and only one runs at a time."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("socket"))


def plain_lock() -> AbstractContextManager[object]:
    """Make a lock of the interpreter itself, which is cheap.

    Never hold the lock while gevent may let another thread run: a thread that wants the lock would wait for ever.
    """
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
            failure = None  # the exception knows this frame: if the frame knew it too, neither would be freed
