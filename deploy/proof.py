"""Prove the Dockerfile where there is no Docker engine: build it into a directory, run what it says, look closely.

The base image's place is taken by a Debian with the same Python. What stays untried is said at the end.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.bare_root import Builder, Failed, Mounts, Room, call, make_stand_in
from deploy.dockerfile import ROOT, Image, copies, read_image
from deploy.running import HOST_NAME, Running, free_port
from tests.harness.reader import get, open_stream, post, read_answer
from tests.harness.upstream import Done, Finish, Gate, Script, ScriptedUpstream, Token, answer

GRACE_SECONDS = 40.0  # as docs/container.md says and deploy/compose.yaml has it
KEY = "sk-proof-0123456789abcdefghijklmnop"
TRUST_STORE = "/etc/ssl/certs/ca-certificates.crt"
UNTRIED = (
    "the base image itself: its place is taken by Debian 13 with Python 3.13 from Debian's packages",
    "the engine: its layers and cache, its seccomp and AppArmor profiles, cgroups and memory limits",
    "its network: a bridge, a published port, its DNS (the service ran in this machine's network)",
    "its clock of health checks (the command itself was run), docker stop (the signal itself was sent)",
    "docker compose (deploy/compose.yaml is only read by the tests)",
    "other architectures than this machine's",
)


class Proof:
    """Tries one thing after the other, and prints what held."""

    def __init__(self, image: Image, builder: Builder) -> None:
        self.image = image
        self.builder = builder
        self.failures = 0

    def holds(self, what: str, fact: bool, shown: object = "") -> None:
        self.failures += not fact
        print(
            f"{'proved' if fact else 'FAILED'}: {what}" + (f" [{shown}]" if not fact and shown != "" else ""),
            flush=True,
        )

    def room(self, **environment: str) -> Room:
        return self._room(Mounts(read_only=True), environment)

    def _room(self, mounts: Mounts, environment: dict[str, str]) -> Room:
        variables = {**self.image.environment, **environment}
        place, user = self.image.directory, self.image.user
        return Room(self.builder.root, environment=variables, directory=place, user=user, mounts=mounts)

    @property
    def has_model(self) -> bool:
        return self.builder.build_args.get("LOCAL_MODEL") == "1"

    # The tree

    def files(self) -> None:
        """What is in the image, and what its user may do to it."""
        root = self.builder.root
        home = root / self.image.directory.lstrip("/")
        found = {path.relative_to(root).as_posix() for path in home.rglob("*") if path.is_file()}
        sources = {path for path in found if not path.endswith(".pyc")}
        wanted = {target.lstrip("/") for _, target in copies(self.image)}
        self.holds("the project's part holds what COPY names and nothing else", sources == wanted, sources ^ wanted)
        compiled = {path for path in found if path.endswith(".pyc")}
        self.holds(f"the service is compiled ({len(compiled)} files)", len(compiled) >= 30)
        modes = [(path, path.lstat()) for path in [home, *home.rglob("*")]]
        foreign = [path for path, status in modes if status.st_uid or status.st_mode & 0o022]
        self.holds("all of it belongs to root, and only root may write", not foreign, foreign[:3])
        closed = [path for path, status in modes if status.st_mode & (0o005 if path.is_dir() else 0o004) == 0]
        self.holds("everybody may read it", not closed, closed[:3])
        new = [path for path in (root / "usr/local").rglob("*") if path.is_file() and not path.is_symlink()]
        special = [path for path in new if path.stat().st_mode & (stat.S_ISUID | stat.S_ISGID | 0o002)]
        self.holds("nothing installed is setuid, setgid or writable for all", not special, special[:3])

    # Starts

    def refusals(self) -> None:
        starts = [("without ALLOWED_HOSTS", {"OPENAI_API_KEY": KEY}, ("ALLOWED_HOSTS", "0.0.0.0", "chat.example.org"))]
        if not self.has_model:
            words = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "LOCAL_MODEL=1")
            starts.append(("without a key and a base URL", {"ALLOWED_HOSTS": HOST_NAME}, words))
        for what, environment, words in starts:
            exit_code, output = self.run(self.room(**environment), self.image.command)
            said = exit_code not in (0, None) and all(word in output for word in words) and "Traceback" not in output
            self.holds(f"a start {what} is refused in words", said, f"{exit_code}: {output[-300:]}")

    def run(self, room: Room, words: list[str]) -> tuple[int, str]:
        done = subprocess.run(
            room.command(*words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60
        )
        return done.returncode, done.stdout.decode("utf-8", "replace")

    @contextmanager
    def serving(self, upstream_url: str, *, mounts: Mounts | None = None, key: str = KEY) -> Iterator[Running]:
        port = str(free_port())
        environment = {"PORT": port, "ALLOWED_HOSTS": HOST_NAME, "OPENAI_BASE_URL": upstream_url, "OPENAI_API_KEY": key}
        room = self._room(mounts or Mounts(read_only=True), environment)
        with Running(room, self.image, port=int(port)) as running:
            yield running

    def service(self) -> None:
        exit_code, _ = self.run(self.room(ALLOWED_HOSTS=HOST_NAME), self.image.health_command)
        self.holds("the health check fails where nothing serves", exit_code == 1, exit_code)
        with ScriptedUpstream() as upstream, self.serving(upstream.base_url) as running:
            self.holds(f"ready {running.ready_seconds:.1f} s after its start, on a read-only root without /tmp", True)
            exit_code, output = running.beside(*self.image.health_command)
            self.holds("the health check succeeds where ALLOWED_HOSTS is a foreign name", exit_code == 0, output)
            self.holds("another Host is refused", get(f"{running.url}/models").status == 400)
            upstream.always(answer(["Par", "is."], gap=0.02))
            read = read_answer(f"{running.url}/chat/streaming", {"message": "Hi"}, headers=running.headers)
            self.holds("an answer streams, and its hash holds", read.text == "Paris.", read.text)
            self.processes(running)
            self.stop(running, upstream)
        with ScriptedUpstream() as upstream, self.serving(upstream.base_url) as running:
            begun = time.monotonic()
            running.send(signal.SIGINT)
            exit_code = running.wait(10.0)
            seconds = time.monotonic() - begun
            self.holds(f"Ctrl-C (SIGINT) ends it in {seconds:.1f} s with 0", exit_code == 0, exit_code)

    def embedded(self) -> None:
        """With LOCAL_MODEL=1: no key, no base URL, and an answer all the same."""
        with self.serving("", key="") as running:
            running.poll(lambda: get(f"{running.url}/ready", running.headers).status == 200, 60.0)
            body = {"message": "What is the capital of France?", "max_tokens": 20}
            reply = post(f"{running.url}/chat/wait", json=body, headers=running.headers, timeout=60.0)
            answered = reply.status == 200 and "Paris" in reply.json["content"]
            self.holds("the embedded model answers, without a key", answered, reply.body[:300])
            self.processes(running)
            running.send(signal.SIGTERM)
            exit_code = running.wait(GRACE_SECONDS)
            self.holds("a stop takes it down too, and ends with 0", exit_code == 0, exit_code)

    def processes(self, running: Running) -> None:
        facts = running.processes()
        first = facts[0]
        self.holds("gunicorn is process 1", first.inner_pid == 1 and b"gunicorn" in first.command, first)
        users = {fact.user for fact in facts}
        self.holds(f"no process is root's: {len(facts)} run as {self.image.user}", users == {10001}, users)
        self.holds("none has a capability, or can gain one", all(fact.is_powerless for fact in facts), facts)
        held = [fact.written(self.builder.root) for fact in facts]
        outside = sorted({path for paths in held for path in paths if not path.startswith("/dev/shm/")})
        self.holds("no file is open for writing outside /dev/shm", not outside, outside)
        running.beside("/bin/sh", "-c", "sleep 2 >/dev/null 2>&1 & exit 0")
        orphaned = len(running.processes()) == len(facts) + 1
        running.poll(lambda: len(running.processes()) == len(facts), 10.0)
        left = running.processes()
        self.holds("process 1 collects orphans: no zombie stays", orphaned and len(left) == len(facts), left)

    def stop(self, running: Running, upstream: ScriptedUpstream) -> None:
        """The image's stop signal in the middle of an answer."""
        upstream.always(Script(steps=(Token("Par"), Gate("end"), Token("is."), Finish("stop"), Done())))
        refused = ""

        def is_stopping() -> bool:
            nonlocal refused
            refused = self._ask(running)
            return "shutting_down" in refused

        with open_stream(f"{running.url}/chat/streaming", json={"message": "Hi"}, headers=running.headers) as stream:
            events = stream.events()
            while next(events).event != "token":
                pass
            begun = time.monotonic()
            running.send(signal.Signals[self.image.stop_signal])
            running.poll(is_stopping, 10.0)
            upstream.open("end")
            kinds = [event.event for event in events]
        exit_code = running.wait(GRACE_SECONDS)
        seconds = time.monotonic() - begun
        self.holds("a stop takes no new work (503 shutting_down)", "shutting_down" in refused, refused)
        self.holds("a stop lets the live answer come to its end", kinds[-1:] == ["done"], kinds[-1:])
        held = exit_code == 0 and seconds < GRACE_SECONDS
        self.holds(f"a stop ends with 0, in {seconds:.1f} of the {GRACE_SECONDS:g} s of its grace", held, exit_code)
        self.holds("every line of stdout is a JSON object, and stderr is empty", running.said_json(), running.output())

    def _ask(self, running: Running) -> str:
        headers = {**running.headers, "Prefer": "wait=0"}  # it may come before the stop, and must not wait then
        try:
            return post(f"{running.url}/chat/wait", json={"message": "New"}, headers=headers).body.decode()
        except OSError as error:
            return str(error)

    def https(self, work: Path) -> None:
        """Certificates are checked, against the store where an operator would mount his own."""
        key, certificate = work / "key.pem", work / "certificate.pem"
        name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        made = ["-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", str(key), "-out", str(certificate)]
        call("openssl", "req", "-x509", *made, *name)
        with ScriptedUpstream(certfile=str(certificate), keyfile=str(key)) as upstream:
            upstream.always(answer(["Secret."]))
            url = f"https://localhost:{upstream.port}/v1"
            for trusted in (False, True):
                mounts = Mounts(read_only=True, files={TRUST_STORE: certificate} if trusted else {})
                with self.serving(url, mounts=mounts) as running:
                    reply = post(f"{running.url}/chat/wait", json={"message": "Hi"}, headers=running.headers)
                    wanted = 200 if trusted else 503
                    words = "answers" if trusted else "is refused (503)"
                    what = f"an https upstream {words} where its CA is{'' if trusted else ' not'} in the trust store"
                    self.holds(what, reply.status == wanted, f"{reply.status}: {reply.body[:300]!r}")
        script = "import urllib.request as u; print(u.urlopen('https://pypi.org/simple/', timeout=15).status)"
        try:
            call(sys.executable, "-c", script)
        except Failed:
            print("not tried: https to the world, which cannot be reached from here")
            return
        exit_code, output = self.run(self.room(), ["python", "-c", script])
        self.holds("https to the world (pypi.org) passes the image's trust store", exit_code == 0, output[-300:])

    def same_as_buildah(self) -> None:
        config = self.builder.configuration()
        health = config["Healthcheck"]
        assert isinstance(health, dict)
        theirs = [config[name] for name in ("User", "WorkingDir", "Cmd", "StopSignal", "Env")]
        ours = [self.image.user, self.image.directory, self.image.command, self.image.stop_signal]
        variables = [f"{name}={value}" for name, value in self.image.environment.items()]
        self.holds("buildah understands the Dockerfile as this proof does", theirs == [*ours, variables], theirs)
        self.holds("and its health check", health["Test"] == ["CMD", *self.image.health_command], health)


