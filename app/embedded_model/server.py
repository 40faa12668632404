"""The embedded model's server: llama.cpp's own OpenAI-compatible server, in a process that does nothing else.

`python -m app.embedded_model.server serve --port 0` serves the model by hand, and shows what llama.cpp says.
`python -m app.embedded_model.server check` fails where it could not serve.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from typing import Any

from app.embedded_model import openmp
from app.embedded_model.log_line import write_missing
from app.embedded_model.model import CONTEXT_TOKENS_PER_SLOT, KEY, MODEL_ID, SLOTS, installed, model_path, new_key

__all__ = ["fill_in", "main", "serve"]

# The file's own template begins a conversation without a system message with "You are a helpful AI assistant named
# SmolLM". With it the model answers 15 of 21 simple questions right at temperature 0; without it, 20 of 21.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

PROMPT_STEP_TOKENS = 128
PING_SECONDS = 5  # a comment line on a stream whose prompt is still being read
HTTP_THREADS = 300  # one per open connection, or /health waits behind a thousand queued streams

LOOK_SECONDS = 0.25
"""How often the process looks whether its parent is gone, where the kernel does not tell it."""

_PR_SET_PDEATHSIG = 1


def serve(*, port: int, parent: int) -> None:
    """Serve the model on this loopback port until the parent is gone. Port 0 picks a free one."""
    _end_with(parent)
    openmp.provide("-m", "app.embedded_model.server", "serve", "--port", str(port), "--parent", str(parent))
    # The service comes first on a busy machine: a late heartbeat costs a connection, a late token costs nothing.
    os.nice(5)
    import xllamacpp  # only this process imports it

    key = os.environ.get(KEY) or new_key()  # a server that was started by hand answers only /health
    server = xllamacpp.Server(fill_in(xllamacpp.CommonParams(), port=port, key=key))
    print(server.listening_address, flush=True)
    # The server's threads are not Python's: the object and the process must stay alive.
    threading.Event().wait()


def fill_in(parameters: Any, *, port: int, key: str) -> Any:
    """Fill in xllamacpp's parameters. The fields are llama.cpp's: xllamacpp refuses names that it does not know."""
    parameters.model.path = str(model_path())
    parameters.model_alias = {MODEL_ID}
    parameters.chat_template = CHAT_TEMPLATE
    parameters.n_ctx = SLOTS * CONTEXT_TOKENS_PER_SLOT
    parameters.n_parallel = SLOTS
    # One core is left to the service. Two threads on two busy cores wait for each other at every layer: beside four
    # test runs, a short answer took a minute with two threads and seconds with one.
    parameters.cpuparams.n_threads = max(1, (os.cpu_count() or 1) - 1)
    # How much of a prompt is read in one step. Until a step is over, nobody else gets a token and nothing is cancelled.
    # A step of 2048 tokens, the default, takes 9 s on two cores. One of 128 takes half a second, and a whole prompt
    # takes no longer.
    parameters.n_batch = parameters.n_ubatch = PROMPT_STEP_TOKENS
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = port
    parameters.n_threads_http = HTTP_THREADS
    parameters.cache_ram_mib = 0  # no cache of finished prompts: its default is 8 GiB
    parameters.api_keys = [key]
    parameters.cors_origins = "null"  # by default every web page may read the answers; a page may have this very origin
    parameters.ui = False
    parameters.endpoint_slots = False  # this endpoint would show the prompts
    parameters.sse_ping_interval = PING_SECONDS
    parameters.verbosity = 0
    return parameters


def _end_with(parent: int) -> None:
    """Make sure that this process never outlives its parent, however the parent ends."""
    with contextlib.suppress(AttributeError, OSError):  # only Linux has prctl
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    def watch() -> None:
        # For other systems than Linux, and for a parent that was gone before the call of prctl.
        while os.getppid() == parent:
            time.sleep(LOOK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def main(argv: list[str]) -> int:
    """Be the server (`serve`), or fail where there could not be one (`check`). Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m app.embedded_model.server", description="Serve the embedded model on a loopback port."
    )
    roles = parser.add_subparsers(dest="role", required=True)
    roles.add_parser("check", help="fail if the model cannot run here")
    serving = roles.add_parser("serve", help="serve the model until the parent process ends")
    serving.add_argument("--port", type=int, required=True, help="the port to listen on; 0 picks a free one")
    serving.add_argument("--parent", type=int, default=os.getppid(), help="end when the parent process has another id")
    options = parser.parse_args(argv)
    if not installed():
        write_missing()
        return 1
    if options.role == "check":
        openmp.provide("-m", "app.embedded_model.server", "check")
        import xllamacpp  # noqa: F401 - an ImportError says what is missing
    else:
        serve(port=options.port, parent=options.parent)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
