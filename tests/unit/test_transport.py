"""Test the transport against real sockets: connections kept, cancelled and broken, proxies and TLS."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from app.upstream import pool as pools
from app.upstream.body import ERROR_BODY_BYTES
from app.upstream.call import Call, current_call
from app.upstream.transport import Transport
from tests.harness.certificates import Certificate, make_certificate
from tests.harness.upstream import (
    Close,
    Gate,
    Raw,
    Reset,
    Script,
    ScriptedUpstream,
    Stall,
    Token,
    TruncatedChunk,
    answer,
)
from tests.unit.fakes import PATIENCE_SECONDS
from tests.unit.rawserver import OK, Serve, read_request

pytestmark = pytest.mark.usefixtures("no_proxies", "no_rest")

ASKED = {"model": "m", "messages": [], "stream": True}


@pytest.fixture
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as server:
        yield server


class Client:
    """What the SDK does with the transport, without the SDK."""

    def __init__(self, transport: Transport) -> None:
        self._client = httpx2.Client(transport=transport, timeout=None, trust_env=False)

    def open(self, url: str, call: Call | None = None) -> httpx2.Response:
        token = current_call.set(call or Call())
        try:
            request = self._client.build_request("POST", url, json=ASKED)
            return self._client.send(request, stream=True)
        finally:
            current_call.reset(token)

    def ask(self, url: str, call: Call | None = None) -> bytes:
        response = self.open(url, call)
        try:
            return b"".join(response.iter_raw())
        finally:
            response.close()


@pytest.fixture
def client(transport: Transport) -> Client:
    return Client(transport)


def url_of(upstream: ScriptedUpstream) -> str:
    return f"{upstream.base_url}/chat/completions"


def assert_all_there(body: bytes) -> None:
    assert body.endswith(b"data: [DONE]\n\n")
    assert b"world" in body


# Kept connections


def test_connection_is_used_again_from_answer_to_answer(upstream: ScriptedUpstream, client: Client) -> None:
    for _ in range(5):
        assert_all_there(client.ask(url_of(upstream)))

    assert upstream.connections_opened == 1


def test_connections_are_shared_by_threads_and_never_mixed(upstream: ScriptedUpstream, client: Client) -> None:
    with ThreadPoolExecutor(8) as threads:
        for body in threads.map(client.ask, [url_of(upstream)] * 40):
            assert_all_there(body)

    assert upstream.connections_opened <= 8


def test_connection_whose_answer_was_not_read_to_its_end_is_closed(upstream: ScriptedUpstream, client: Client) -> None:
    upstream.then(Script(steps=[Token("a"), Stall()]))
    response = client.open(url_of(upstream))
    next(response.iter_raw())

    response.close()

    upstream.completions[0].wait_closed()
    assert_all_there(client.ask(url_of(upstream)))
    assert upstream.connections_opened == 2


def test_connection_that_the_upstream_closed_meanwhile_is_replaced(upstream: ScriptedUpstream, client: Client) -> None:
    client.ask(url_of(upstream))
    assert upstream.close_idle_connections() == 1

    assert_all_there(client.ask(url_of(upstream)))

    assert upstream.connections_opened == 2
    assert len(upstream.completions) == 2


def test_connection_that_the_upstream_closes_at_the_question_is_replaced(serve: Serve, client: Client) -> None:
    def answer_once(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(OK)
        read_request(connection)  # and gone without a word

    server = serve(answer_once)

    assert [client.ask(server.url), client.ask(server.url), client.ask(server.url)] == [b"ok"] * 3
    assert server.connections == 3


def test_connection_that_is_new_and_closed_at_the_question_is_an_error(serve: Serve, client: Client) -> None:
    server = serve(lambda connection, number: bool(read_request(connection)) and None)

    with pytest.raises(httpx2.TransportError):
        client.ask(server.url)
    assert server.connections == 1


def test_connection_idle_for_too_long_is_not_used_again(
    upstream: ScriptedUpstream, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.ask(url_of(upstream))
    monkeypatch.setattr(pools, "IDLE_SECONDS", -1.0)

    client.ask(url_of(upstream))

    assert upstream.connections_opened == 2


def test_connection_with_bytes_that_nobody_asked_for_is_not_used_again(serve: Serve, client: Client) -> None:
    sent = threading.Event()

    def answer(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(OK)
        if number == 1:
            connection.sendall(OK.replace(b"ok", b"xx"))
            sent.set()
        read_request(connection)
        connection.sendall(OK)
        read_request(connection)

    server = serve(answer)
    assert client.ask(server.url) == b"ok"
    assert sent.wait(PATIENCE_SECONDS)

    assert client.ask(server.url) == b"ok"


@pytest.mark.parametrize("more", [b"Connection: close\r\n", b""])
def test_connection_that_the_upstream_will_close_is_not_kept(serve: Serve, client: Client, more: bytes) -> None:
    def answer(connection: socket.socket, number: int) -> None:
        read_request(connection)
        version = b"HTTP/1.1" if more else b"HTTP/1.0"
        connection.sendall(OK.replace(b"HTTP/1.1", version).replace(b"Content-Length", more + b"Content-Length"))
        connection.recv(1)

    server = serve(answer)

    assert [client.ask(server.url), client.ask(server.url)] == [b"ok"] * 2
    assert server.connections == 2


def test_connection_sends_without_delay(upstream: ScriptedUpstream, client: Client, transport: Transport) -> None:
    client.ask(url_of(upstream))
    ((kept,),) = transport._pool._idle.values()

    assert kept.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
    assert kept.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) != 0


def test_transport_closed_closes_what_it_kept(upstream: ScriptedUpstream, client: Client, transport: Transport) -> None:
    client.ask(url_of(upstream))
    assert upstream.connections_open == 1

    transport.close()

    upstream.wait_until(lambda: upstream.connections_open == 0)


# Cancelling


@pytest.mark.parametrize("where", ["waiting", "reading"])
def test_call_cancelled_closes_its_connection_and_wakes_its_thread(
    upstream: ScriptedUpstream, client: Client, where: str
) -> None:
    gate = Gate("held")
    upstream.then(Script(before=[gate]) if where == "waiting" else Script(steps=[Token("a"), gate, Token("b")]))
    call = Call()
    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(client.ask, url_of(upstream), call)
        upstream.wait_reached("held")

        call.cancel()

        with pytest.raises(httpx2.TransportError):
            asking.result(PATIENCE_SECONDS)
    upstream.completions[0].wait_closed()
    upstream.open("held")
    assert_all_there(client.ask(url_of(upstream)))
    assert upstream.connections_opened == 2, "and the connection is not kept"


def test_call_cancelled_on_a_kept_connection_is_not_asked_again(upstream: ScriptedUpstream, client: Client) -> None:
    client.ask(url_of(upstream))
    upstream.then(Script(before=[Gate("held")]))
    call = Call()
    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(client.ask, url_of(upstream), call)
        upstream.wait_reached("held")
        call.cancel()
        with pytest.raises(httpx2.TransportError):
            asking.result(PATIENCE_SECONDS)

    assert len(upstream.completions) == 2


def test_call_cancelled_before_it_begins_asks_nothing(upstream: ScriptedUpstream, client: Client) -> None:
    call = Call()
    call.cancel()
    call.cancel()

    with pytest.raises(httpx2.TransportError):
        client.ask(url_of(upstream), call)
    assert upstream.requests == []


def test_call_cancelled_while_it_connects_wakes_its_thread(client: Client) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        with contextlib.ExitStack() as filling:
            for _ in range(4):  # the queue of those not accepted is full: a connect hangs
                filler = filling.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(address)
            call = Call()
            with ThreadPoolExecutor(1) as threads:
                asking = threads.submit(client.ask, f"http://127.0.0.1:{address[1]}/", call)
                while call._socket is None:
                    threading.Event().wait(0.001)
                call.cancel()
                with pytest.raises(httpx2.TransportError):
                    asking.result(PATIENCE_SECONDS)


def test_call_cancelled_after_its_end_harms_nobody(upstream: ScriptedUpstream, client: Client) -> None:
    call = Call()
    client.ask(url_of(upstream), call)

    call.cancel()

    assert_all_there(client.ask(url_of(upstream)))
    assert upstream.connections_opened == 1


# What breaks


@pytest.mark.parametrize(
    "script",
    [
        Script(steps=[Token("a"), Close()]),
        Script(steps=[Token("a"), Reset()]),
        Script(steps=[Token("a"), TruncatedChunk(b"data: cut")]),
        Script(headers={"content-length": "50"}, body=b"too short"),
    ],
    ids=["closed", "reset", "in a chunk", "counted"],
)
def test_body_that_breaks_off_raises_after_what_came(
    upstream: ScriptedUpstream, client: Client, script: Script
) -> None:
    upstream.then(script)
    response = client.open(url_of(upstream))
    if script.body is not None:
        threading.Timer(0.05, upstream.close_idle_connections).start()
    came = b""
    with pytest.raises(httpx2.TransportError):
        for piece in response.iter_raw():
            came += piece
    response.close()

    assert came or script.steps[1] == Reset()
    assert_all_there(client.ask(url_of(upstream)))


def test_body_without_a_length_ends_with_the_connection(serve: Serve, client: Client) -> None:
    def answer(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: a\n\n")

    assert client.ask(serve(answer).url) == b"data: a\n\n"


@pytest.mark.parametrize(
    "head",
    [
        b"garbage\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 100_000 + b"\r\n\r\n",
        b"",
    ],
    ids=["garbage", "status", "many", "long", "nothing"],
)
def test_head_that_cannot_be_read_is_a_transport_error(serve: Serve, client: Client, head: bytes) -> None:
    def answer(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(head)

    with pytest.raises(httpx2.TransportError):
        client.ask(serve(answer).url)


def test_chunk_that_is_no_chunk_is_a_protocol_error(serve: Serve, client: Client) -> None:
    def answer(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno size\r\nabc\r\n")
        read_request(connection)

    with pytest.raises(httpx2.RemoteProtocolError):
        client.ask(serve(answer).url)


def test_body_of_an_error_is_read_within_bounds_and_its_connection_closed(
    upstream: ScriptedUpstream, client: Client
) -> None:
    upstream.then(Script(status=500, body=b"x" * 10_000_000), Script(status=500, body=b"x" * 1000))

    assert ERROR_BODY_BYTES - 65_536 <= len(client.ask(url_of(upstream))) <= ERROR_BODY_BYTES
    assert client.ask(url_of(upstream)) == b"x" * 1000
    assert_all_there(client.ask(url_of(upstream)))
    assert upstream.connections_opened == 2


def test_refused_connection_is_a_connect_error(upstream: ScriptedUpstream, client: Client) -> None:
    upstream.refuse()

    with pytest.raises(httpx2.ConnectError):
        client.ask(url_of(upstream))


def test_host_that_has_no_address_is_a_connect_error(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)

    with pytest.raises(httpx2.ConnectError):
        client.ask("http://nowhere.test/")


def test_addresses_of_a_host_are_tried_in_turn(
    upstream: ScriptedUpstream, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        addresses = [closed.getsockname(), ("127.0.0.1", upstream.port)]
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)

        assert_all_there(client.ask("http://model.test/v1/chat/completions"))


def test_redirect_is_not_followed(upstream: ScriptedUpstream, client: Client) -> None:
    upstream.then(Script(status=302, headers={"location": url_of(upstream)}, body=b""))

    response = client.open(url_of(upstream))
    response.close()

    assert response.status_code == 302
    assert len(upstream.completions) == 1


def test_odd_bytes_before_the_head_end_in_an_error_and_not_in_a_hang(
    upstream: ScriptedUpstream, client: Client
) -> None:
    upstream.then(Script(before=[Raw(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n"), Close()]))

    with pytest.raises(httpx2.TransportError):
        client.ask(url_of(upstream))


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), "IP:127.0.0.1", "DNS:model.test")


@pytest.fixture
def tls_upstream(certificate: Certificate) -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream(certfile=str(certificate.public), keyfile=str(certificate.private)) as server:
        yield server


@pytest.fixture
def trusting(certificate: Certificate) -> Iterator[Transport]:
    made = Transport(verify=ssl.create_default_context(cafile=certificate.public))
    yield made
    made.close()


def test_certificate_that_nobody_vouches_for_is_a_connect_error(tls_upstream: ScriptedUpstream) -> None:
    with contextlib.closing(Transport()) as strict, pytest.raises(httpx2.ConnectError):
        Client(strict).ask(url_of(tls_upstream))
    assert tls_upstream.requests == []


def test_transport_without_certificates_sends_nothing_where_they_are_needed(tls_upstream: ScriptedUpstream) -> None:
    with httpx2.Client(transport=Transport(secure=False)) as client, pytest.raises(httpx2.UnsupportedProtocol):
        client.post(url_of(tls_upstream), content=b"a secret")
    assert tls_upstream.requests == []


def test_certificate_of_another_host_is_a_connect_error(
    tls_upstream: ScriptedUpstream, trusting: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", tls_upstream.port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)

    with pytest.raises(httpx2.ConnectError):
        Client(trusting).ask("https://other.test/")
    assert tls_upstream.requests == []


def test_certificate_that_is_trusted_is_answered_and_its_connection_kept(
    tls_upstream: ScriptedUpstream, trusting: Transport
) -> None:
    client = Client(trusting)
    for _ in range(2):
        assert_all_there(client.ask(url_of(tls_upstream)))

    assert tls_upstream.connections_opened == 1


def test_call_over_tls_cancelled_while_it_reads_closes_its_connection(
    tls_upstream: ScriptedUpstream, trusting: Transport
) -> None:
    tls_upstream.then(Script(steps=[Token("a"), Gate("held")]))
    call = Call()
    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(Client(trusting).ask, url_of(tls_upstream), call)
        tls_upstream.wait_reached("held")
        call.cancel()
        with pytest.raises(httpx2.TransportError):
            asking.result(PATIENCE_SECONDS)
    tls_upstream.completions[0].wait_closed()


# Proxies


def named(upstream: ScriptedUpstream) -> str:
    """Give the upstream's address under a name that only the proxy knows."""
    return url_of(upstream).replace("127.0.0.1", "model.test")


