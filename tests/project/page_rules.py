"""The rules of the chat page's files, as checks that give what they find wrong, in words.

Must never run or render anything: it reads texts. Comments do not count, and what a string says is no code.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser

from tests.harness.scripts import as_sent

MOST_BYTES = 65_536
"""Of all scripts as they are sent, each packed for itself."""
MOST_LINES = 350
PREFIX = "{{assets}}/"
BOOT = "/assets/boot.js"
"""A script at a fixed address, and the first of every page: it tells that others are missing."""

NETWORK = """
    fetch XMLHttpRequest EventSource WebSocket WebSocketStream WebTransport sendBeacon RTCPeerConnection Worker
    SharedWorker serviceWorker importScripts
""".split()  # noqa: SIM905 - as prose
DOM = r"""
    document|window|Node|Element|(HTML|SVG)\w*Element|DocumentFragment|ShadowRoot|NodeList|NodeFilter|DataTransfer
    |(Mutation|Resize|Intersection)Observer|DOMParser|getSelection|getComputedStyle|matchMedia|requestAnimationFrame
    |createElement(NS)?|createTextNode|createDocumentFragment|(get|set|remove|toggle|has)Attribute(NS)?|textContent
    |innerText|classList|dataset|appendChild|appendData|insertBefore|replaceChildren|querySelector(All)?
    |getElement\w+|scroll(IntoView|To|By|Top|Height)|activeElement|execCommand|showModal
"""
MARKUP = """
    innerHTML outerHTML insertAdjacentHTML setHTML setHTMLUnsafe parseHTMLUnsafe parseFromString srcdoc
    createContextualFragment eval Function
