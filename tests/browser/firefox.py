"""A stock Firefox, driven over WebDriver BiDi (https://w3c.github.io/webdriver-bidi/), which it speaks by itself.

Playwright drives only a Firefox that was built for it, and geckodriver is in no package of Debian's. The few commands
that the page's tests need are these.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Self

from websocket import WebSocket, WebSocketTimeoutException, create_connection

from tests.live.steps import poll

__all__ = ["KEYS", "Firefox", "firefox_path"]

ANSWER_SECONDS = 30
KEYS = {"Enter": "\ue007", "Escape": "\ue00c", "Tab": "\ue004"}
PREFERENCES = {
    "browser.shell.checkDefaultBrowser": False,
    "browser.startup.homepage_override.mstone": "ignore",
    "datareporting.policy.dataSubmissionEnabled": False,
    "toolkit.telemetry.reportingpolicy.firstRun": False,
    "app.update.enabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "dom.disable_beforeunload": True,
}


def firefox_path() -> str | None:
    """Find the machine's own Firefox."""
    return shutil.which("firefox-esr") or shutil.which("firefox")


class Firefox:
    """Run a Firefox without a window, with a new profile, and drive its one tab.

    `errors` lists what its console told as errors since `goto` was called last.
    """

    def __init__(self, path: str, profile: Path, **preferences: Any) -> None:
        self.errors: list[str] = []
        profile.mkdir(parents=True)
        written = "".join(
            f"user_pref({json.dumps(name)}, {json.dumps(value)});\n"
            for name, value in {**PREFERENCES, **preferences}.items()
        )
        (profile / "user.js").write_text(written)
        self._told = profile / "WebDriverBiDiServer.json"
        self._command = [path, "--headless", "--no-remote", "--remote-debugging-port=0", "--profile", str(profile)]
        self._ids = itertools.count(1)
        self._socket: WebSocket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._tab = ""

    def __enter__(self) -> Self:
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(self._command, start_new_session=True, **quiet)  # type: ignore[call-overload]
        try:
            poll(
                lambda: self._told.exists() and self._told.read_text().endswith("}"), seconds=60, what="Firefox's port"
            )
            told = json.loads(self._told.read_text())
            address = f"ws://{told['ws_host']}:{told['ws_port']}/session"
            self._socket = create_connection(address, timeout=ANSWER_SECONDS, suppress_origin=True)
            self.call("session.new", capabilities={})
            self.call("session.subscribe", events=["log.entryAdded"])
            self._tab = self.call("browsingContext.getTree")["contexts"][0]["context"]
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        with contextlib.suppress(Exception):
            self.call("browser.close")
        if self._socket is not None:
            self._socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Carry out a command. Raises: AssertionError for an error, or when there is no answer."""
        assert self._socket is not None
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        until = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < until:
            try:
                message = json.loads(self._socket.recv())
            except WebSocketTimeoutException:
                break
            if message.get("method") == "log.entryAdded" and message["params"]["level"] == "error":
                self.errors.append(message["params"]["text"])
            if message.get("id") == number:
                assert message["type"] == "success", f"{method}: {message.get('error')}, {message.get('message')}"
                result: dict[str, Any] = message["result"]
                return result
        raise AssertionError(f"no answer to {method}")

    def goto(self, url: str) -> None:
        """Load a page, and wait until it has loaded."""
        self.errors.clear()
        self.call("browsingContext.navigate", context=self._tab, url=url, wait="complete")

    def reload(self) -> None:
        """Load the page again, and wait until it has loaded."""
        self.call("browsingContext.reload", context=self._tab, wait="complete")

    def evaluate(self, expression: str) -> Any:
        """Give the value of an expression of the page, as JSON would; a promise is waited for."""
        told = self.call(
            "script.evaluate",
            expression=f"Promise.resolve({expression}).then((value) => JSON.stringify(value ?? null))",
            target={"context": self._tab},
            awaitPromise=True,
        )
        assert told["type"] == "success", told["exceptionDetails"]["text"]
        return json.loads(told["result"]["value"])

    def wait(self, expression: str, what: str, seconds: float = 20) -> Any:
        """Wait until an expression of the page is truthy, and give its value."""
        value: list[Any] = []

        def is_true() -> bool:
            value[:] = [self.evaluate(expression)]
            return bool(value[0])

        poll(is_true, seconds=seconds, what=what)
        return value[0]

    def type(self, text: str) -> None:
        """Press and release the keys of a text, or the one of this name in `KEYS`."""
        keys = [KEYS[text]] if text in KEYS else list(text)
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        sources = [{"type": "key", "id": "keyboard", "actions": actions}]
        self.call("input.performActions", context=self._tab, actions=sources)
