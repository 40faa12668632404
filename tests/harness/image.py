"""Read what the Dockerfile says of the image: its files, its user, its environment, how it is run and asked.

It reads this project's Dockerfile and nothing more. `deploy/try-image` tries the real image, where Docker is.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Image:
    """Hold what the Dockerfile says. `steps` are the instructions as they stand there: (name, rest)."""

    steps: list[tuple[str, str]]

    @classmethod
    def read(cls, path: Path = ROOT / "Dockerfile") -> Image:
        """Read the Dockerfile: comments are left out, continued lines are joined."""
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
        joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
        pairs = (line.partition(" ") for line in joined.splitlines() if line.strip())
        return cls([(name, rest.strip()) for name, _, rest in pairs])

    def _all(self, name: str) -> list[str]:
        return [rest for step, rest in self.steps if step == name]

    def _one(self, name: str) -> str:
        (found,) = self._all(name)
        return found

    @property
    def directory(self) -> str:
        """Tell where the service's files are."""
        return self._one("WORKDIR")

    @property
    def user(self) -> str:
        """Tell who runs the service: `uid:gid`."""
        return self._one("USER")

    @property
    def stop_signal(self) -> str:
        """Name the signal of `docker stop`."""
        return self._one("STOPSIGNAL")

    @property
    def port(self) -> str:
        """Tell the one port."""
        return self._one("EXPOSE")

    @property
    def environment(self) -> dict[str, str]:
        """List the variables that the image sets."""
        return dict(word.split("=", 1) for text in self._all("ENV") for word in shlex.split(text))

    @property
    def labels(self) -> dict[str, str]:
        """List the labels."""
        return dict(word.split("=", 1) for text in self._all("LABEL") for word in shlex.split(text))

    @property
    def command(self) -> list[str]:
        """List the words of the command. Raises: ValueError for a command that a shell would run."""
        words: list[str] = json.loads(self._one("CMD"))
        return words

    @property
    def health_command(self) -> list[str]:
        """List the words of the health check. Raises: ValueError for a command that a shell would run."""
        words: list[str] = json.loads(self._one("HEALTHCHECK").partition("CMD ")[2])
        return words

    @property
    def health_flags(self) -> dict[str, str]:
        """List the flags of the health check, without their dashes."""
        flags = self._one("HEALTHCHECK").partition("CMD ")[0].split()
        return dict(flag.removeprefix("--").split("=", 1) for flag in flags)

    def files(self, root: Path = ROOT) -> dict[str, str]:
        """List what COPY copies: path in the project → path in the image.

        Raises: AssertionError for a source of which .dockerignore lets nothing in.
        """
        context = build_context(root)
        found = {}
        for text in self._all("COPY"):
            *sources, target = text.split()
            for source in sources:
                paths = [path for path in context if path == source or path.startswith(f"{source}/")]
                assert paths, f"COPY {source}: .dockerignore leaves it out"
                for path in paths:
                    into = path.removeprefix(source).strip("/") or (path if target.endswith("/") else "")
                    found[path] = str(PurePosixPath(self.directory, target, into))
        return found


def build_context(root: Path = ROOT) -> set[str]:
    """List the files that .dockerignore lets into the build.

    It understands this project's file: everything out (`*`), some let in by name (`!app`), some of those out again.
    """
    lines = (root / ".dockerignore").read_text(encoding="utf-8").splitlines()
    first, *rules = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    assert first == "*", ".dockerignore does not begin by leaving everything out"
    let_in = [rule[1:] for rule in rules if rule.startswith("!")]
    out = [rule for rule in rules if not rule.startswith("!")]
    found = set()
    for name in let_in:
        top = root / name
        paths = [Path(folder, file) for folder, _, files in os.walk(top) for file in files] if top.is_dir() else [top]
        found |= {path.relative_to(root).as_posix() for path in paths if path.is_file()}
    return {path for path in found if not any(_matches(path, rule) for rule in out)}


def _matches(path: str, rule: str) -> bool:
    """Tell whether a rule leaves a file out, or a directory above the file. `**/` stands for any directories."""
    parts = PurePosixPath(path).parts
    starts = range(len(parts)) if rule.startswith("**/") else (0,)
    pattern = rule.removeprefix("**/")
    length = pattern.count("/") + 1
    return any(fnmatch("/".join(parts[start : start + length]), pattern) for start in starts)
