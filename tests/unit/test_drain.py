"""Test what a drain takes for read, in a whole application by a clock that the test turns; see test_shutdown.py."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from flask.testing import FlaskClient

from app import create_app
from app.platform import clock
from app.settings import Settings
from app.shutdown import QUICK_SECONDS, Drain
from app.worker import Worker
from tests.unit.fakes import FakeUpstream, Gate, whole
from tests.unit.shared import wait_until

pytestmark = pytest.mark.usefixtures("no_network")

SETTINGS = Settings(
    openai_base_url="http://model.test/v1",
    openai_model="gpt-4o-mini",
    allowed_models=("gpt-4o-mini",),
    allowed_hosts=("localhost",),
    log_level="CRITICAL",
)
ASKED = {"message": "Hello"}


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.close()


@pytest.fixture
def client(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlaskClient]:
    """Give a client of a service whose answer stands at the gate."""
    monkeypatch.setattr(clock, "TICK_SECONDS", 0.01)
    app = create_app(SETTINGS, upstream=FakeUpstream([gate, *whole("He", "llo")]))
    yield app.test_client()
    app.extensions["chatwait"].close()


def worker_of(client: FlaskClient) -> Worker:
    worker: Worker = client.application.extensions["chatwait"]
    return worker


def begun(worker: Worker) -> tuple[Drain, list[str]]:
    """Begin a drain of this worker, and give what it calls at last. The real clock does not look at this drain."""
    drain = Drain(
        store=worker.store,
        generations=worker.generations,
        readers=worker.readers,
        answering=lambda: worker.answering,
        drain_seconds=worker.settings.drain_seconds,
    )
    finished: list[str] = []
    drain.begin(lambda: finished.append("finished"))
    drain.check(100.0)
    return drain, finished


def ended(client: FlaskClient, gate: Gate) -> tuple[str, Drain, list[str]]:
    """Have an answer that ends while its worker does, unread; give its id, the drain, and what it calls at last."""
    worker = worker_of(client)
    stream_id = client.post("/chat/wait", json=ASKED, headers={"Prefer": "wait=0"}).headers["X-Stream-Id"]
    gate.wait_reached()
    drain, finished = begun(worker)
    gate.open()
    wait_until(lambda: not worker.generations.live, "the answer has ended")
    return stream_id, drain, finished


@pytest.mark.parametrize("mode", ["streaming", "wait", "streaming, after 1", "streaming, after 3"])
def test_drain_is_over_as_soon_as_every_end_has_been_read(client: FlaskClient, gate: Gate, mode: str) -> None:
    stream_id, drain, finished = ended(client, gate)
    drain.check(100.2)
    assert finished == []
    way, _, after = mode.partition(", after ")
    cursor = {"Last-Event-ID": f"{stream_id}.{after}"} if after else {}
    client.head(f"/chat/wait/{stream_id}")  # which shows nobody anything
    drain.check(100.3)
    reply = client.get(f"/chat/{way}/{stream_id}", headers=cursor)
    assert (reply.status_code, bool(reply.data)) == ((204, False) if after == "3" else (200, True))

    drain.check(100.4)
    drain.check(100.4 + QUICK_SECONDS)

    assert finished == ["finished"]


def test_drain_is_over_when_who_waited_for_the_end_has_it(client: FlaskClient, gate: Gate) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.application.test_client().post, "/chat/wait", json=ASKED)
        gate.wait_reached()
        drain, finished = begun(worker_of(client))
        gate.open()
        assert waiting.result(10).status_code == 200
    wait_until(lambda: not worker_of(client).generations.live, "the answer has ended")

    drain.check(100.2)
    drain.check(100.2 + QUICK_SECONDS)

    assert finished == ["finished"]
