"""How gunicorn runs ChatWait: `gunicorn wsgi:app` in this directory reads this file.

The file runs in the master before gevent has patched anything. So its top imports only the standard library,
app.settings and app.embedded_model. What needs the application is in hooks that the worker calls.
"""

import fcntl
import os
import resource
import signal
import socket
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from gunicorn.glogging import Logger

from app.embedded_model import model, supervisor
from app.settings import BadSettings, read_settings

try:
    settings = read_settings()
    if settings.local_model and not model.installed():
        raise BadSettings(
            "OPENAI_API_KEY, OPENAI_BASE_URL: neither is set, and the embedded model is not installed. Set one of "
            "them, or install the model: `make run` does that, and an image needs --build-arg LOCAL_MODEL=1."
        )
except BadSettings as error:
    print(f"ChatWait cannot start:\n{error}", file=sys.stderr)
    sys.exit(2)

READERS_OF_A_STOP = 10  # seconds after the drain for last frames, before gunicorn kills the worker

bind = f"{settings.host}:{settings.port}"
worker_class = "gevent"
workers = settings.workers
# A client beyond gunicorn's limit would wait unseen. So our own limit, which makes room, is lower. The difference is
# for connections that are being shut: as many as gevent accepts at once.
worker_connections = settings.connections + 100
backlog = 2048
keepalive = 75  # longer than proxies keep idle connections: a proxy must not use one that was just closed here
timeout = 60  # bounds the silence of a worker's heartbeat, not a request
graceful_timeout = int(settings.drain_seconds) + READERS_OF_A_STOP
limit_request_line = 8190
limit_request_field_size = 8190
forwarded_allow_ips = ""  # nothing here depends on a proxy's headers, and SCRIPT_NAME in one would cause a 500
control_socket_disable = True
# A worker touches a file to show that it lives. On a slow disk the master would take a live worker for dead.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None


class NoAccessLog(Logger):
    """gunicorn's logger without its line for each request: the service writes `request_received` instead."""

    def access(self, resp, req, environ, request_time):
        pass


logger_class = NoAccessLog
errorlog = "-"
# At DEBUG gunicorn would log the addresses of requests.
level = "INFO" if settings.log_level == "DEBUG" else settings.log_level
loglevel = level.lower()
proc_name = "chatwait"


def early_formatter():
    """Format gunicorn's first lines, which it writes before the application has set up its logging."""
    from app.observability.lines import LineFormatter

    return LineFormatter([settings.openai_api_key])


logconfig_dict = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": early_formatter}},
    "handlers": {"stdout": {"class": "app.observability.stdout.LineHandler", "formatter": "json"}},
    "root": {"level": settings.log_level, "handlers": ["stdout"]},
    "loggers": {
        "gunicorn.error": {
            "level": level,
            "handlers": [],
            "propagate": True,
            "qualname": "gunicorn.error",
        },
        "gunicorn.access": {
            "level": "WARNING",
            "handlers": [],
            "propagate": True,
            "qualname": "gunicorn.access",
        },
    },
}

# How many descriptors one worker needs: one for each client, and three for each generation. The three are its
# connection to the model, a kept one, and one that ends. 500 are for everything else.
DESCRIPTORS = worker_connections + 3 * settings.max_active_streams + 500
SEND_BUFFER_BYTES = 65_536


def most_connections():
    """Tell how many clients may be connected to a worker: as many as its limits need, or as its descriptors allow.

    A worker without a free descriptor cannot accept a client, not even to close another connection for the client.
    """
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY or allowed >= DESCRIPTORS:
        return settings.connections
    # A quarter at least is for clients: each client's generation needs three more descriptors.
    return max(allowed // 4, allowed - (DESCRIPTORS - settings.connections))


STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


def leave(*_):
    """End a worker at once, because it has nothing to finish yet."""
    os._exit(0)


def end_stopped_at_once():
    """Make a worker end at once when a stop comes before the worker has its own handlers.

    The handlers that a worker inherits from the master would lose the signal. So stops are blocked from the fork to the
    worker's first lines.
    """

    def begun():
        for number in STOPS:
            signal.signal(number, leave)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)

    os.register_at_fork(
        before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, STOPS),
        after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS),
        after_in_child=begun,
    )


def post_fork(server, worker):
    """Prepare a worker before it loads the application.

    Uncaught exceptions become lines of the log from now on. A stop ends the worker at once, where gunicorn's own
    handlers would let the worker load to the end first. gevent's search for plugins is left out (DESIGN.md, 59).
    """
    import gc

    from gevent import events

    from app.observability.uncaught import catch_uncaught

    worker.handle_exit = worker.handle_quit = leave
    catch_uncaught()
    # gevent would look for plugins in every package, before and after each module that it patches.
    events.notify_and_call_entry_points = events.notify
    gc.disable()  # what is loaded stays in memory; `post_worker_init` collects the rest