""".split()  # noqa: SIM905 - as prose
"""What makes markup or code of a text. The policy forbids most of it to a browser that knows the policy."""
SPELT = {
    r"\bdocument\s*\.\s*write": "document.write",
    r"\bsetAttribute(NS)?\s*\((\s*[\w.]+\s*,)?\s*[\"'`](style|on\w*)[\"'`]": "a style or a handler as an attribute",
    r"\bset(Timeout|Interval)\s*\(\s*[\"'`]": "a timer that runs a text",
    r"\bimport\s*\(\s*[^\"'\s]": "an import of an address that is made",
}
NAMESPACE = "http://www.w3.org/"
ELSEWHERE = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?//[\w\[][^\s\"'`)<>]*", re.IGNORECASE)

_DOM_WORD = re.compile(DOM, re.VERBOSE)
_PIECE = re.compile(
    r"""
    (?P<comment>//[^\n]*|/\*.*?\*/)
    |(?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
    |(?P<word>[A-Za-z_$][\w$]*|\d[\w.]*)
    |(?P<space>\s+)
    |(?P<sign>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_REGEX = re.compile(r"/(?:[^/\\\[\n]|\\.|\[(?:[^\]\\\n]|\\.)*\])+/[a-z]*")
_CHUNK = re.compile(r"(?:[^`\\$]|\\.|\$(?!\{))*(?P<end>`|\$\{)", re.DOTALL)
_BEFORE_REGEX = {"return", "typeof", "case", "in", "of", "void", "throw", "else", "do", "await", "yield"}


@dataclass
class Source:
    """A module as far as the rules look at it: no comments, and what is code apart from what is said."""

    text: str = ""
    words: set[str] = field(default_factory=set)
    strings: set[str] = field(default_factory=set)
    """What stands in quotes; of a template its parts, with an asterisk where a value is put in."""
    imports: list[str] = field(default_factory=list)


def read(text: str) -> Source:
    """Read a module. Raises: ValueError for what cannot be told apart, with its line."""
    source, at, before, earlier = Source(), 0, "", ""
    open_templates: list[tuple[int, str]] = []
    """Of each template that a `${` interrupted: the braces open in it, and its text so far."""

    def template(start: int, so_far: str) -> int:
        chunk = _CHUNK.match(text, start)
        if chunk is None:
            raise ValueError(f"line {text.count(chr(10), 0, start) + 1}: a template without an end")
        so_far += chunk[0][: -len(chunk["end"])]
        source.text += chunk[0]
        if chunk["end"] == "`":
            source.strings.add(so_far)
        else:
            open_templates.append((0, so_far + "*"))
        return chunk.end()

    while at < len(text):
        piece = _PIECE.match(text, at)
        assert piece is not None  # the last alternative takes anything
        kind, found = piece.lastgroup, piece[0]
        at = piece.end()
        if kind in ("comment", "space"):
            source.text += "\n" if "\n" in found else " "
            continue
        if found == "/" and (not before or before in _BEFORE_REGEX or before[-1] in "(,=:[!&|?{};+-*%<>~^"):
            regex = _REGEX.match(text, piece.start())
            if regex is None:
                raise ValueError(f"line {text.count(chr(10), 0, at) + 1}: neither a division nor an expression")
            at, found, kind = regex.end(), '""', "regex"
        source.text += found
        if found == "`":
            at = template(at, "")
        elif found in ('"', "'"):
            raise ValueError(f"line {text.count(chr(10), 0, at) + 1}: a string without an end")
        elif found == "}" and open_templates and open_templates[-1][0] == 0:
            at = template(at, open_templates.pop()[1])
            found = "`"
        elif found in "{}" and open_templates:
            depth, so_far = open_templates.pop()
            open_templates.append((depth + (1 if found == "{" else -1), so_far))
        elif kind == "word":
            source.words.add(found)
        elif kind == "string":
            source.strings.add(found[1:-1])
            if before in ("from", "import") or (earlier, before) == ("import", "("):
                source.imports.append(found[1:-1])
        before, earlier = found, before
    if open_templates:
        raise ValueError("a template without an end")
    return source


def module_faults(
    name: str, text: str, *, network: bool = False, dom: bool = False, worker: bool = False
) -> Iterator[str]:
    """Judge a module by itself: its form, what it may touch, and what none may do. `worker`: it may bring one in."""
    if not text.startswith(("//", "/*")):
        yield f"{name}: does not begin with a comment"
    if (lines := text.count("\n") + (not text.endswith("\n"))) > MOST_LINES:
        yield f"{name}: {lines} lines"
    try:
        source = read(text)
    except ValueError as problem:
        yield f"{name}: cannot be read, {problem}"
        return
    asks = sorted((source.words | source.strings) & {*NETWORK} - ({"serviceWorker"} if worker else set()))
    shows = sorted(word for word in source.words if _DOM_WORD.fullmatch(word))
    if asks and shows:
        yield f"{name}: touches the network ({asks[0]}) and the DOM ({shows[0]})"
    if asks and not network:
        yield f"{name}: touches the network ({asks[0]})"
    if shows and not dom:
        yield f"{name}: touches the DOM ({shows[0]})"
    for word in sorted((source.words | source.strings) & {*MARKUP}):
        yield f"{name}: {word}"
    if any(re.search(r"\n[ \t]*(//|/\*\*)", said) for said in source.strings):
        yield f"{name}: a line of a template that would be taken for a comment"
    for pattern, what in SPELT.items():
        if re.search(pattern, source.text, re.IGNORECASE):
            yield f"{name}: {what}"
    yield from _elsewhere(name, "\n".join(source.strings))


def tree_faults(modules: Mapping[str, str], others: Mapping[str, str], pages: Mapping[str, str]) -> Iterator[str]:
    """Judge how the files go together: sizes, imports, references. `others` are the styles and pictures."""
    if (size := packed_bytes(modules.values())) > MOST_BYTES:
        yield f"all modules: {size} bytes as sent"
    sources = {name: _read_leniently(text) for name, text in modules.items()}
    graph: dict[str, list[str]] = {}
    for name, source in sources.items():
        graph[name] = []
        for address in source.imports:
            if not re.fullmatch(r"\./[a-z0-9_-]+\.js", address):
                yield f"{name}: imports {address!r}, which is not relative"
            elif address[2:] not in modules:
                yield f"{name}: imports {address!r}, which is not there"
            else:
                graph[name].append(address[2:])
    yield from _cycles(graph)
    said = {name: _references(text) for name, text in pages.items()}
    for name, names in said.items():
        yield from (f"{name}: refers to {one!r}, which is not there" for one in sorted(names - {*modules, *others}))
    reached, left = set[str](), [one for names in said.values() for one in names]
    while left:
        if (name := left.pop()) not in reached:
            reached.add(name)
            left += graph.get(name, ())
            if name in sources:
                left += _named(sources[name], [*others])
            elif name.endswith(".css"):
                left += re.findall(r"url\(\s*[\"']?([^\"')]*)", _without_comments(others.get(name, "")))
    yield from (f"{name}: nothing refers to it" for name in sorted({*modules, *others} - reached))


def packed_bytes(scripts: Iterable[str]) -> int:
    """Add up what scripts are as they are sent."""
    return sum(len(gzip.compress(as_sent(text).encode())) for text in scripts)


def style_faults(name: str, text: str, files: set[str]) -> Iterator[str]:
    """Judge a style sheet: it loads what is beside it, and nothing else."""
    text = _without_comments(text)
    if "@import" in text:
        yield f"{name}: @import"
    for address in re.findall(r"url\(\s*[\"']?([^\"')]*)", text):
        if address not in files and not address.startswith("data:"):
            yield f"{name}: url({address}), which is not there"
    yield from _elsewhere(name, re.sub(r"data:[^\s\"')]*", "", text))


def page_faults(name: str, text: str) -> Iterator[str]:
    """Judge the chat's page: nothing inline, and all that it loads is below its own prefix."""
    page = _Page()
    page.feed(text)
    page.close()
    yield from (f"{name}: {fault}" for fault in page.faults)
    if "{{" in text.replace(PREFIX, ""):
        yield f"{name}: a placeholder that is not filled in"
    yield from _elsewhere(name, text)


def links_elsewhere(name: str, text: str) -> Iterator[str]:
    """Judge the page for people: nothing but its links may lead to another host."""
    yield from _elsewhere(name, re.sub(r"<a\s[^>]*>", "<a>", text), tags_only=True)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.faults: list[str] = []
        self._in_script = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._in_script = tag == "script"
        is_boot = given == {"src": BOOT}
        if (
            tag == "script"
            and not is_boot
            and (given.get("type") != "module" or not (given.get("src") or "").startswith(PREFIX))
        ):
            self.faults.append("a script that is no module of its own file")
        if tag in ("style", "base", "iframe", "object", "embed"):
            self.faults.append(f"<{tag}>")
        if tag == "link" and not (given.get("href") or "").startswith((PREFIX, "data:")):
            self.faults.append(f"<link> of {given.get('href')!r}")
        for attribute, value in attrs:
            if attribute == "style" or attribute.startswith("on"):
                self.faults.append(f"{attribute} as an attribute")
            if (value or "").strip().lower().startswith("javascript:"):
                self.faults.append(f"code as {attribute}")

    def handle_data(self, data: str) -> None:
        if self._in_script and data.strip():
            self.faults.append("an inline script")

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False


def _read_leniently(text: str) -> Source:
    try:
        return read(text)
    except ValueError:
        return Source()  # said by module_faults


def _cycles(graph: Mapping[str, list[str]]) -> Iterator[str]:
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> Iterator[str]:
        if name in way:
            yield f"imports go round: {' → '.join([*way[way.index(name) :], name])}"
        elif name not in done:
            for other in graph[name]:
                yield from visit(other, [*way, name])
            done.add(name)

    for name in graph:
        yield from visit(name, [])


def _references(page: str) -> set[str]:
    return set(re.findall(re.escape(PREFIX) + r"([^\"'\s>]*)", page))


def _named(source: Source, files: list[str]) -> list[str]:
    """List the files that a module's strings name; what is put into a template may be any word."""
    patterns = [re.escape(text).replace(r"\*", "[a-z0-9_-]*") for text in source.strings if re.search(r"\.\w+$", text)]
    return [name for name in files if any(re.fullmatch(rf"(\./)?{pattern}", name) for pattern in patterns)]


def _without_comments(style: str) -> str:
    return re.sub(r"/\*.*?\*/", " ", style, flags=re.DOTALL)


def _elsewhere(name: str, text: str, *, tags_only: bool = False) -> Iterator[str]:
    looked_at = " ".join(re.findall(r"<[^>]*>", text)) if tags_only else text
    for found in ELSEWHERE.findall(looked_at):
        if not found.startswith(NAMESPACE):
            yield f"{name}: {found}, an address elsewhere"
