"""Read the Dockerfile and its .dockerignore, for the proof and the tests.

Understands what they use and nothing more: anything else is an error, so that what is proved is what is built.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]

BASE_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
KNOWN = ("ARG", "CMD", "COPY", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "RUN", "STOPSIGNAL", "USER", "WORKDIR")
HEALTH_FLAGS = ("interval", "timeout", "start-period", "retries")


class NotUnderstood(ValueError):
    """State what stands there that this reader does not know."""


@dataclass(frozen=True)
class Copy:
    sources: tuple[str, ...]
    target: str  # absolute; ends with "/" where it is a directory


@dataclass(frozen=True)
class Run:
    command: str
    environment: Mapping[str, str]
    directory: str
    user: str


@dataclass
class Image:
    """What the Dockerfile says: the base, what is done to it, and how the result is run."""

    base: str = ""
    steps: list[Copy | Run] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=lambda: dict(BASE_ENV))
    labels: dict[str, str] = field(default_factory=dict)
    ports: list[str] = field(default_factory=list)
    directory: str = "/"
    user: str = "root"
    command: list[str] = field(default_factory=list)
    health_command: list[str] = field(default_factory=list)
    health_flags: dict[str, str] = field(default_factory=dict)
    stop_signal: str = ""


def read_image(text: str, build_args: Mapping[str, str] | None = None) -> Image:
    """Read a Dockerfile with these build arguments. Raises: NotUnderstood."""
    image = Image()
    given = dict(build_args or {})
    args: dict[str, str] = {}
    asked: set[str] = set()
    for number, line in _instructions(text):
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if name not in KNOWN:
            raise NotUnderstood(f"line {number}: {name}")
        if "<<" in rest or (rest.startswith("--") and name != "HEALTHCHECK"):
            raise NotUnderstood(f"line {number}: {line}")
        if not image.base and name not in ("ARG", "FROM"):
            raise NotUnderstood(f"line {number}: {name} before FROM")
        try:
            args = _apply(image, name, rest, args, given)
            asked |= set(args)
        except ValueError as error:
            raise NotUnderstood(f"line {number}: {error}: {line}") from error
    if unknown := sorted(set(given) - asked):
        raise NotUnderstood(f"no ARG takes {', '.join(unknown)}")
    return image


def _instructions(text: str) -> list[tuple[int, str]]:
    """Join continued lines, as Docker does: comments between them are dropped."""
    found, pending, begun = [], "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(r"#\s*(syntax|escape|check)\s*=", line) and not found:
            raise NotUnderstood(f"line {number}: a parser directive")
        if line.lstrip().startswith("#") or not line.strip():
            continue
        begun = begun if pending else number
        pending += line.strip().removesuffix("\\").strip() + " "
        if not line.rstrip().endswith("\\"):
            found.append((begun, pending.strip()))
            pending = ""
    if pending:
        raise NotUnderstood(f"line {begun}: it has no end")
    return found


def _apply(image: Image, name: str, rest: str, args: dict[str, str], given: dict[str, str]) -> dict[str, str]:
    """Do one instruction; return the build arguments that are known after it."""
    variables = {**args, **image.environment}
    if name == "ARG":
        variable, equals, default = rest.partition("=")
        if not equals:
            raise ValueError("an ARG without a default")
        return {**args, variable: given.get(variable, default)}
    if name == "FROM":
        if image.base:
            raise ValueError("a second stage")
        image.base = _expand(rest, args)
        if " " in image.base:
            raise ValueError("a stage with a name")
        return {}  # those before FROM are not known after it
    if name == "RUN":
        if rest.startswith("["):
            raise ValueError("RUN in exec form")
        image.steps.append(Run(rest, variables, image.directory, image.user))
    elif name == "CMD":
        image.command = _exec_form(rest)
    elif name == "HEALTHCHECK":
        flags, _, command = rest.partition("CMD ")
        image.health_flags = dict(flag.removeprefix("--").split("=", 1) for flag in flags.split())
        if set(image.health_flags) - set(HEALTH_FLAGS):
            raise ValueError("a flag")
        image.health_command = _exec_form(command)
    elif name in ("ENV", "LABEL"):
        pairs = dict(word.split("=", 1) for word in shlex.split(_expand(rest, variables)))
        (image.environment if name == "ENV" else image.labels).update(pairs)
    else:
        _apply_words(image, name, _expand(rest, variables).split())
    return args


def _apply_words(image: Image, name: str, words: list[str]) -> None:
    if name == "COPY":
        *sources, target = words
        if not sources or any(re.search(r"[*?\[]", source) for source in sources):
            raise ValueError("its sources")
        is_directory = target.endswith("/") or len(sources) > 1
        path = str(PurePosixPath(image.directory, target)) + ("/" if is_directory else "")
        image.steps.append(Copy(tuple(sources), path))
        return
    if name == "EXPOSE":
        image.ports.extend(words)
        return
    (word,) = words
    if name == "WORKDIR":
        image.directory = str(PurePosixPath(image.directory, word))
    elif name == "USER":
        image.user = word
    else:
        image.stop_signal = word


def _exec_form(text: str) -> list[str]:
    """Read a JSON list of words; the shell form would put a shell between the engine and the process."""
    words = json.loads(text)
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise ValueError("not the exec form")
    return words


def _expand(text: str, variables: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in variables:
            raise ValueError(f"${name} is not known")
        return variables[name]

    expanded = re.sub(r"\$(?:\{(\w+)\}|(\w+))", value, text)
    if "$" in expanded:
        raise ValueError("an expansion")
    return expanded


# The build context


def _pattern(text: str) -> re.Pattern[str]:
    if re.search(r"[\[\]\\]", text):
        raise NotUnderstood(f".dockerignore: {text}")
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    regex = "".join(parts.get(part) or re.escape(part) for part in re.split(r"(\*\*/|\*\*|\*|\?)", text.strip("/")))
    return re.compile(f"{regex}(?:/.*)?")  # what is below a match matches too


def context_files(root: Path = ROOT) -> set[str]:
    """List the files that .dockerignore lets into the build."""
    lines = (root / ".dockerignore").read_text(encoding="utf-8").splitlines()
    lines = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if lines[0] != "*":
        raise NotUnderstood(".dockerignore: it does not begin by leaving everything out")
    rules = [(_pattern(line.removeprefix("!")), line.startswith("!")) for line in lines]
    wanted = {line[1:].strip("/").split("/")[0] for line in lines if line.startswith("!")}

    def is_let_in(path: str) -> bool:
        return next((let_in for pattern, let_in in reversed(rules) if pattern.fullmatch(path)), True)

    found = set()
    for top in sorted(wanted):
        paths = [root / top]
        if (root / top).is_dir():
            paths = [Path(folder, name) for folder, _, names in os.walk(root / top) for name in names]
        found |= {path.relative_to(root).as_posix() for path in paths if path.is_file()}
    return {path for path in found if is_let_in(path)}


def copies(image: Image, root: Path = ROOT) -> list[tuple[str, str]]:
    """List what the COPY steps copy, file by file: (path in the project, path in the image).

    Raises: NotUnderstood for a source that is not in the build's context.
    """
    context = context_files(root)
    found = []
    for step in image.steps:
        if not isinstance(step, Copy):
            continue
        for source in step.sources:
            below = sorted(path for path in context if path == source or path.startswith(f"{source}/"))
            if not below:
                raise NotUnderstood(f"COPY {source}: not in the build's context")
            for path in below:
                inside = path.removeprefix(source).strip("/")  # a directory's content is copied, not itself
                into_directory = step.target.endswith("/") and not inside
                name = PurePosixPath(source).name if into_directory else inside
                found.append((path, str(PurePosixPath(step.target, name))))
    return found