class Proxy:
    """Tunnel to wherever CONNECT asks, in threads, and note it."""

    def __init__(self, serve: Serve, *, status: bytes = b"200 OK") -> None:
        self.heads: list[bytes] = []
        self._status = status
        self.server = serve(self._tunnel)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    def _tunnel(self, client: socket.socket, number: int) -> None:
        self.heads.append(read_request(client))
        target = self.heads[-1].split(b" ")[1].decode()
        client.sendall(b"HTTP/1.1 " + self._status + b"\r\n\r\n")
        if not self._status.startswith(b"200"):
            return
        host, _, port = target.rpartition(":")
        assert host == "model.test"
        with socket.create_connection(("127.0.0.1", int(port))) as there:
            back = threading.Thread(target=pump, args=(there, client), daemon=True)
            back.start()
            pump(client, there)
            back.join(PATIENCE_SECONDS)


def pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("form", ["url", "address", "slash"])
def test_proxy_of_the_environment_is_tunnelled_through_with_tls(
    serve: Serve, tls_upstream: ScriptedUpstream, trusting: Transport, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    proxy = Proxy(serve)
    value = {"url": proxy.url, "address": proxy.url.removeprefix("http://"), "slash": proxy.url + "/"}[form]
    monkeypatch.setenv("HTTPS_PROXY", value)
    client = Client(trusting)

    for _ in range(2):
        assert_all_there(client.ask(named(tls_upstream)))

    (head,) = proxy.heads
    assert head.startswith(f"CONNECT model.test:{tls_upstream.port} HTTP/1".encode())
    assert b"uthorization" not in head
    trusting.close()


def test_proxy_with_a_user_is_told_name_and_password(
    serve: Serve, tls_upstream: ScriptedUpstream, trusting: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = Proxy(serve)
    monkeypatch.setenv("https_proxy", proxy.url.replace("http://", "http://us%40er:pass@"))

    assert_all_there(Client(trusting).ask(named(tls_upstream)))

    assert b"Proxy-Authorization: Basic dXNAZXI6cGFzcw==" in proxy.heads[0]
    assert "proxy-authorization" not in tls_upstream.requests[0].headers
    trusting.close()


def test_proxy_of_the_environment_is_left_out_where_no_proxy_says_so(
    serve: Serve, upstream: ScriptedUpstream, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = Proxy(serve)
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    monkeypatch.setenv("NO_PROXY", "example.org,model.test")
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", upstream.port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)

    assert_all_there(client.ask(named(upstream)))

    assert proxy.heads == []


def test_proxy_is_never_asked_for_this_machine(
    serve: Serve, upstream: ScriptedUpstream, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = Proxy(serve)
    monkeypatch.setenv("HTTP_PROXY", proxy.url)

    assert_all_there(client.ask(url_of(upstream)))

    assert proxy.heads == []


def test_proxy_for_plain_http_is_tunnelled_through_too(
    serve: Serve, upstream: ScriptedUpstream, client: Client, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = Proxy(serve)
    monkeypatch.setenv("http_proxy", proxy.url)

    assert_all_there(client.ask(named(upstream)))

    assert len(proxy.heads) == 1
    transport.close()


def test_proxy_that_refuses_is_a_connect_error(
    serve: Serve, upstream: ScriptedUpstream, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", Proxy(serve, status=b"407 No").url)

    with pytest.raises(httpx2.ConnectError):
        client.ask(named(upstream))
    assert upstream.requests == []


def test_answers_of_the_scripted_upstream_are_read_whole(upstream: ScriptedUpstream, client: Client) -> None:
    upstream.always(answer([f"{number} world " for number in range(2000)]))

    assert_all_there(client.ask(url_of(upstream)))
