"""A proxy with one thread for all, which waits for whoever takes nothing: one slow reader makes all of them late."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

READ_BYTES = 4096


class NaiveProxy:
    """Pass on what comes, in order, one connection after the other."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._partners: dict[socket.socket, socket.socket] = {}
        self._ended = threading.Event()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def end(self) -> None:
        self._ended.set()

    def serve(self) -> None:
        while not self._ended.is_set():
            for key, _ in self._selector.select(0.05):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj in self._partners:
                    self._pass_on(key.fileobj)
        for sock in (self._listener, *self._partners):
            sock.close()
        self._selector.close()

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, READ_BYTES)
        service = socket.create_connection(("127.0.0.1", self._port))
        for one, other in ((client, service), (service, client)):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._partners[one] = other
            self._selector.register(one, selectors.EVENT_READ)

    def _pass_on(self, sock: socket.socket) -> None:
        partner = self._partners[sock]
        with contextlib.suppress(OSError):
            if data := sock.recv(READ_BYTES):
                partner.sendall(data)
                return
        for each in (sock, partner):
            self._selector.unregister(each)
            del self._partners[each]
            each.close()


@contextmanager
def naive_proxy(port: int) -> Iterator[NaiveProxy]:
    """Serve until the context is left."""
    proxy = NaiveProxy(port)
    thread = threading.Thread(target=proxy.serve)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.end()
        thread.join(30)
