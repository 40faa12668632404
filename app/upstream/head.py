"""Reads the head of an upstream's answer within bounds, and skips the interim answers before it.

http.client skips only `100 Continue`, and any number of them. It takes any other interim answer for the final one. Then
the next request on the connection, another user's, gets the final answer (DESIGN.md, 51).
"""

from __future__ import annotations

import http.client
import io
import socket
import time

from app.upstream.framing import Framing, announced

__all__ = ["Head"]

HEAD_BYTES = 65_536
HEAD_READS = 1000
READ_BYTES = 8192
INTERIM_ANSWERS = 100
LONGEST_LINE = 65_536

FREE_READS = 4
"""How many reads of a head let no other thread run in between. An ordinary head takes one or two reads."""


class Head(http.client.HTTPResponse):
    """The status and the headers of one final answer, and what was received together with them.

    HEAD_BYTES, HEAD_READS and INTERIM_ANSWERS bound all that comes before the final answer's body. Nothing here bounds
    the time. A call that waits too long is cancelled, which shuts the socket down.
    """

    def __init__(self, sock: socket.socket, debuglevel: int = 0, method: str | None = None) -> None:
        super().__init__(sock, debuglevel, method)
        self.interim = 0
        self.has_surplus = False
        """More than a head had been received when it was closed."""
        self._source = _Source(self.fp.detach())
        self.fp = io.BufferedReader(self._source, READ_BYTES)

    def framing(self) -> Framing:
        """Choose how the body is read. Raises: BadFraming when the headers contradict each other."""
        encodings = self.headers.get_all("transfer-encoding", [])
        return announced(self.status, encodings, self.headers.get_all("content-length", []))

    @property
    def leaves_connection_usable(self) -> bool:
        """Tell whether another request may follow on the connection once the body has been read to its end.

        No request may follow an answer that we may have misunderstood: one with interim answers before it, with lines
        that are no headers, or with two framings.
        """
        headers = self.headers
        is_framed_twice = "transfer-encoding" in headers and (self.version < 11 or "content-length" in headers)
        return not (self.will_close or self.interim or headers.defects or is_framed_twice)

    def rest(self) -> bytes:
        """Return the bytes that were received behind the head, once. Nothing is read from the socket, and `fp` gives
        nothing more."""
        self._source.is_ended = True
        return self.fp.read1()

    def close(self) -> None:
        if not self.isclosed() and not self._source.is_ended:
            self.has_surplus = bool(self.rest())
        super().close()

    def _read_status(self) -> tuple[str, int, str]:
        # http.client calls this for an answer, and for a proxy's answer to CONNECT.
        while True:
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if status == 101:
                raise http.client.HTTPException("another protocol, which was not requested")
            if not 100 <= status < 200:
                return version, status, reason
            self.interim += 1
            if self.interim > INTERIM_ANSWERS:
                raise http.client.HTTPException("too many interim answers")
            while line := self.fp.readline(LONGEST_LINE).strip(b"\r\n").lower():  # `_Source` bounds these lines.
                if line.startswith((b"content-length", b"transfer-encoding")):
                    raise http.client.HTTPException("an interim answer with a body")
            time.sleep(0)


class _Source(io.RawIOBase):
    """A socket's bytes for the reading of a head: bounded, and other threads run in between.

    A read that finds bytes returns at once. Without a pause, an upstream that never stops sending would hold up every
    stream.
    """

    def __init__(self, raw: io.RawIOBase) -> None:
        self.is_ended = False
        """Nothing more is read. Readers are told that no bytes are here at the moment."""
        self._raw = raw
        self._bytes = 0
        self._reads = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int | None:  # type: ignore[override]
        if self.is_ended:
            return None
        self._reads += 1
        if self._reads > FREE_READS:
            time.sleep(0)
        if self._reads > HEAD_READS or self._bytes > HEAD_BYTES:
            raise http.client.HTTPException("the head is too long")
        received = self._raw.readinto(buffer)
        self._bytes += received or 0
        return received

    def close(self) -> None:
        super().close()
        self._raw.close()