def size_mb(*paths: Path) -> int:
    return round(int(call("du", "-sxk", "--total", *paths).split()[-2]) / 1000)


def needed(*, buildah: bool) -> list[str]:
    """Name what is missing here."""
    names = ["unshare", "nsenter", "setpriv", "chroot", "openssl", "debootstrap", *(["buildah"] if buildah else [])]
    missing = [name for name in names if shutil.which(name) is None]
    return missing if os.geteuid() == 0 else ["root", *missing]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="deploy/prove-image", description=__doc__)
    parser.add_argument("--work", type=Path, help="keep base and result there; a base that is there is used again")
    parser.add_argument("--builder", choices=("auto", "buildah", "steps"), default="auto", help="who builds")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args(arguments)
    with_buildah = options.builder == "buildah" or (options.builder == "auto" and shutil.which("buildah") is not None)
    if missing := needed(buildah=with_buildah):
        print(f"Cannot be proved here; missing: {', '.join(missing)}", file=sys.stderr)
        return 2
    build_args = dict(pair.split("=", 1) for pair in options.build_arg)
    work = options.work or Path(tempfile.mkdtemp(prefix="prove-image-"))
    work.mkdir(parents=True, exist_ok=True)
    try:
        return prove(work.resolve(), build_args, with_buildah=with_buildah)
    except Failed as error:
        print(f"FAILED: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        if options.work is None:
            shutil.rmtree(work, ignore_errors=True)


def prove(work: Path, build_args: dict[str, str], *, with_buildah: bool) -> int:
    image = read_image((ROOT / "Dockerfile").read_text(encoding="utf-8"), build_args)
    builder = Builder(work=work, base=work / "base", image=image, build_args=build_args)
    if not builder.base.is_dir():
        print("making the stand-in of the base image (debootstrap) ...", flush=True)
        make_stand_in(builder.base, work)
    begun = time.monotonic()
    print(f"building {'with buildah' if with_buildah else 'step by step'} ...", flush=True)
    builder.by_buildah() if with_buildah else builder.by_steps()
    proof = Proof(image, builder)
    proof.holds(f"every step of the Dockerfile works, in {time.monotonic() - begun:.0f} s", True)
    base, whole = size_mb(builder.base), size_mb(builder.root)
    print(f"size: {whole} MB on the disk, {whole - base} MB of it over the base's stand-in")
    if with_buildah:
        proof.same_as_buildah()
    proof.files()
    proof.refusals()
    proof.service()
    if proof.has_model:
        proof.embedded()
    proof.https(work)
    for untried in UNTRIED:
        print(f"not tried: {untried}")
    print("FAILED" if proof.failures else "all of it held")
    return 1 if proof.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
