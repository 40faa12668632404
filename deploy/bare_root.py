"""Build the image into a directory and run programs in it, without an engine: debootstrap, buildah, unshare, chroot.

Linux, and root. Standard library only.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deploy.dockerfile import BASE_ENV, ROOT, Copy, Image, copies

SUITE = "trixie"  # Debian 13, whose Python is 3.13 too
MIRROR = "http://deb.debian.org/debian"
PACKAGES = "ca-certificates,netbase,tzdata,python3"
TRUST_STORE = "etc/ssl/certs/ca-certificates.crt"
STAND_IN = "localhost/chatwait-stand-in:latest"
RESULT = "localhost/chatwait-proof:latest"
BUILD_SECONDS = 900


class Failed(Exception):
    """State which step did not work, with its output."""


def call(*command: str | Path, timeout: float = BUILD_SECONDS) -> str:
    """Run a command and give its output. Raises: Failed."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"not within {timeout:g} s: {shlex.join(words)}") from None
    output = done.stdout.decode("utf-8", "replace")
    if done.returncode != 0:
        raise Failed(f"exit code {done.returncode}: {shlex.join(words)}\n{output[-4000:]}")
    return output


def make_stand_in(target: Path, work: Path) -> None:
    """Make a root like the base image: Debian slim, Python as `python`, today's pip, ca-certificates."""
    partial = work / "base.partial"
    shutil.rmtree(partial, ignore_errors=True)
    call("debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, partial, MIRROR)
    for path in [*partial.glob("usr/lib/python3*/EXTERNALLY-MANAGED"), *partial.glob("var/cache/apt/archives/*.deb")]:
        path.unlink()
    shutil.rmtree(partial / "var/lib/apt/lists")
    (partial / "usr/bin/python").symlink_to("python3")
    # As Debian's images have it: apt keeps nothing of what it downloads and computes.
    keep_nothing = 'Dir::Cache::pkgcache "";\nDir::Cache::srcpkgcache "";\nDPkg::Post-Invoke { "rm -f %s"; };\n'
    (partial / "etc/apt/apt.conf.d/docker-clean").write_text(keep_nothing % "/var/cache/apt/archives/*.deb")
    # What this machine trusts: behind a proxy that opens TLS, pip could install nothing otherwise.
    shutil.copyfile(f"/{TRUST_STORE}", partial / TRUST_STORE)
    call(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", partial / "tmp", "pip")
    (wheel,) = partial.glob("tmp/pip-*.whl")
    inside = f"/tmp/{wheel.name}"
    call("chroot", partial, "python", f"{inside}/pip", "install", "--quiet", "--no-index", inside)
    wheel.unlink()
    partial.rename(target)


@dataclass(kw_only=True)
class Builder:
    """Carries the Dockerfile's steps out, over the stand-in."""

    work: Path
    base: Path
    image: Image
    build_args: Mapping[str, str]

    @property
    def root(self) -> Path:
        return self.work / "root"

    def by_steps(self) -> None:
        """Do what the Dockerfile says, step by step, in a copy of the base."""
        shutil.rmtree(self.root, ignore_errors=True)
        call("cp", "-a", self.base, self.root)
        files = copies(self.image)
        for step in self.image.steps:
            if not isinstance(step, Copy):
                room = Room(self.root, environment=dict(step.environment), directory=step.directory, user=step.user)
                (self.root / step.directory.lstrip("/")).mkdir(parents=True, exist_ok=True)
                call(*room.command("/bin/sh", "-c", step.command))
                continue
            for source, target in files:
                if any(source == name or source.startswith(f"{name}/") for name in step.sources):
                    path = self.root / target.lstrip("/")
                    path.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(ROOT / source, path)

    def by_buildah(self) -> None:
        """Let buildah build the Dockerfile itself, and unpack what it made."""
        buildah = self._buildah()
        archive = self.work / "base.tar"
        call("tar", "-C", self.base, "-cf", archive, ".")
        made = call(*buildah, "from", "scratch").split()[-1]
        call(*buildah, "add", made, archive, "/")
        call(*buildah, "commit", "--rm", made, STAND_IN)
        archive.unlink()
        args = {**self.build_args, "PYTHON_IMAGE": STAND_IN}
        flags = [word for name, value in args.items() for word in ("--build-arg", f"{name}={value}")]
        how = ["--isolation", "chroot", "--network", "host", "--format", "docker", "--pull-never", "--no-cache"]
        call(*buildah, "bud", *how, *flags, "--tag", RESULT, ROOT)
        container = call(*buildah, "from", "--pull-never", RESULT).split()[-1]
        mounted = call(*buildah, "mount", container).split()[-1]
        shutil.rmtree(self.root, ignore_errors=True)
        call("cp", "-a", mounted, self.root)
        call(*buildah, "umount", container)

    def configuration(self) -> dict[str, object]:
        """Give what buildah made of the Dockerfile, to hold against what we read."""
        inspected = json.loads(
            subprocess.run(
                [*self._buildah(), "inspect", "--type", "image", RESULT], stdout=subprocess.PIPE, check=True
            ).stdout
        )
        config: dict[str, object] = inspected["Docker"]["config"]
        return config

    def _buildah(self) -> list[str]:
        store, run = self.work / "store", self.work / "run"
        return ["buildah", "--storage-driver", "vfs", "--root", str(store), "--runroot", str(run)]


@dataclass(kw_only=True)
class Mounts:
    """How a room differs from its root directory."""

    read_only: bool = False
    files: Mapping[str, Path] = field(default_factory=dict)  # path in the root → a file to put there


class Room:
    """A root directory to run programs in, as process 1, as a user, with an environment of its own."""

    def __init__(
        self, root: Path, *, environment: Mapping[str, str], directory: str, user: str, mounts: Mounts | None = None
    ) -> None:
        self.root = root
        self.environment = {**BASE_ENV, **environment}
        self.directory = directory
        self.user = "0:0" if user == "root" else user
        self.mounts = mounts or Mounts()

    def command(self, *words: str) -> list[str]:
        """Give the command that runs these words as process 1 of new namespaces, in the root."""
        spaces = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--ipc", "--uts"]
        return [*spaces, "sh", "-ec", f"{self._mounting()}\nexec {shlex.join(self._entering(words))}"]

    def command_beside(self, process: int, *words: str) -> list[str]:
        """Give the command that runs these words beside a process that is in the room, as `docker exec` does."""
        return ["nsenter", "--target", str(process), "--mount", "--pid", "--ipc", *self._entering(words)]

    def _entering(self, words: tuple[str, ...]) -> list[str]:
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        privileges = ["setpriv", "--no-new-privs"] if self.user != "0:0" else []
        chroot = ["chroot", f"--userspec={self.user}", "--groups=", str(self.root)]
        return [*privileges, *chroot, "env", "-i", f"--chdir={self.directory}", *variables, *words]

    def _mounting(self) -> str:
        root = shlex.quote(str(self.root))
        lines = [f"mount --bind {root} {root}"]
        lines += [f"mount --bind {name} {root}{name}" for name in ("/etc/resolv.conf", "/etc/hosts") if self._has(name)]
        lines += [f"mount --bind {shlex.quote(str(path))} {root}{name}" for name, path in self.mounts.files.items()]
        if self.mounts.read_only:
            lines.append(f"mount -o remount,bind,ro {root}")
        lines.append(f"mount -t proc proc {root}/proc")
        lines.append(f"mount -t tmpfs -o mode=755 tmpfs {root}/dev")
        for name in ("null", "zero", "full", "random", "urandom"):
            lines.append(f"touch {root}/dev/{name}; mount --bind /dev/{name} {root}/dev/{name}")
        lines.append(
            f"mkdir {root}/dev/shm; mount -t tmpfs -o mode=1777,size=64m,noexec,nosuid,nodev shm {root}/dev/shm"
        )
        return "\n".join(lines)

    def _has(self, name: str) -> bool:
        """A file to mount over must exist; engines make it, and so do we."""
        path = self.root / name.lstrip("/")
        if os.path.exists(name) and not path.exists():
            path.touch()
        return os.path.exists(name)