def on_starting(server):
    """Raise the limit of descriptors. Start the embedded model if no other model is set."""
    from app.observability.uncaught import catch_uncaught

    catch_uncaught()
    end_stopped_at_once()
    if told := _told_otherwise(server.cfg):
        print("ChatWait cannot start:\n" + "\n".join(told), file=sys.stderr)
        sys.exit(2)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < DESCRIPTORS:
        limit = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        if limit < DESCRIPTORS:
            server.log.warning(
                "The process may open %d file descriptors, but MAX_READERS and MAX_ACTIVE_STREAMS may need %d. A "
                "worker has room for %d connections instead of %d, and closes idle ones when more come. Allow more "
                "descriptors (ulimit -n, LimitNOFILE= of systemd, --ulimit nofile= of Docker), or lower MAX_READERS "
                "and MAX_ACTIVE_STREAMS.",
                limit,
                DESCRIPTORS,
                most_connections(),
                settings.connections,
            )
    if settings.listens_publicly:
        server.log.warning(
            "This server has no sign-in and listens on %s. Put authentication in front of it.", settings.host
        )
    if settings.sends_key_unencrypted:
        server.log.warning(
            "OPENAI_BASE_URL is plain http on another machine. OPENAI_API_KEY and all conversations are sent "
            "unencrypted. Use https, unless the network between the machines is private."
        )
    if settings.local_model:
        port = supervisor.free_port()
        key = model.new_key()
        os.environ[model.URL] = f"http://127.0.0.1:{port}"
        os.environ[model.KEY] = key
        server.embedded_model = supervisor.start_supervisor(port, log_level=settings.log_level, key=key)


def _told_otherwise(cfg):
    """List the options that gunicorn was given elsewhere and that contradict this file. Nobody has checked them."""
    told = []
    if cfg.worker_connections < worker_connections:
        told.append(
            f"worker_connections: gunicorn got {cfg.worker_connections}, but MAX_READERS and MAX_ACTIVE_STREAMS need "
            f"{worker_connections}. The last clients to connect would get no answer. Remove the option from gunicorn's "
            "command line and from GUNICORN_CMD_ARGS, and set MAX_READERS."
        )
    found = {name: cfg.settings[name].get() for name in ("workers", "worker_class", "bind")}
    for name, ours, why, instead in (
        ("workers", workers, "A reader could reach a process that does not have its stream", "set WORKERS"),
        ("worker_class", worker_class, "Streams need the gevent worker", "leave the class as it is"),
        ("bind", [bind], "HOST and ALLOWED_HOSTS decide which requests are answered", "set HOST and PORT"),
    ):
        if found[name] != ours:
            (theirs, right) = (", ".join(map(str, it)) if isinstance(it, list) else it for it in (found[name], ours))
            told.append(
                f"{name}: gunicorn got {theirs}, but the settings say {right}. {why}. Remove the option from "
                f"gunicorn's command line and from GUNICORN_CMD_ARGS, and {instead}."
            )
    return told


def when_ready(server):
    """Set options of the listeners, which every accepted connection inherits at no cost."""
    for listener in server.LISTENERS:
        sock = listener.sock
        # The kernel buffers bytes for a slow reader, by default megabytes of them. One frame could take half a minute
        # to be written to a reader that reads steadily, and that reader would count as stalled.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            # The kernel finds a peer that vanished after half a minute. While bytes are being sent to the peer,
            # app/server/connections.py does that.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)


def post_worker_init(worker):
    """Make a stop wait for live generations. gunicorn's own stop would end a worker that has no open connection.

    The worker goes on accepting during a stop, so that readers can come back. New work is refused with 503.
    """
    import gc

    from app.observability import facts, observer
    from app.server import head
    from app.version import VERSION

    head.bound()
    # The objects of the start live as long as the worker. A collection that visits them would hold up every stream.
    gc.collect()
    gc.freeze()
    gc.enable()
    _make_room_for_descriptors()
    ours = worker.wsgi.extensions["chatwait"]
    ours.connections.watch(worker, most=most_connections())

    def finished():
        import gevent

        # SystemExit in a greenlet of its own ends the worker's main greenlet, which sleeps in its loop. gunicorn's
        # handle_quit would let that loop end by itself at the same time, and then print a traceback.
        gevent.spawn(sys.exit, 0)

    def stop(number, _frame):
        ours.drain.begin(finished, quick=number != signal.SIGTERM)

    for number in STOPS:
        signal.signal(number, stop)
    observer.tell(facts.WorkerStarted(version=VERSION))


def _make_room_for_descriptors():
    """Make the kernel's table of this process's descriptors as large as it may become.

    Otherwise the kernel doubles the table whenever the table is full. A process with threads waits 10 to 30 ms for
    that, and no stream goes on meanwhile. Source: linux/fs/file.c, expand_fdtable.
    """
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = (DESCRIPTORS if allowed == resource.RLIM_INFINITY else min(DESCRIPTORS, allowed)) - 1
    any_descriptor = os.open(os.devnull, os.O_RDONLY)
    os.close(fcntl.fcntl(any_descriptor, fcntl.F_DUPFD_CLOEXEC, highest))
    os.close(any_descriptor)


def on_exit(server):
    """End the embedded model with the service."""
    process = getattr(server, "embedded_model", None)
    if process is not None:
        process.terminate()
